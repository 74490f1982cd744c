"""Gradient descent through one epoch, step by step: it can stop after any step and resume as if it had not."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, log_softmax

from spectacles.core import distributed, signals
from spectacles.core.config import TrainConfig
from spectacles.core.device import derive_seed
from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.models.depthwise import fast_gradients
from spectacles.models.torch_device import tf32_allowed
from spectacles.training import collectives, epoch_progress
from spectacles.training.batches import Batch, StepSettings
from spectacles.training.epoch_progress import LossReader, Position, StepOutcome

log = logging.getLogger("spectacles")

TEACHER_WEIGHT = 0.9
"""Of the distance from a teacher; the labels have the rest."""


@dataclass(frozen=True)
class Learner:
    """What the steps of a phase update."""

    network: nn.Module
    """In training mode; with several processes as `collectives.data_parallel` returns it."""
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
    loss_share: Callable[[int, bool], float] = lambda step, mixed: 1.0
    """(step, whether its images are mixed) -> `batches.loss_share` of its batch."""


@dataclass(frozen=True)
class Hooks:
    """What else happens after a step."""

    after_step: Callable[[], None] = lambda: None
    save_is_due: Callable[[], bool] = lambda: False
    save: Callable[[], None] = lambda: None
    """Called only where all losses are read and finite."""


def train_epoch(
    learner: Learner, batches: Iterable[Batch], plan: EpochPlan, position: Position, hooks: Hooks | None = None
) -> float:
    """Trains on the rest of an epoch, the `batches` from `position.step` on, and returns the mean loss of the epoch.

    `position` is updated before the hooks are called. Raises NotFinite, and Stopped after a step.
    """
    hooks, mixup = hooks or Hooks(), _mixup(learner.settings)
    every = epoch_progress.steps_between_readings(learner.settings.device)
    reader = LossReader(position, every, gradients_may_overflow=learner.scaler.is_enabled())
    shown = progress(batches, f"epoch {plan.number}", len(plan.batch_sizes), unit="batch", initial=position.step)
    for step, batch in enumerate(shown, position.step):
        for group in learner.optimizer.param_groups:
            group["lr"] = group["base_lr"] * plan.lr_factor(step)
        mixed = mixup is not None and plan.batch_sizes[step] % 2 == 0  # timm pairs the batch with its own reverse
        if mixup is not None and mixed:
            np.random.seed(derive_seed(learner.settings.config.seed, "mix", plan.number, step) % 2**32)
            batch = Batch(*mixup(batch.inputs, batch.targets))
        _step(learner, batch, plan, reader, plan.loss_share(step, mixed))
        position.step = step + 1
        hooks.after_step()
        stop, save = collectives.any_process(signals.stop_requested(), hooks.save_is_due())
        if stop or save:
            reader.read()
        if save:
            hooks.save()
        if stop:
            signals.request_stop()
            signals.check()
    reader.read()
    return position.loss_sum / position.images


def _step(learner: Learner, batch: Batch, plan: EpochPlan, reader: LossReader, loss_share: float) -> None:
    """One step of the optimiser."""
    config, scaler, position = learner.settings.config, learner.scaler, reader.position
    losses = None
    while losses is None:
        # Dropout is a function of the step, so that resuming is exact.
        torch.manual_seed(derive_seed(config.seed, "step", plan.number, position.step, distributed.rank()))
        losses = _gradients_within_memory(learner, batch, position, loss_share)
    scaler.unscale_(learner.optimizer)
    norm = nn.utils.clip_grad_norm_(learner.trained_parameters(), config.clip_grad_norm or math.inf)
    reader.add(StepOutcome(position.step, plan.batch_sizes[position.step], losses, norm))
    scaler.step(learner.optimizer)
    scaler.update()


def _gradients_within_memory(
    learner: Learner, batch: Batch, position: Position, loss_share: float
) -> list[torch.Tensor] | None:
    """The losses; None where the micro-batches of the first step were too large for the memory and have been halved."""
    try:
        return _gradients(learner, batch, position.micro_batches, loss_share)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        if position.step or 2 * position.micro_batches > len(batch.inputs) or distributed.world_size() > 1:
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


def _gradients(learner: Learner, batch: Batch, micro_batches: int, loss_share: float) -> list[torch.Tensor]:
    """Accumulates the gradients of the batch's mean loss, times `loss_share`, and returns that of each micro-batch."""
    learner.optimizer.zero_grad(set_to_none=True)
    losses = []
    parts = _split(batch, learner.settings, micro_batches, loss_share)
    for number, (part, share) in enumerate(parts, 1):
        exchange = nullcontext() if number == len(parts) else collectives.without_exchange(learner.network)
        with exchange, tf32_allowed():
            with autocast(learner.settings), fast_gradients(learner.settings.device):
                loss = _loss(learner.network(part.inputs), part, learner.settings)
            loss = loss if share is None else loss * share
            learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return losses


def _split(
    batch: Batch, settings: StepSettings, micro_batches: int, loss_share: float
) -> list[tuple[Batch, torch.Tensor | float | None]]:
    """Each micro-batch and its share of the mean loss, None for 1. torch weighs the mean by the class weights.
    BatchNorm that learns gets at least two images."""
    fewest = 2 if settings.config.batch_norm == "train" else 1
    count = max(1, min(micro_batches, len(batch.inputs) // fewest))
    if count == 1:
        return [(batch, None if loss_share == 1 else loss_share)]
    of_classes = _class_weights(batch.targets, settings)
    columns = [[None] * count if tensor is None else tensor.tensor_split(count) for tensor in batch]
    shares = [weight.sum() / of_classes.sum() * loss_share for weight in of_classes.tensor_split(count)]
    return list(zip((Batch(*part) for part in zip(*columns, strict=True)), shares, strict=True))


def _class_weights(targets: torch.Tensor, settings: StepSettings) -> torch.Tensor:
    """(B,): the weight of each image's class in torch's mean."""
    weights = settings.class_weights
    if weights is None or targets.ndim == 2:
        return torch.ones(len(targets), device=targets.device)
    return weights[targets]


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
    fused = device.type in ("cuda", "cpu")  # one pass; and a step with a loss scaler does not wait for the GPU either
    for group in groups:
        group["base_lr"] = group["lr"]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, fused=fused)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, torch.Tensor]]) -> None:
    """Loads what the optimiser remembered of each parameter, by number. The fused ones pass over a parameter and its
    moments as they lie in memory, so those get the parameter's layout, which files do not keep."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    laid_out = {
        number: {
            name: torch.empty_like(parameters[number]).copy_(value) if value.ndim else value
            for name, value in values.items()
        }
        for number, values in state.items()
    }
    optimizer.load_state_dict({"state": laid_out, "param_groups": optimizer.state_dict()["param_groups"]})


def training_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """float32 on other devices than CUDA and when switched off; auto prefers bf16, which needs no loss scaling, where
    the card computes in it: older ones emulate it, slower than float32."""
    if device.type != "cuda" or config.mixed_precision == "off":
        return torch.float32
    if config.mixed_precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]


def autocast(settings: StepSettings) -> AbstractContextManager[object]:
    dtype = training_dtype(settings.config, settings.device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(settings.device.type, dtype=dtype)


def _loss(logits: torch.Tensor, batch: Batch, settings: StepSettings) -> torch.Tensor:
    loss = mean_loss(logits, batch.targets, settings, batch.weights)
    if batch.teacher_logits is None:
        return loss
    distance = distillation_loss(
        logits, batch.teacher_logits, settings.config.teacher_temperature, settings.multi_label
    )
    return torch.lerp(loss, distance, TEACHER_WEIGHT)


def mean_loss(
    logits: torch.Tensor, targets: torch.Tensor, settings: StepSettings, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of logits (B, K) with class indices (B,) or class probabilities (B, K); with several labels per
    image, the binary cross-entropy with labels (B, K) of 0 and 1 (in between for mixed images). `weights` (B,) multiply
    the losses of the images."""
    of_classes, smoothing = settings.class_weights, settings.config.label_smoothing
    reduction = "mean" if weights is None else "none"
    if settings.multi_label:
        smoothed = targets.float() * (1 - smoothing) + smoothing / 2
        losses = binary_cross_entropy_with_logits(logits, smoothed, pos_weight=of_classes, reduction=reduction)
        return losses if weights is None else (losses.mean(dim=1) * weights).mean()
    losses = cross_entropy(logits, targets, weight=of_classes, label_smoothing=smoothing, reduction=reduction)
    return losses if weights is None else (losses * weights).sum() / _class_weights(targets, settings).sum()


def distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, multi_label: bool
) -> torch.Tensor:
    """Mean over the images of the Kullback-Leibler divergence of the student's from the teacher's probabilities, both
    softened by `temperature` T, times T squared, so that gradients keep their size; of independent labels the mean.

    Logits (B, K) each."""
    student, teacher = logits.float() / temperature, teacher_logits / temperature
    if multi_label:
        target = teacher.sigmoid()
        cross, entropy = (binary_cross_entropy_with_logits(each, target) for each in (student, teacher))
        return (cross - entropy) * temperature**2
    divergence = kl_div(log_softmax(student, 1), log_softmax(teacher, 1), reduction="batchmean", log_target=True)
    return divergence * temperature**2


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(K,) float64. Of class indices (N,): N / (K * N_k), as scikit-learn's 'balanced'; a class without images weighs
    0. Of labels (N, K): the number of images without the label per image with it."""
    if labels.ndim == 2:
        with_label = labels.sum(axis=0)
        return np.asarray((len(labels) - with_label) / np.maximum(with_label, 1))
    counts = np.bincount(labels, minlength=num_classes)
    return np.divide(len(labels), num_classes * counts, out=np.zeros(num_classes), where=counts > 0)
