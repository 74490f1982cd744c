"""Gradient descent through one epoch, step by step: it can stop after any step and resume as if it had not."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from spectacles.core import collectives, distributed, signals
from spectacles.core.config import TrainConfig
from spectacles.core.device import derive_seed
from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.training.batches import Batch, StepSettings

log = logging.getLogger("spectacles")


class NotFinite(Exception):
    """A loss or its gradients are not finite; the weights are still those before the step."""


@dataclass(frozen=True)
class Learner:
    """What the steps of a phase update."""

    network: nn.Module
    """In training mode."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: StepSettings

    def trained_parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]


@dataclass(frozen=True)
class EpochPlan:
    number: int
    """1-based, counted over both phases."""
    batch_sizes: Sequence[int]
    """Of every batch of the epoch, summed over all processes."""
    lr_factor: Callable[[int], float]
    """Step -> multiplier of the base learning rates."""


@dataclass
class Position:
    """How far an epoch has got. Nothing else is needed to resume it: all randomness of a step is a function of
    (seed, epoch, step)."""

    step: int = 0
    """Number of finished steps."""
    loss_sum: float = 0.0
    """Over all images so far."""
    images: int = 0
    micro_batches: int = 1
    """That each batch is split into."""


def train_epoch(
    learner: Learner,
    batches: Iterable[Batch],
    plan: EpochPlan,
    position: Position,
    after_step: Callable[[], None],
) -> float:
    """Trains on the rest of an epoch, the `batches` from `position.step` on, and returns the mean loss of the epoch.

    `position` is updated before each call of `after_step`. Raises NotFinite.
    """
    seed, mixup = learner.settings.config.seed, _mixup(learner.settings)
    shown = progress(batches, f"epoch {plan.number}", len(plan.batch_sizes), unit="batch", initial=position.step)
    for step, (inputs, targets) in enumerate(shown, position.step):
        size = plan.batch_sizes[step]
        for group in learner.optimizer.param_groups:
            group["lr"] = group["base_lr"] * plan.lr_factor(step)
        if mixup is not None and size % 2 == 0 and len(inputs):  # timm pairs the batch with its own reverse
            np.random.seed(derive_seed(seed, "mix", plan.number, step) % 2**32)
            inputs, targets = mixup(inputs, targets)
        loss = _step(learner, (inputs, targets), plan.number, position)
        position.step = step + 1
        position.loss_sum += loss * size
        position.images += size
        after_step()
    return position.loss_sum / position.images


def _step(learner: Learner, batch: Batch, epoch: int, position: Position) -> float:
    """One step of the optimiser; returns the loss before it."""
    config, scaler = learner.settings.config, learner.scaler
    loss = None
    while loss is None:
        # Dropout is a function of the step, so that resuming is exact.
        torch.manual_seed(derive_seed(config.seed, "step", epoch, position.step, distributed.rank()))
        loss = _gradients_within_memory(learner, batch, position)
    parameters = learner.trained_parameters()
    if distributed.world_size() > 1:
        loss = _average_over_processes(parameters, batch, learner.settings, loss)
    scaler.unscale_(learner.optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_grad_norm or math.inf)
    # Scaled gradients may overflow; the scaler skips such a step and lowers its scale.
    if not math.isfinite(loss) or not (scaler.is_enabled() or math.isfinite(norm)):
        raise NotFinite(f"the loss became {loss:g}" if not math.isfinite(loss) else "the gradients are not finite")
    scaler.step(learner.optimizer)
    scaler.update()
    return loss


def _average_over_processes(parameters: list[nn.Parameter], batch: Batch, settings: StepSettings, loss: float) -> float:
    """Makes the gradients those of the mean loss over the batches of all processes, and returns that loss. A request
    to stop that one process has received reaches all of them, so that they stop after the same step."""
    weight = float(_weights(batch[1], settings).sum())
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad.mul_(weight))
    requested = float(signals.stop_requested())
    loss_sum, weights, requests = collectives.all_reduce_sum(gradients, [loss * weight, weight, requested])
    for gradient in gradients:
        gradient.div_(weights)
    if requests:
        signals.request_stop()
    return loss_sum / weights


def _gradients_within_memory(learner: Learner, batch: Batch, position: Position) -> float | None:
    """The loss; None where the micro-batches of the first step were too large for the memory and have been halved."""
    try:
        return _gradients(learner, batch, position.micro_batches)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        if position.step or 2 * position.micro_batches > len(batch[0]) or distributed.world_size() > 1:
            raise UserError(
                f"out of memory: use --grad_accum_steps {2 * position.micro_batches}, or lower --batch_size or "
                "--image_size."
            ) from error
    # Not within the except clause: there the exception would still hold on to memory.
    learner.optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    position.micro_batches *= 2
    log.info("  out of memory: each batch is split into %d micro-batches from now on, and their gradients are summed",
             position.micro_batches)  # fmt: skip
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """The CPU's allocator has no exception type of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _gradients(learner: Learner, batch: Batch, micro_batches: int) -> float:
    """Accumulates the gradients of the batch's mean loss, and returns that loss."""
    learner.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    if not len(batch[0]):  # the other processes have all of it
        return total
    for inputs, targets, share in _split(batch, learner.settings, micro_batches):
        with autocast(learner.settings):
            loss = mean_loss(learner.network(inputs), targets, learner.settings)
        loss = loss if share == 1 else loss * share
        learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _split(
    batch: Batch, settings: StepSettings, micro_batches: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """(inputs, targets, share of the mean loss) of each micro-batch. torch weighs the mean by the class weights."""
    count = min(micro_batches, len(batch[0]))
    weights = _weights(batch[1], settings)
    parts = zip(*(tensor.tensor_split(count) for tensor in (*batch, weights)), strict=True)
    for inputs, targets, weight in parts:
        yield inputs, targets, float(weight.sum() / weights.sum()) if count > 1 else 1.0


def _weights(targets: torch.Tensor, settings: StepSettings) -> torch.Tensor:
    """(B,): the weight of each image in torch's mean."""
    weights = settings.class_weights
    return weights[targets] if weights is not None and targets.ndim == 1 else torch.ones(len(targets))


def _mixup(settings: StepSettings) -> Mixup | None:
    config = settings.config
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(  # type: ignore[no-untyped-call]
        config.mixup, config.cutmix, label_smoothing=0.0, num_classes=settings.num_classes,
        multi_label=settings.multi_label,
    )  # fmt: skip


def make_optimizer(config: TrainConfig, groups: list[dict[str, object]], device: torch.device) -> torch.optim.Optimizer:
    """Each group keeps its base learning rate as `base_lr`, which the schedule multiplies."""
    for group in groups:
        group["base_lr"] = group["lr"]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, fused=device.type == "cuda")


def training_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """float32 on other devices than CUDA and when switched off; auto prefers bf16, which needs no loss scaling."""
    if device.type != "cuda" or config.mixed_precision == "off":
        return torch.float32
    if config.mixed_precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]


def autocast(settings: StepSettings) -> AbstractContextManager[object]:
    dtype = training_dtype(settings.config, settings.device)
    return torch.autocast(settings.device.type, dtype=dtype, enabled=dtype != torch.float32)


def mean_loss(logits: torch.Tensor, targets: torch.Tensor, settings: StepSettings) -> torch.Tensor:
    """Cross-entropy of logits (B, K) with class indices (B,) or class probabilities (B, K); with several labels per
    image, the binary cross-entropy with labels (B, K) of 0 and 1 (in between for mixed images)."""
    weights = settings.class_weights
    smoothing = settings.config.label_smoothing
    if not settings.multi_label:
        return cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)
    smoothed = targets.float() * (1 - smoothing) + smoothing / 2
    return binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(K,) float64. Of class indices (N,): N / (K * N_k), as scikit-learn's 'balanced'; a class without images weighs
    0. Of labels (N, K): the number of images without the label per image with it."""
    if labels.ndim == 2:
        with_label = labels.sum(axis=0)
        return np.asarray((len(labels) - with_label) / np.maximum(with_label, 1))
    counts = np.bincount(labels, minlength=num_classes)
    return np.divide(len(labels), num_classes * counts, out=np.zeros(num_classes), where=counts > 0)
