"""The work of the routes: from a request to images, and from images to predictions and explanations."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from PIL import Image

from spectacles.data.preprocessing import Preprocessing, to_picture
from spectacles.evaluation import attribution, overlays
from spectacles.evaluation.saliency import CannotExplain
from spectacles.inference.predictor import Predictor
from spectacles.report.saliency import overlay_saliency
from spectacles.server import limits, schemas, telemetry, urls
from spectacles.server.auth import Rejected
from spectacles.server.batching import Answer, Batcher, Overloaded
from spectacles.server.decoders import NoDecoder
from spectacles.server.forms import Form
from spectacles.server.schemas import ImagePrediction, RejectedImage
from spectacles.server.service import Service, busy

T = TypeVar("T")


def usage(path: str) -> str:
    count = "one image" if path == "/explain" else f"one to {limits.MAX_FILES} images"
    example = f"curl -F file=@photo.jpg http://localhost:8000{path}"
    return f"Send {count} as multipart/form-data in the field 'file': {example}"


async def contents(request: Request, service: Service, form: Form, most: int) -> list[bytes]:
    """The photos of the form, or the one at its URL. Raises Rejected for none, or for more than the client may send."""
    files, url = form.files, form.fields.get("url", "")
    if bool(files) == bool(url):
        raise Rejected(422, "bad_request", usage(request.url.path))
    if len(files) > most:
        raise Rejected(413, "bad_request", f"{len(files)} files are too many: send at most {most} a request.")
    admit(request, max(1, len(files)))
    if files:
        return files
    if not service.settings.allow_urls:
        raise Rejected(422, "url", "This server does not fetch photos from URLs: send the file itself.")
    return [await urls.fetch_within(service.url_pool, url)]


def admit(request: Request, images: int) -> None:
    """Raises Rejected where the client may not send so many now, or where there is no room for them."""
    service: Service = request.state.service
    service.rate_limit.take(request.state.client, images)
    service.check_room(images)


@dataclass(frozen=True)
class Answered:
    outcomes: list[ImagePrediction | RejectedImage]
    """One an image, in order."""
    envelope: dict[str, Any]
    """Facts of the request: model_id, milliseconds and request_id."""


async def answer(request: Request, contents: list[bytes]) -> Answered:
    """Raises Rejected where there is no answer to the request as a whole."""
    started = time.perf_counter()
    found = await cancel_on_disconnect(request, predict(request.state.service, contents))
    milliseconds = round((time.perf_counter() - started) * 1000, 1)
    outcomes = [schemas.image_result(each.prediction, each.model.info) for each in found]
    request_id = request.state.request_id
    for content, outcome in zip(contents, outcomes, strict=True):
        telemetry.log_image(request_id, milliseconds, len(content), outcome)
    return Answered(
        outcomes, {"model_id": found[0].model.model_id, "milliseconds": milliseconds, "request_id": request_id}
    )


def no_decoder(error: NoDecoder) -> Rejected:
    return Rejected(503, "not_ready", f"The server cannot answer now: {error}.", {"Retry-After": "1"})


async def predict(service: Service, contents: list[bytes]) -> list[Answer]:
    """One answer per image, all by the same model: if that was swapped in between, they are computed again."""
    batcher = service.ready_batcher()
    try:
        found = await batcher.predict_all(contents)
        while len({each.model.model_id for each in found}) > 1:
            found = await batcher.predict_all(contents)
    except Overloaded as overload:
        raise busy(overload) from None
    except NoDecoder as error:
        raise no_decoder(error) from None
    for each in found:
        service.metrics.observe(each)
    return found


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects."""
    task = asyncio.current_task()
    disconnected = False
    assert task is not None

    async def listen() -> None:
        nonlocal disconnected
        while (await request.receive())["type"] != "http.disconnect":
            pass
        disconnected = task.cancel()

    listening = asyncio.create_task(listen())
    try:
        return await work
    except asyncio.CancelledError:
        if not disconnected:
            raise
        task.uncancel()
        raise Rejected(499, "disconnected", "The client disconnected.") from None
    finally:
        listening.cancel()


async def explanation(
    service: Service, content: bytes, found: Answer, method: str, label: str
) -> tuple[dict[str, Any], bytes]:
    """(label, probability and saliency of the explained class, PNG). Raises Rejected where the method cannot."""
    model = found.model
    batcher = service.ready_batcher()
    index = model.info.classes.index(label) if label else overlays.explained(found.prediction, model.info)
    preprocessing = model.info.preprocessing
    seen, shown = [
        await _pixels(batcher, content, each) for each in (preprocessing, overlays.for_people(preprocessing))
    ]
    try:
        saliency, picture = await batcher.between_batches(partial(_draw, model, method, index, seen, shown))
    except CannotExplain as reason:
        detail = f"{method} cannot explain this model: {reason}; {attribution.REMEDY}."
        raise Rejected(422, "bad_request", detail) from reason
    except Overloaded as overload:
        raise busy(overload) from None
    facts = {
        "label": model.info.classes[index],
        "probability": found.prediction.probabilities[index],
        "saliency": saliency,
    }
    return facts, picture


async def _pixels(batcher: Batcher, content: bytes, preprocessing: Preprocessing) -> np.ndarray:
    try:
        decoded = await batcher.decode(content, preprocessing)
    except NoDecoder as error:
        raise no_decoder(error) from None
    if decoded.pixels is None:  # readable a moment ago: its decoder has died since
        raise Rejected(422, "image", f"The image is rejected: {decoded.reason}.")
    return decoded.pixels


def _draw(
    model: Predictor, method: str, index: int, seen: np.ndarray, shown: np.ndarray
) -> tuple[list[list[float]], bytes]:
    saliency = attribution.explain(method, model, seen[None], [index])[0]
    buffer = BytesIO()
    Image.fromarray(overlay_saliency(to_picture(shown), saliency)).save(buffer, "PNG")
    return saliency.astype(float).round(3).tolist(), buffer.getvalue()
