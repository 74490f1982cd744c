"""What an epoch shows, how a batch is judged, one pass of validation: with no files and no printing."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from spectacles.core import collectives, distributed
from spectacles.core.config import TrainConfig
from spectacles.core.device import derive_seed, to_device
from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.data.pixel_cache import Pixels, in_batches
from spectacles.metrics import classification, decisions, multilabel
from spectacles.metrics.calibration import sigmoid, softmax
from spectacles.metrics.calibration_fit import temperature_for
from spectacles.models.linear_probe import log_loss
from spectacles.training.augmentation import Augmentation, draws


@dataclass(frozen=True)
class StepSettings:
    """What a step needs besides the network and the data."""

    config: TrainConfig
    device: torch.device
    num_classes: int
    class_weights: torch.Tensor | None
    """(K,) float32 on the device: of classes, or of having a label against not having it."""
    multi_label: bool = False


@dataclass(frozen=True)
class Examples:
    """Labelled pictures: places in `pixels`, with their class indices or labels."""

    pixels: Pixels
    positions: np.ndarray
    """(N,) int64."""
    labels: np.ndarray
    """(N,) int64 class indices, or (N, K) int64 of 0 and 1 where an image has any number of labels."""


Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs (B, ...) and class indices (B,) or labels (B, K), on the device."""


def make_optimizer(config: TrainConfig, groups: list[dict[str, object]], device: torch.device) -> torch.optim.Optimizer:
    """Every group keeps its base rate as `base_lr`, which the schedule multiplies."""
    for group in groups:
        group["base_lr"] = group["lr"]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, fused=device.type == "cuda")


def training_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """float32 off CUDA and when switched off; auto prefers bf16, which needs no loss scaling."""
    if device.type != "cuda" or config.mixed_precision == "off":
        return torch.float32
    if config.mixed_precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]


def autocast(settings: StepSettings) -> AbstractContextManager[object]:
    dtype = training_dtype(settings.config, settings.device)
    return torch.autocast(settings.device.type, dtype=dtype, enabled=dtype != torch.float32)


def epoch_order(seed: int, epoch: int, size: int, batch_size: int) -> list[np.ndarray]:
    """All indices once, in batches, in an order that is a function of (seed, epoch).

    A last batch of one is left out: BatchNorm cannot normalise a single value, and another order brings that image in
    the next epoch.
    """
    shuffled = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(size)
    batches = in_batches(shuffled, batch_size)
    alone = batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1
    return batches[:-1] if alone else batches


def augmented_batches(
    examples: Examples, augmentation: Augmentation, settings: StepSettings, epoch: int, size: int, start: int = 0
) -> Iterator[Batch]:
    """One epoch of freshly augmented pictures: which, in what order and how changed depends on (seed, epoch) alone.
    The first `start` batches are left out. Of several processes each gets its share of every batch, maybe none."""
    seed, device = settings.config.seed, settings.device
    rows = draws(seed, epoch, len(examples.labels))
    whole = epoch_order(seed, epoch, len(examples.labels), settings.config.batch_size)[start:]
    batches = [collectives.shard_batch(indices) for indices in whole]
    pictures = examples.pixels.batches(examples.positions[indices] for indices in batches if len(indices))
    for indices in batches:
        images = augmentation(next(pictures), rows[indices], size, device) if len(indices) else torch.empty(0)
        yield images, to_device(examples.labels[indices], device)


def mean_loss(logits: torch.Tensor, targets: torch.Tensor, settings: StepSettings) -> torch.Tensor:
    """Cross-entropy of logits (B, K) and class indices (B,) or shares of classes (B, K); of labels (B, K) of 0 and 1
    (in between in mixed pictures), the binary cross-entropy of each by itself."""
    weights, smoothing = settings.class_weights, settings.config.label_smoothing
    if not settings.multi_label:
        return cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)
    smoothed = targets.float() * (1 - smoothing) + smoothing / 2
    return binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)


@torch.inference_mode()
def validate(classifier: nn.Module, examples: Examples, settings: StepSettings) -> np.ndarray:
    """Logits (N, K) float32 of all examples, in their order.

    In float32, as the model is served. Raises UserError for logits that are not finite.
    """
    classifier.eval()
    preprocessing, size = examples.pixels.preprocessing, settings.config.batch_size
    own = examples.positions[distributed.rank() :: distributed.world_size()]
    batches = in_batches(own, size)
    pictures = examples.pixels.batches(batches)
    logits = []
    for pixels in progress(pictures, "validating", len(batches), unit="batch"):
        logits.append(classifier(preprocessing.normalize(to_device(pixels, settings.device))))
    seen = torch.cat(logits).cpu().numpy() if logits else np.empty((0, settings.num_classes), dtype=np.float32)
    values = collectives.gather(seen, len(examples.positions), settings.device)
    if not np.isfinite(values).all():
        raise UserError("the model's outputs are no longer finite: lower --lr, or use --mixed_precision off.")
    return values


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(K,) float64. Of classes (N,): N / (K * N_k), as scikit-learn's 'balanced'; a class without images weighs 0. Of
    labels (N, K): images without the label for each one with it."""
    if labels.ndim == 2:
        with_label = labels.sum(axis=0)
        return np.asarray((len(labels) - with_label) / np.maximum(with_label, 1))
    counts = np.bincount(labels, minlength=num_classes)
    return np.divide(len(labels), num_classes * counts, out=np.zeros(num_classes), where=counts > 0)


def validation_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Validation metrics as they would be served, calibrated, and the `loss` as it is. A metric that is undefined (AUC
    with one class in the data) counts as 0, its worst."""
    temperature = temperature_for(logits, labels)
    if labels.ndim == 2:
        probabilities = sigmoid(logits, temperature)
        values = multilabel.multi_label_metrics(labels, probabilities, decisions.decide_labels(probabilities))
    else:
        probabilities = softmax(logits, temperature)
        decided = decisions.decide(probabilities, None)
        values = classification.classification_metrics(labels, probabilities, decided, probabilities.shape[1])
    return {"loss": log_loss(logits, labels)} | {name: value or 0.0 for name, value in values.items()}
