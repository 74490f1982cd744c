"""What the routes do: from a request to pictures, from pictures to answers, and only while somebody waits for them."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from PIL import Image

from spectacles.data.preprocessing import Preprocessing, to_picture
from spectacles.evaluation import attribution, overlays
from spectacles.evaluation.feature_layouts import NoFeatureMap
from spectacles.inference.predictor import Predictor
from spectacles.report.image_grid import overlay_saliency
from spectacles.server import limits, urls
from spectacles.server.auth import Rejected
from spectacles.server.batching import Answer, Batcher, Overloaded
from spectacles.server.forms import Form
from spectacles.server.service import Service, busy

T = TypeVar("T")


def how_to_ask(path: str) -> str:
    count = "one image" if path == "/explain" else f"one to {limits.MAX_FILES} images"
    example = f"curl -F file=@photo.jpg http://localhost:8000{path}"
    return f"Send {count} as multipart/form-data in the field 'file': {example}"


async def contents(request: Request, service: Service, form: Form, most: int) -> list[bytes]:
    """The photos in it, or what its URL leads to. Raises Rejected where that is nothing, or more than a client may."""
    files, url = form.files, form.fields.get("url", "")
    if bool(files) == bool(url):
        raise Rejected(422, "bad_request", how_to_ask(request.url.path))
    if len(files) > most:
        raise Rejected(413, "bad_request", f"{len(files)} files are too many: send at most {most} a request.")
    service.rate_limit.take(request.state.client, max(1, len(files)))
    service.check_room(max(1, len(files)))
    if files:
        return files
    if not service.settings.allow_urls:
        raise Rejected(422, "url", "This server fetches no photos: send the file itself.")
    return [await asyncio.get_running_loop().run_in_executor(None, urls.fetch, url)]


async def predict(service: Service, contents: list[bytes]) -> list[Answer]:
    """One answer an image, all of one model: where that was exchanged in between, once more by the new one."""
    batcher = service.ready_batcher()
    try:
        found = await batcher.predict_all(contents)
        while len({each.model.model_id for each in found}) > 1:
            found = await batcher.predict_all(contents)
    except Overloaded as overload:
        raise busy(overload) from None
    for each in found:
        service.metrics.observe(each)
    return found


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of `work`, which is given up when the client goes away."""
    task, gone = asyncio.current_task(), False
    assert task is not None

    async def listen() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = task.cancel()

    listening = asyncio.create_task(listen())
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise Rejected(499, "disconnected", "The client went away.") from None
    finally:
        listening.cancel()


async def explanation(
    service: Service, content: bytes, found: Answer, method: str, label: str
) -> tuple[dict[str, Any], bytes]:
    """(label, probability and saliency of the explained class, PNG). Raises Rejected where the method cannot."""
    model, batcher = found.model, service.ready_batcher()
    index = model.info.classes.index(label) if label else overlays.explained(found.prediction, model.info)
    preprocessing = model.info.preprocessing
    seen, shown = [
        await _pixels(batcher, content, each) for each in (preprocessing, overlays.for_people(preprocessing))
    ]
    try:
        saliency, picture = await batcher.between_batches(partial(_draw, model, method, index, seen, shown))
    except NoFeatureMap as reason:
        detail = f"{method} does not work with {model.info.backbone}: {reason}; {attribution.REMEDY}."
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
    decoded = await batcher.decode(content, preprocessing)
    if decoded.pixels is None:  # it was readable a moment ago: its decoder has died since
        raise Rejected(422, "image", f"The image is rejected: {decoded.reason}.")
    return decoded.pixels


def _draw(
    model: Predictor, method: str, index: int, seen: np.ndarray, shown: np.ndarray
) -> tuple[list[list[float]], bytes]:
    saliency = attribution.explain(method, model.classifier, seen[None], [index], model.info.preprocessing)[0]
    buffer = BytesIO()
    Image.fromarray(overlay_saliency(to_picture(shown), saliency)).save(buffer, "PNG")
    return saliency.astype(float).round(3).tolist(), buffer.getvalue()
