"""The routes of the server, as an ASGI application."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic_core import to_json

from spectacles import __version__
from spectacles.core.config import EXPLANATIONS
from spectacles.core.errors import UserError
from spectacles.server import (
    admission,
    forms,
    handlers,
    limits,
    middleware,
    page,
    schemas,
    service,
    settings,
    signals,
    telemetry,
)
from spectacles.server.auth import Rejected
from spectacles.server.openapi import DENIED, EXPLAINED, METRICS, NOT_READY, REJECTIONS, page_for
from spectacles.server.protocols.dispatch import Dispatch, Protocols
from spectacles.server.schemas import (
    Explanation,
    ModelCard,
    PredictionList,
    Problem,
    RejectedImage,
    SinglePrediction,
    Status,
    Swapped,
)
from spectacles.server.service import LOADING, Service

AGAIN = {"Retry-After": "1"}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Without a usable bundle the server starts too, and says why it is not ready."""
    given, protocols, problem = read_settings()
    async with service.started(given, problem) as started:
        app.state.service = started
        with signals.handled(started):
            yield {"service": started, "protocols": protocols, "page": page.page()}


def read_settings() -> tuple[settings.Settings, Protocols, str]:
    """(settings, the protocols they ask for, why they cannot be used: then nothing is served)."""
    try:
        given = settings.read()
        return given, Protocols(given.protocols), ""
    except UserError as error:
        return settings.Settings(), Protocols(), str(error)


app = FastAPI(
    title="Spectacles", description="Predicts which class a photo shows.", version=__version__, lifespan=lifespan
)


def openapi() -> dict[str, Any]:
    """With this server's settings; before it has started, with the default ones."""
    serving: Service | None = getattr(app.state, "service", None)
    return page_for(FastAPI.openapi(app), serving.settings if serving else settings.Settings())


app.openapi = openapi  # type: ignore[method-assign]


@app.exception_handler(Rejected)
async def handle_rejected(request: Request, rejected: Rejected) -> JSONResponse:
    return middleware.reject(request.state.service, request.state.request_id, rejected)


PREDICT_FORM = forms.openapi_form(limits.MAX_FILES, url={"description": "A photo's address, instead of files."})


@app.post(
    "/predict", response_model=SinglePrediction | PredictionList, responses=REJECTIONS, openapi_extra=PREDICT_FORM
)
async def predict(request: Request) -> Response:
    """One file: its label and probabilities, or a 4xx with the reason. Several files: a list of those, in order."""
    serving: Service = request.state.service
    serving.ready_batcher()
    form = await forms.read(request, handlers.usage("/predict"), url="")
    contents = await handlers.contents(request, serving, form, limits.MAX_FILES)
    answered = await handlers.answer(request, contents)
    if len(contents) > 1:
        return _json({"predictions": answered.outcomes, **answered.envelope})
    [outcome] = answered.outcomes
    if isinstance(outcome, RejectedImage):
        return _rejection(outcome)
    return _json(vars(outcome) | answered.envelope)


def _json(answer: dict[str, Any]) -> Response:
    """Without a pydantic model: the fields have just been validated, and once more would take longer than the rest."""
    return Response(to_json(answer, inf_nan_mode="null"), media_type="application/json")


def _rejection(outcome: RejectedImage) -> Response:
    return JSONResponse({"detail": outcome.error}, outcome.status)


app.add_middleware(Dispatch)
app.add_middleware(limits.BodyLimit)
app.add_middleware(admission.Admission)
app.add_middleware(middleware.AuthMiddleware)
app.add_middleware(middleware.LateCorsMiddleware)


FORMATS = ("png", "json")
EXPLAIN_FORM = forms.openapi_form(
    1,
    method={"enum": list(EXPLANATIONS), "default": EXPLANATIONS[0], "description": "Attribution method."},
    label={"description": "The class to explain. Default: the predicted one; of several labels the most probable."},
    format={"enum": list(FORMATS), "default": FORMATS[0], "description": "A picture, or numbers."},
)  # fmt: skip


@app.post("/explain", responses=EXPLAINED | REJECTIONS, response_class=Response, openapi_extra=EXPLAIN_FORM)
async def explain(request: Request) -> Response:
    """Which parts of a photo support a class: a PNG of the square that the model sees, the most salient parts red.

    occlusion and integrated_gradients take about a second."""
    serving: Service = request.state.service
    classes = serving.ready_batcher().model.info.classes
    if request.query_params:
        detail = "Send method, label and format as form fields, like the file: -F method=occlusion"
        raise Rejected(422, "bad_request", detail)
    form = await forms.read(request, handlers.usage("/explain"), method=EXPLANATIONS[0], label="", format=FORMATS[0])
    method = forms.choice(form, "method", EXPLANATIONS)
    format = forms.choice(form, "format", FORMATS)
    label = form.fields["label"]
    if label and label not in classes:
        detail = f"label {label[:40]!r} is not a class of the model; GET /model lists them."
        raise Rejected(422, "bad_request", detail)
    started = time.perf_counter()
    [content] = await handlers.contents(request, serving, form, 1)
    [found] = await handlers.cancel_on_disconnect(request, handlers.predict(serving, [content]))
    outcome = schemas.image_result(found.prediction, found.model.info)
    rejected = isinstance(outcome, RejectedImage)
    facts, picture = ({}, b"") if rejected else await handlers.explanation(serving, content, found, method, label)
    milliseconds = round((time.perf_counter() - started) * 1000, 1)
    telemetry.log_image(request.state.request_id, milliseconds, len(content), outcome)
    if isinstance(outcome, RejectedImage):
        return _rejection(outcome)
    answer = Explanation(method=method, **facts, model_id=found.model.model_id, milliseconds=milliseconds,
                         request_id=request.state.request_id)  # fmt: skip
    headers = schemas.explanation_headers(answer)
    if format == "png":
        return Response(picture, media_type="image/png", headers=headers)
    return JSONResponse(answer.model_dump(), headers=headers)


@app.get("/health/live")
async def live() -> Status:
    """The process is alive."""
    return Status(status="live")


@app.get("/health/ready", responses=NOT_READY)
async def ready(request: Request) -> Status:
    """A bundle is loaded and all that answers is at work; no longer ready once the server is about to end."""
    serving: Service = request.state.service
    if problem := serving.not_ready():
        raise HTTPException(503, problem, AGAIN if serving.draining or problem == LOADING else None)
    return Status(status="ready")


@app.get("/model", responses=DENIED | NOT_READY)
async def model(request: Request) -> ModelCard:
    return schemas.model_card(request.state.service.ready_batcher().model)


@app.get("/metrics", responses=METRICS | DENIED, response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    content, media_type = request.state.service.metrics.exposition()
    return Response(content, media_type=media_type)


@app.post("/admin/reload", responses=DENIED | {409: {"model": Problem, "description": "The bundle cannot be used"}})
async def admin_reload(request: Request) -> Swapped:
    """Serves what the bundle's folder holds now, without a pause. Only on a server with keys."""
    serving: Service = request.state.service
    if not serving.settings.api_keys:
        raise HTTPException(403, "This server has no keys, so nobody may do that over HTTP: send it SIGHUP instead.")
    try:
        return Swapped(model_id=await serving.swap())
    except UserError as error:
        raise HTTPException(409, f"The old model stays: {error}") from None


@app.get("/", include_in_schema=False)
async def front_page(request: Request) -> HTMLResponse:
    return HTMLResponse(request.state.page, headers=page.headers(request.state.page))
