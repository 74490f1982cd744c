"""Records of the server's responses, and how they are made from predictions."""

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
from spectacles.server.limits import MAX_PIXELS


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
        description="How the image was converted to be read; empty for an ordinary one.",
        examples=[["EXIF orientation applied"]],
    )


class RejectedImage(BaseModel):
    error: str = Field(
        description="Why this image has no prediction, and what to send.", examples=["truncated: send ..."]
    )
    status: int = Field(description="HTTP status of a request with this image alone.", examples=[422])


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
    """The response to one file."""


class PredictionList(Envelope):
    """The response to several files: one entry per file, in the order sent; a rejected one does not affect others."""

    predictions: list[ImagePrediction | RejectedImage]


class Explanation(Envelope):
    """Where in a photo the model looks."""

    method: str = Field(examples=["gradcam"])
    label: str = Field(description="The class that is explained.", examples=["glasses"])
    probability: float = Field(description="Calibrated probability of that class, 0 to 1.", examples=[0.97])
    saliency: list[list[float]] = Field(
        description="How much each cell supports the class, rows from the top, over the square that the model sees "
        "of the photo: 0 not at all, 1 most. All 0 where nothing supports it.",
        examples=[[[0.0, 0.2], [0.1, 1.0]]],
    )


class ModelCard(BaseModel):
    """The model that is served. Holds no path of the server."""

    model_id: str
    backbone: str
    classes: list[str]
    positive_class: str | None = Field(
        description="Of two classes the one that `threshold` is about. null: more classes, or any number of labels."
    )
    label_column: str = Field(description="What the labels were called in the training data.")
    preprocessing: dict[str, Any]
    threshold: float | None = Field(
        description="Two classes: probability from which the positive one is the label. null: the more probable one is."
    )
    multi_label: bool = Field(
        description="Whether an image has any number of the classes, each with a probability of its own."
    )
    label_thresholds: list[float] = Field(
        description="Any number of labels: probability from which an image has the label, one each."
    )
    temperature: float = Field(description="Logits are divided by it before the softmax, or the sigmoid.")
    class_scales: list[float] = Field(description="Factors of the logits after that, one per class; empty: none.")
    class_biases: list[float] = Field(description="Added to the scaled logits, one per class; empty: none.")
    class_shares: list[float] = Field(description="The share of each class that the probabilities assume.")
    confidence_threshold: float | None = Field(
        description="Confidence below which the model abstains; above 1: always. null: it does not for that."
    )
    ood_threshold: float = Field(description="ood_score above which the model abstains; 1: it does not for that.")
    metric: str
    metric_value: float = Field(description="Of the validation data.")
    data_fingerprint: str = Field(description="sha256 over the content, labels and splits of the training data.")
    explanations: list[str] = Field(
        description="Methods of POST /explain; the first is the default.", examples=[list(EXPLANATIONS)]
    )
    engine: str = Field(description="What runs the network on this machine.", examples=["openvino"])
    precision: str = Field(description="In which numbers it computes on this machine.", examples=["fp32"])
    versions: dict[str, str] = Field(description="Packages of this server.")


class Swapped(BaseModel):
    model_id: str = Field(description="The model that answers from now on.", examples=["75d94a8611a8d3a1"])


class Status(BaseModel):
    status: str = Field(examples=["ready"])


class Problem(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": {"detail": "The image is rejected: truncated. Send ..."}})
    detail: str = Field(description="What is wrong and what to do.")


UNQUOTED = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
"""Characters that a header can hold and that stay the same when it is decoded."""


def explanation_headers(explanation: Explanation) -> dict[str, str]:
    """The facts that a PNG cannot hold."""
    return {
        "X-Model-ID": explanation.model_id,
        "X-Explanation-Method": explanation.method,
        "X-Explained-Label": quote(explanation.label, safe=UNQUOTED),
    }


def model_card(predictor: Predictor) -> ModelCard:
    info = predictor.info
    return ModelCard(
        model_id=predictor.model_id,
        backbone=info.backbone,
        classes=list(info.classes),
        positive_class=info.positive_class,
        label_column=info.label_column,
        preprocessing=info.preprocessing.to_json(),
        threshold=info.threshold,
        multi_label=info.multi_label,
        label_thresholds=list(info.label_thresholds),
        temperature=info.temperature,
        class_scales=list(info.class_scales),
        class_biases=list(info.class_biases),
        class_shares=list(info.class_shares),
        confidence_threshold=info.confidence_threshold,
        ood_threshold=info.ood_threshold,
        metric=info.metric,
        metric_value=info.metric_value,
        data_fingerprint=info.data_fingerprint,
        explanations=list(EXPLANATIONS),
        engine=predictor.engine,
        precision=predictor.precision,
        versions={"spectacles": __version__, **package_versions()},
    )


def image_result(prediction: Prediction, info: BundleInfo) -> ImagePrediction | RejectedImage:
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
