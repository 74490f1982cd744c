"""Serves a bundle over HTTP: `uvicorn api:app` or `python api.py`; the page at / and the documentation at /docs."""

import argparse
import asyncio
import os
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image

from spectacles import __version__, explanations, overlays, serving
from spectacles.errors import UserError
from spectacles.galleries import overlay_heatmap
from spectacles.inference import Prediction, Predictor
from spectacles.layouts import NoFeatureMap
from spectacles.serving import (
    Explanation,
    ImagePrediction,
    ModelCard,
    PredictionList,
    Problem,
    RefusedImage,
    SinglePrediction,
    Status,
)
from spectacles.settings import EXPLANATIONS


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Loads the bundle. Without one the server starts all the same and says why it is not ready."""
    # One thread for decoding and the network: the event loop stays free, and torch's thread budget is spent once.
    with serving.json_log(), warnings.catch_warnings(), ThreadPoolExecutor(1, "inference") as worker:
        warnings.filterwarnings("ignore", module="PIL")  # odd metadata; what matters is in the answer
        predictor, problem = None, ""
        try:
            predictor = serving.load_predictor()
            serving.log_event(
                "ready", model_id=predictor.model_id, device=str(predictor.device), engine=predictor.engine
            )
        except (UserError, OSError) as error:
            problem = str(error)
            serving.log_event("not ready", error=problem)
        page = serving.PAGE.read_text(encoding="utf-8")
        yield {"predictor": predictor, "problem": problem, "worker": worker, "page": page}


app = FastAPI(title="Spectacles", description="Says which class a photo shows.", version=__version__, lifespan=lifespan)
app.add_middleware(serving.limit_body, max_bytes=serving.MAX_BODY_BYTES)


@app.middleware("http")
async def name_request(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    request.state.request_id = serving.choose_request_id(request.headers.get("x-request-id", ""))
    response = await call_next(request)
    response.headers["X-Request-ID"] = request.state.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@app.exception_handler(RequestValidationError)
async def explain_form(request: Request, error: RequestValidationError) -> JSONResponse:
    """A request can get the form's file field wrong, and for /explain the words in the others."""
    wrong = next((problem for problem in error.errors() if problem["type"] == "literal_error"), None)
    if wrong:
        detail = f"{wrong['loc'][-1]} {str(wrong['input'])[:40]!r} is unknown: use {wrong['ctx']['expected']}."
        return JSONResponse({"detail": detail}, status_code=422)
    count = "one image" if request.url.path == "/explain" else f"one to {serving.MAX_FILES} images"
    example = f"curl -F file=@photo.jpg http://localhost:8000{request.url.path}"
    detail = f"Send {count} as multipart/form-data in the field 'file': {example}"
    return JSONResponse({"detail": detail}, status_code=422)


async def ready_predictor(request: Request) -> Predictor:
    if request.state.predictor is None:
        raise HTTPException(503, request.state.problem)
    predictor: Predictor = request.state.predictor
    return predictor


Ready = Annotated[Predictor, Depends(ready_predictor)]
NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "No bundle is loaded"}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The multipart body cannot be read"},
    413: {"model": Problem, "description": "More than 32 MiB or more than 16 files"},
    415: {"model": Problem, "description": "The file is no JPEG, PNG, WebP, BMP, GIF or TIFF"},
    422: {"model": Problem, "description": "No file, or an empty, damaged or too large image (over 25 million pixels)"},
}


@app.post("/predict", responses=REFUSALS | NOT_READY)
async def predict(
    request: Request,
    file: Annotated[list[UploadFile], File(description="One to sixteen photos.")],
    predictor: Ready,
) -> SinglePrediction | PredictionList:
    """One file: its label and probabilities, or a 4xx with the reason. Several files: a list of those, in order."""
    if len(file) > serving.MAX_FILES:
        raise HTTPException(413, f"{len(file)} files are too many: send at most {serving.MAX_FILES} a request.")
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    predictions = await loop.run_in_executor(request.state.worker, classify, predictor, file)
    milliseconds = round((time.perf_counter() - started) * 1000, 1)
    request_id = request.state.request_id
    answers = [serving.answer(prediction, predictor.info.classes) for prediction in predictions]
    for upload, outcome in zip(file, answers, strict=True):
        serving.log_inference(request_id, milliseconds, upload.size or 0, outcome, upload.filename)
    envelope = {"model_id": predictor.model_id, "milliseconds": milliseconds, "request_id": request_id}
    if len(answers) > 1:
        return PredictionList(predictions=answers, **envelope)
    if isinstance(answers[0], RefusedImage):
        raise HTTPException(answers[0].status, answers[0].error)
    return SinglePrediction(**answers[0].model_dump(), **envelope)


def classify(predictor: Predictor, uploads: list[UploadFile]) -> list[Prediction]:
    """Reads each upload when its turn comes, so that waiting requests hold no second copy."""
    contents = (upload.file.read() for upload in uploads)
    return list(predictor.predict(contents, max_pixels=serving.MAX_PIXELS))


EXPLAINED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The overlay; with format=json the numbers.",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        "model": Explanation,
    }
}


@app.post("/explain", responses=EXPLAINED | REFUSALS | NOT_READY, response_class=Response)
async def explain(
    request: Request,
    file: Annotated[list[UploadFile], File(description="One photo.", max_length=1)],
    predictor: Ready,
    method: Annotated[Literal[EXPLANATIONS], Form(description="How it is found out.")] = EXPLANATIONS[0],
    label: Annotated[str, Form(description="The class to explain. Default: the one that the photo is taken for.")] = "",
    format: Annotated[Literal["png", "json"], Form(description="A picture, or numbers.")] = "png",
) -> Response:
    """What in a photo speaks for a class: a PNG of the square that the model sees of it, the hottest spots red.

    occlusion and integrated_gradients take about a second."""
    classes = predictor.info.classes
    if request.query_params:
        raise HTTPException(422, "Send method, label and format as form fields, like the file: -F method=occlusion")
    if label and label not in classes:
        raise HTTPException(422, f"label {label[:40]!r} is none of the model's classes; GET /model lists them.")
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    try:
        outcome, facts, picture = await loop.run_in_executor(
            request.state.worker, explain_photo, predictor, file[0], method, label
        )
    except NoFeatureMap as reason:
        detail = f"{method} does not work with {predictor.info.backbone}: {reason}; {explanations.REMEDY}."
        raise HTTPException(422, detail) from reason
    milliseconds = round((time.perf_counter() - started) * 1000, 1)
    request_id = request.state.request_id
    serving.log_inference(request_id, milliseconds, file[0].size or 0, outcome, file[0].filename)
    if isinstance(outcome, RefusedImage):
        raise HTTPException(outcome.status, outcome.error)
    if format == "png":
        return Response(picture, media_type="image/png")
    answer = Explanation(
        method=method, **facts, model_id=predictor.model_id, milliseconds=milliseconds, request_id=request_id
    )
    return JSONResponse(answer.model_dump())


def explain_photo(
    predictor: Predictor, upload: UploadFile, method: str, label: str
) -> tuple[ImagePrediction | RefusedImage, dict[str, Any], bytes]:
    """(what /predict answers, label, probability and heat of what is explained, PNG); without the latter two where the
    photo is refused. Raises NoFeatureMap."""
    info, content = predictor.info, upload.file.read()
    prediction = next(predictor.predict([content], max_pixels=serving.MAX_PIXELS))
    outcome = serving.answer(prediction, info.classes)
    if prediction.reason:
        return outcome, {}, b""
    index = info.classes.index(label or prediction.label)
    pixels, picture = overlays.view(content, info.preprocessing, serving.MAX_PIXELS)
    heat = explanations.explain(method, predictor.classifier, pixels[None], [index], info.preprocessing)[0]
    buffer = BytesIO()
    Image.fromarray(overlay_heatmap(picture, heat)).save(buffer, "PNG")
    rows = heat.astype(float).round(3).tolist()
    facts = {"label": info.classes[index], "probability": prediction.probabilities[index], "heat": rows}
    return outcome, facts, buffer.getvalue()


@app.get("/health/live")
async def live() -> Status:
    """The process answers."""
    return Status(status="live")


@app.get("/health/ready", responses=NOT_READY)
async def ready(_: Ready) -> Status:
    """A bundle is loaded and predictions can be asked for."""
    return Status(status="ready")


@app.get("/model", responses=NOT_READY)
async def model(predictor: Ready) -> ModelCard:
    return serving.model_card(predictor)


@app.get("/", include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    return HTMLResponse(request.state.page, headers=serving.page_headers(request.state.page))


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a bundle over HTTP, with a page to try it at /.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for other machines too.")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen on; 0 takes a free one.")
    parser.add_argument("--bundle", help="Bundle folder. Default: SPECTACLES_BUNDLE, else the latest run's.")
    parser.add_argument("--output_dir", help="Folder of the runs. Default: SPECTACLES_OUTPUT_DIR, else outputs.")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps. Default: SPECTACLES_DEVICE, else auto.")
    args = parser.parse_args()
    if args.output_dir:
        os.environ.pop("SPECTACLES_BUNDLE", None)  # a flag beats the environment
    for name in ("bundle", "output_dir", "device"):
        if getattr(args, name):
            os.environ[f"SPECTACLES_{name.upper()}"] = getattr(args, name)
    uvicorn.run(app, host=args.host, port=args.port, access_log=False)


if __name__ == "__main__":
    main()
