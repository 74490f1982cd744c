"""One epoch of training, one pass of validation: the arithmetic, with no files and no printing."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from spectacles import metrics
from spectacles.calibration import softmax
from spectacles.classifier import Classifier
from spectacles.config import TrainConfig
from spectacles.errors import UserError
from spectacles.loading import Sample
from spectacles.preprocess import Preprocessing
from spectacles.progress import progress
from spectacles.runtime import derive_seed


@dataclass(frozen=True)
class Settings:
    """What a step needs besides the network and the data."""

    config: TrainConfig
    device: torch.device
    num_classes: int
    class_weights: torch.Tensor | None
    """(K,) float32 on the device."""


def make_optimizer(config: TrainConfig, groups: list[dict[str, object]], device: torch.device) -> torch.optim.Optimizer:
    """Every group keeps its base rate as `base_lr`, which the schedule multiplies."""
    for group in groups:
        group["base_lr"] = group["lr"]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, fused=device.type == "cuda")


def precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """float32 off CUDA and when switched off; auto prefers bf16, which needs no loss scaling."""
    if device.type != "cuda" or config.mixed_precision == "off":
        return torch.float32
    if config.mixed_precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]


def autocast(settings: Settings) -> AbstractContextManager[object]:
    dtype = precision(settings.config, settings.device)
    return torch.autocast(settings.device.type, dtype=dtype, enabled=dtype != torch.float32)


def train_epoch(
    classifier: Classifier,
    loader: DataLoader[Sample],
    settings: Settings,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rate: Callable[[int], float],
    epoch: int,
) -> float:
    """One pass over `loader`; `rate(step)` multiplies the base learning rates. Returns the mean loss.

    The classifier must already be in the phase's training mode. Raises UserError when the loss is not finite.
    """
    config, device = settings.config, settings.device
    torch.manual_seed(
        derive_seed(config.seed, "epoch", epoch)
    )  # dropout: a function of the epoch, so resuming is exact
    mix = _mixer(config, settings.num_classes)
    total, seen = torch.zeros((), device=device), 0
    for step, (images, labels, _) in enumerate(progress(loader, f"epoch {epoch}", len(loader), unit="batch")):
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate(step)
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        targets = labels.to(device, non_blocking=True)
        if mix is not None and len(images) % 2 == 0:  # timm pairs the batch with its own reverse
            np.random.seed(derive_seed(config.seed, "mix", epoch, step) % 2**32)
            images, targets = mix(images, targets)
        with autocast(settings):
            loss = cross_entropy(
                classifier(images), targets, weight=settings.class_weights, label_smoothing=config.label_smoothing
            )
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if config.clip_grad_norm:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(classifier.parameters(), config.clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        total += loss.detach() * len(images)  # summed on the device: reading it here would wait for the GPU each step
        seen += len(images)
    mean = float(total) / seen
    if not math.isfinite(mean):
        raise UserError(f"the loss became {mean} in epoch {epoch}: lower --lr, or use --mixed_precision off.")
    return mean


def _mixer(config: TrainConfig, num_classes: int) -> Mixup | None:
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(  # type: ignore[no-untyped-call]
        config.mixup, config.cutmix, label_smoothing=0.0, num_classes=num_classes
    )


@torch.inference_mode()
def validate(classifier: Classifier, loader: DataLoader[Sample], settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """(logits (N, K) float32, labels (N,)) of the whole loader, in its order.

    In float32, as the model is served. Raises UserError for logits that are not finite.
    """
    classifier.eval()
    logits, labels = [], []
    for images, targets, _ in progress(loader, "validating", len(loader), unit="batch"):
        images = images.to(settings.device, memory_format=torch.channels_last, non_blocking=True)
        logits.append(classifier(images))
        labels.append(targets)
    values = torch.cat(logits).cpu().numpy()
    if not np.isfinite(values).all():
        raise UserError("the model's outputs are no longer finite: lower --lr, or use --mixed_precision off.")
    return values, torch.cat(labels).numpy()


def balanced_weights(labels: list[int], num_classes: int) -> torch.Tensor:
    """(K,) N / (K * N_k), as scikit-learn's 'balanced'; a class without images weighs 0."""
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.divide(len(labels), num_classes * counts, out=np.zeros(num_classes), where=counts > 0)
    return torch.tensor(weights, dtype=torch.float32)


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Validation metrics; one that is undefined (AUC with one class in the data) counts as 0, its worst."""
    probabilities = softmax(logits)
    values = metrics.classification_metrics(
        labels, probabilities, metrics.decide(probabilities, None), probabilities.shape[1]
    )
    return {name: 0.0 if value is None else value for name, value in values.items()}


def estimate_seconds(
    classifier: Classifier, settings: Settings, preprocessing: Preprocessing, images: int, fine_tune: bool
) -> float:
    """Seconds an epoch over `images` will take, from two small steps on a copy; decoding is not counted."""
    trial = copy.deepcopy(classifier).eval()  # evaluation mode: timing must not move BatchNorm statistics
    trial.backbone.requires_grad_(fine_tune)
    batch = min(8, settings.config.batch_size)
    size = preprocessing.image_size
    inputs = torch.zeros(batch, preprocessing.in_chans, size, size, device=settings.device)
    inputs = inputs.to(memory_format=torch.channels_last)
    for _ in range(2):  # the first step also allocates and picks kernels; the second is the one that counts
        started = time.monotonic()
        with autocast(settings):
            loss = trial(inputs).float().square().mean()
        loss.backward()
        loss.detach().item()  # waits for the device
    return (time.monotonic() - started) * images / batch
