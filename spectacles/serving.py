"""What the server's routes stand on: which bundle, the body limit, the shapes of the answers, the log, the page."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spectacles import __version__, engines, run_dir, runtime
from spectacles.content_policy import inline_hash
from spectacles.environment import package_versions
from spectacles.errors import UserError
from spectacles.images import UNKNOWN_FORMAT
from spectacles.inference import UNSURE, Prediction, Predictor
from spectacles.thresholds import Verdict

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_FILES = 16
MAX_PIXELS = 25_000_000
"""An image: enough for a phone's photo, and some 100 MB of memory for each one that is being decoded."""

PAGE = Path(__file__).with_name("page.html")

log = logging.getLogger("spectacles.api")


class ImagePrediction(BaseModel):
    label: str = Field(
        description=f"The class that the image is taken for; {UNSURE!r} where the verdict says so.",
        examples=["glasses"],
    )
    guess: str = Field(description="The class all the same.", examples=["glasses"])
    confidence: float = Field(description="Calibrated probability of the guess, 0 to 1.", examples=[0.97])
    verdict: Verdict = Field(
        description="unsure: the confidence is lower than the model was asked to have. unfamiliar: the image is unlike "
        "the training photos. Empty: the label stands."
    )
    familiarity: float | None = Field(
        description="Share of the validation photos that are less like the training photos, 0 to 1; null where the "
        "model cannot tell.",
        examples=[0.43],
    )
    probabilities: dict[str, float] = Field(examples=[{"no_glasses": 0.03, "glasses": 0.97}])
    repairs: list[str] = Field(
        description="What had to be decided to read the image; empty for an ordinary one.",
        examples=[["EXIF orientation applied"]],
    )


class RefusedImage(BaseModel):
    error: str = Field(
        description="Why this image has no prediction, and what to send.", examples=["truncated: send ..."]
    )
    status: int = Field(description="HTTP status that the image alone would have had.", examples=[422])


class Envelope(BaseModel):
    model_id: str = Field(examples=["75d94a8611a8d3a1"])
    milliseconds: float = Field(
        description="From the complete upload to the answer, waiting included.", examples=[21.4]
    )
    request_id: str = Field(
        description="As in the X-Request-ID header and in the server's log.",
        examples=["5f0b7a58-4f0c-4a3e-9a55-0d3c5c2f7c11"],
    )


class SinglePrediction(ImagePrediction, Envelope):
    """The answer to one file."""


class PredictionList(Envelope):
    """The answer to several files: one entry a file, in the order sent; a refused file spoils no other."""

    predictions: list[ImagePrediction | RefusedImage]


class Explanation(Envelope):
    """Where in a photo the model looks, in numbers."""

    method: str = Field(examples=["gradcam"])
    label: str = Field(description="The class that is explained.", examples=["glasses"])
    probability: float = Field(description="Calibrated probability of that class, 0 to 1.", examples=[0.97])
    heat: list[list[float]] = Field(
        description="What speaks for the class, a value a cell, rows from the top, over the square that the model sees "
        "of the photo: 0 nothing, 1 most. All 0 where nothing speaks for it.",
        examples=[[[0.0, 0.2], [0.1, 1.0]]],
    )


class ModelCard(BaseModel):
    """What the server answers with. Names no path of the server."""

    model_id: str
    backbone: str
    classes: list[str]
    label_column: str = Field(description="What the labels were called in the training data.")
    preprocessing: dict[str, Any]
    threshold: float | None = Field(
        description="Two classes: probability from which the second is the label. null: the most probable class wins."
    )
    temperature: float = Field(description="Logits are divided by it before the softmax.")
    class_scales: list[float] = Field(description="Factors of the logits after that, one a class; empty: none.")
    class_biases: list[float] = Field(description="Added to the scaled logits, one a class; empty: none.")
    sure_from: float | None = Field(
        description="Confidence below which a label is unsure, above 1: always. null: every label is given."
    )
    familiar_from: float = Field(description="Familiarity below which an image is unfamiliar; 0: none is.")
    metric: str
    metric_value: float = Field(description="Of the validation data.")
    data_fingerprint: str = Field(description="sha256 over the content, labels and splits of the training data.")
    engine: str = Field(description="What runs the network on this machine.", examples=["openvino"])
    versions: dict[str, str] = Field(description="Packages of this server.")


class Status(BaseModel):
    status: str = Field(examples=["ready"])


class Problem(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": {"detail": "The image is refused: truncated. Send ..."}})
    detail: str = Field(description="What is wrong and what to do.")


def load_predictor() -> Predictor:
    """The bundle SPECTACLES_BUNDLE, else the newest run's, on SPECTACLES_DEVICE. UserError where that cannot be."""
    folder = os.environ.get("SPECTACLES_BUNDLE")
    output_dir = Path(os.environ.get("SPECTACLES_OUTPUT_DIR") or "outputs")
    bundle = Path(folder) if folder else run_dir.newest_bundle(output_dir)
    device = runtime.prepare(runtime.resolve_device(os.environ.get("SPECTACLES_DEVICE") or "auto"))
    engine = os.environ.get("SPECTACLES_ENGINE") or "auto"
    if engine not in ("auto", *engines.ENGINES):
        raise UserError(f"SPECTACLES_ENGINE={engine} is unknown: use auto, {', '.join(engines.ENGINES)}.")
    predictor = Predictor(bundle, device, engine=engine)
    # The first pass is several times slower than the others: no person should wait for it.
    predictor.probabilities(np.zeros((1, *predictor.info.preprocessing.shape), dtype=np.uint8))
    return predictor


def model_card(predictor: Predictor) -> ModelCard:
    info = predictor.info
    return ModelCard(
        model_id=predictor.model_id,
        backbone=info.backbone,
        classes=list(info.classes),
        label_column=info.label_column,
        preprocessing=info.preprocessing.to_json(),
        threshold=info.threshold,
        temperature=info.temperature,
        class_scales=list(info.class_scales),
        class_biases=list(info.class_biases),
        sure_from=info.sure_from,
        familiar_from=info.familiar_from,
        metric=info.metric,
        metric_value=info.metric_value,
        data_fingerprint=info.data_fingerprint,
        engine=predictor.engine,
        versions={"spectacles": __version__, **package_versions()},
    )


def answer(prediction: Prediction, classes: tuple[str, ...]) -> ImagePrediction | RefusedImage:
    if prediction.reason:
        status = 415 if prediction.reason == UNKNOWN_FORMAT else 422
        remedy = f"Send a complete image file of at most {MAX_PIXELS // 10**6} million pixels."
        return RefusedImage(error=f"The image is refused: {prediction.reason}. {remedy}", status=status)
    return ImagePrediction(
        label=prediction.answer,
        guess=prediction.label,
        confidence=prediction.confidence,
        verdict=prediction.verdict,
        familiarity=prediction.familiarity,
        probabilities=dict(zip(classes, prediction.probabilities, strict=True)),
        repairs=list(prediction.repairs),
    )


def limit_body(app: ASGIApp, max_bytes: int) -> ASGIApp:
    """Middleware that answers 413 as soon as a body is known to be too large, before anything parses it.

    Counts what arrives, because a chunked body announces no length; an announced one is refused unread.
    """

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        announced = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
        received = 0

        async def counted() -> Message:
            nonlocal received
            if announced.isdecimal() and int(announced) > max_bytes:
                raise _too_large(max_bytes)
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                raise _too_large(max_bytes)
            return message

        await app(scope, counted, send)

    return limited


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"The request is larger than {max_bytes >> 20} MiB: send fewer or smaller images.")


def choose_request_id(given: str) -> str:
    """The caller's own, where it is one that can stand in a log and a header."""
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else str(uuid4())


@contextmanager
def json_log() -> Iterator[None]:
    """One JSON object a line on stdout, whatever the program around the server does with its own logs."""
    handler = logging.StreamHandler(sys.stdout)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


def log_event(event: str, **facts: Any) -> None:
    log.info(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}))


def log_inference(
    request_id: str, milliseconds: float, size: int, outcome: ImagePrediction | RefusedImage, filename: str | None
) -> None:
    """One line an image. File names may tell who is on the photo: they stay out unless SPECTACLES_LOG_FILENAMES=1."""
    name = {"file": filename} if os.environ.get("SPECTACLES_LOG_FILENAMES") == "1" else {}
    if isinstance(outcome, RefusedImage):
        result: dict[str, Any] = {"status": outcome.status, "error": outcome.error}
    else:
        result = {"label": outcome.label, "confidence": outcome.confidence, "verdict": outcome.verdict}
    log_event("inference", request_id=request_id, milliseconds=milliseconds, bytes=size, **name, **result)


def page_headers(page: str) -> dict[str, str]:
    """A policy under which the page can run its own script and style (known by hash) and talk to this server only."""
    sources = {tag: inline_hash(page, tag) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
