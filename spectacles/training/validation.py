"""How good a network is on the validation images, in the metrics that choose the best epoch."""

import numpy as np
import torch
from torch import nn

from spectacles.core import distributed
from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.data.pixel_cache import in_batches
from spectacles.metrics import classification, decisions, multilabel
from spectacles.metrics.calibration import sigmoid, softmax
from spectacles.metrics.calibration_fit import temperature_for
from spectacles.models.linear_probe import log_loss
from spectacles.models.normalization import Normalize
from spectacles.models.torch_device import to_device
from spectacles.training import collectives
from spectacles.training.batches import Examples, StepSettings


@torch.inference_mode()
def validate(classifier: nn.Module, examples: Examples, settings: StepSettings) -> np.ndarray:
    """Logits (N, K) of all examples, in their order, computed in float32 as when serving.

    Raises UserError for logits that are not finite, and Stopped after a batch.
    """
    classifier.eval()
    normalize = Normalize(examples.pixels.preprocessing).to(settings.device)
    share = examples.positions[distributed.rank() :: distributed.world_size()]
    batches = in_batches(share, settings.config.batch_size)
    pictures = examples.pixels.batches(batches)
    logits = []
    for pixels in progress(pictures, "validating", len(batches), unit="batch"):
        logits.append(classifier(normalize(to_device(pixels, settings.device))))
        collectives.check_stop()
    largest = -(-len(examples.positions) // distributed.world_size())
    for _ in range(-(-largest // settings.config.batch_size) - len(batches)):
        collectives.check_stop()  # as often as the other processes
    computed = torch.cat(logits).cpu().numpy() if logits else np.empty((0, settings.num_classes), dtype=np.float32)
    values = collectives.gather(computed, len(examples.positions))
    if not np.isfinite(values).all():
        raise UserError("the model's outputs are no longer finite: lower --lr, or use --mixed_precision off.")
    return values


def validation_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Validation metrics after calibration, as the model would be served, and the uncalibrated `loss`. An undefined
    metric (AUC with one class in the data) counts as 0, its worst value."""
    temperature = temperature_for(logits, labels)
    if labels.ndim == 2:
        probabilities = sigmoid(logits, temperature)
        values = multilabel.multi_label_metrics(labels, probabilities, decisions.decide_labels(probabilities))
    else:
        probabilities = softmax(logits, temperature)
        decided = decisions.decide(probabilities, None)
        values = classification.classification_metrics(labels, probabilities, decided, probabilities.shape[1])
    return {"loss": log_loss(logits, labels)} | {name: value or 0.0 for name, value in values.items()}
