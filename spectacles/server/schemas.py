"""Shapes of the server's answers, as they stand in its OpenAPI page too."""

from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from spectacles import __version__
from spectacles.core.config import EXPLANATIONS
from spectacles.core.environment import package_versions
from spectacles.data.images import UNKNOWN_FORMAT
from spectacles.inference.predictor import Prediction, Predictor
from spectacles.metrics.abstention import AbstainReason
from spectacles.models.bundle import BundleInfo
from spectacles.report.csp import inline_hash
from spectacles.server import middleware, telemetry
from spectacles.server.service import MAX_PIXELS
from spectacles.server.settings import Settings


class ImagePrediction(BaseModel):
    label: str = Field(
        description="The predicted class; several labels joined by |, empty for none of them.", examples=["glasses"]
    )
    labels: list[str] = Field(
        description="The label as a list: one class, or where an image has any number of labels, all of them.",
        examples=[["glasses"]],
    )
    confidence: float = Field(
        description="Calibrated probability of the label, 0 to 1; of several labels that of the least certain one.",
        examples=[0.97],
    )
    abstained: bool = Field(description="Whether the model abstains: its label should not be relied on.")
    abstain_reason: AbstainReason | None = Field(
        description="low_confidence: the confidence is lower than the model was trained to require. "
        "out_of_distribution: the image is unlike the training photos. null: the model does not abstain.",
        examples=[None],
    )
    ood_score: float | None = Field(
        description="Out-of-distribution score: share of the validation photos that are more like the training photos, "
        "0 to 1; null where the model has none.",
        examples=[0.57],
    )
    probabilities: dict[str, float] = Field(examples=[{"no_glasses": 0.03, "glasses": 0.97}])
    conversions: list[str] = Field(
        description="What had to be decided to read the image; empty for an ordinary one.",
        examples=[["EXIF orientation applied"]],
    )


class RejectedImage(BaseModel):
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
    """The answer to several files: one entry a file, in the order sent; a rejected file spoils no other."""

    predictions: list[ImagePrediction | RejectedImage]


class Explanation(Envelope):
    """Where in a photo the model looks, in numbers."""

    method: str = Field(examples=["gradcam"])
    label: str = Field(description="The class that is explained.", examples=["glasses"])
    probability: float = Field(description="Calibrated probability of that class, 0 to 1.", examples=[0.97])
    saliency: list[list[float]] = Field(
        description="How much each cell supports the class, rows from the top, over the square that the model sees "
        "of the photo: 0 not at all, 1 most. All 0 where nothing supports it.",
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
    multi_label: bool = Field(
        description="Whether an image has any number of the classes, each with a probability of its own."
    )
    label_thresholds: list[float] = Field(
        description="Any number of labels: probability from which an image has the label, one each."
    )
    temperature: float = Field(description="Logits are divided by it before the softmax, or the sigmoid.")
    class_scales: list[float] = Field(description="Factors of the logits after that, one a class; empty: none.")
    class_biases: list[float] = Field(description="Added to the scaled logits, one a class; empty: none.")
    confidence_threshold: float | None = Field(
        description="Confidence below which the model abstains; above 1: always. null: it does not for that."
    )
    ood_threshold: float = Field(description="ood_score above which the model abstains; 1: it does not for that.")
    metric: str
    metric_value: float = Field(description="Of the validation data.")
    data_fingerprint: str = Field(description="sha256 over the content, labels and splits of the training data.")
    explanations: list[str] = Field(
        description="Methods that POST /explain knows; the first is its default.", examples=[list(EXPLANATIONS)]
    )
    engine: str = Field(description="What runs the network on this machine.", examples=["openvino"])
    versions: dict[str, str] = Field(description="Packages of this server.")


class Swapped(BaseModel):
    model_id: str = Field(description="Of the model that answers from now on.", examples=["75d94a8611a8d3a1"])


class Status(BaseModel):
    status: str = Field(examples=["ready"])


class Problem(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": {"detail": "The image is rejected: truncated. Send ..."}})
    detail: str = Field(description="What is wrong and what to do.")


Responses = dict[int | str, dict[str, Any]]
"""Of a route: status -> what FastAPI shall say about it."""


def _text(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _problem(description: str, **headers: dict[str, Any]) -> dict[str, Any]:
    return {"model": Problem, "description": description} | ({"headers": headers} if headers else {})


AGAIN = {"Retry-After": {"description": "Seconds after which to come back.", "schema": {"type": "integer"}}}
NOT_READY: Responses = {503: _problem("No bundle is loaded; Retry-After where one soon may be", **AGAIN)}
DENIED: Responses = {
    400: _problem("Another host's name, or a form that cannot be read"),
    401: _problem("The server has keys, and none was sent", **{"WWW-Authenticate": _text("Bearer")}),
    403: _problem("The server has no keys and answers its own machine only"),
}
REJECTIONS: Responses = DENIED | {
    408: _problem("The body did not arrive in time"),
    413: _problem("More than 32 MiB, or more files than may be sent at once"),
    415: _problem("The file is no JPEG, PNG, WebP, BMP, GIF or TIFF"),
    422: _problem("No file, or an empty, damaged or too large image (over 25 million pixels)"),
    429: _problem("More images a second than a client may send", **AGAIN),
    503: _problem("No bundle is loaded, or too much to do", **AGAIN),
}
EXPLAINED: Responses = {
    200: {
        "description": "The overlay; with format=json the numbers.",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        "model": Explanation,
        "headers": {
            "X-Model-ID": _text("Of the model that is explained."),
            "X-Explanation-Method": _text("How it was found out."),
            "X-Explained-Label": _text(
                "The class that is explained; percent-encoded, where it needs to be, as in URLs."
            ),
        },
    }
}
METRICS: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


PLAIN = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
"""What a header can hold and whoever decodes it leaves as it is."""


def explanation_headers(explanation: Explanation) -> dict[str, str]:
    """What a picture of it cannot say."""
    return {
        "X-Model-ID": explanation.model_id,
        "X-Explanation-Method": explanation.method,
        "X-Explained-Label": quote(explanation.label, safe=PLAIN),
    }


KEYS = {"bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}  # fmt: skip


def described(page: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The OpenAPI page as it is true of a server with these settings."""
    page = deepcopy(page)
    if settings.api_keys:
        page["components"]["securitySchemes"] = KEYS
        for path in page["paths"].keys() - set(middleware.OPEN):
            for operation in page["paths"][path].values():
                operation["security"] = [{name: []} for name in KEYS]
    [form] = page["paths"]["/predict"]["post"]["requestBody"]["content"].values()
    if settings.allow_urls:
        form["schema"]["oneOf"] = [{"required": form["schema"].pop("required")}, {"required": ["url"]}]
    else:
        del form["schema"]["properties"]["url"]
    return page


def model_card(predictor: Predictor) -> ModelCard:
    info = predictor.info
    return ModelCard(
        model_id=predictor.model_id,
        backbone=info.backbone,
        classes=list(info.classes),
        label_column=info.label_column,
        preprocessing=info.preprocessing.to_json(),
        threshold=info.threshold,
        multi_label=info.multi_label,
        label_thresholds=list(info.label_thresholds),
        temperature=info.temperature,
        class_scales=list(info.class_scales),
        class_biases=list(info.class_biases),
        confidence_threshold=info.confidence_threshold,
        ood_threshold=info.ood_threshold,
        metric=info.metric,
        metric_value=info.metric_value,
        data_fingerprint=info.data_fingerprint,
        explanations=list(EXPLANATIONS),
        engine=predictor.engine,
        versions={"spectacles": __version__, **package_versions()},
    )


def answer(prediction: Prediction, info: BundleInfo) -> ImagePrediction | RejectedImage:
    if prediction.reason:
        status = 415 if prediction.reason == UNKNOWN_FORMAT else 422
        remedy = f"Send a complete image file of at most {MAX_PIXELS // 10**6} million pixels."
        return RejectedImage(error=f"The image is rejected: {prediction.reason}. {remedy}", status=status)
    return ImagePrediction(
        label=prediction.label,
        labels=info.labels_of(prediction.label),
        confidence=prediction.confidence,
        abstained=prediction.abstained,
        abstain_reason=prediction.abstain_reason,
        ood_score=prediction.ood_score,
        probabilities=dict(zip(info.classes, prediction.probabilities, strict=True)),
        conversions=list(prediction.conversions),
    )


def log_image(request_id: str, milliseconds: float, size: int, outcome: ImagePrediction | RejectedImage) -> None:
    """One line an image, without its name: that may tell who is on the photo."""
    if isinstance(outcome, RejectedImage):
        result: dict[str, Any] = {"status": outcome.status, "error": outcome.error}
    else:
        result = {"label": outcome.label, "confidence": outcome.confidence, "abstain_reason": outcome.abstain_reason}
    telemetry.write("inference", request_id=request_id, milliseconds=milliseconds, bytes=size, **result)


PAGE = Path(__file__).with_name("page.html")


def page_headers(page: str) -> dict[str, str]:
    """A policy under which the page can run its own script and style (known by hash) and talk to this server only."""
    sources = {tag: inline_hash(page, tag) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
