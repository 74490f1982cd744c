"""Gradient descent through one epoch, step by step: it can stop after any step and go on as if it had not."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import nn

from spectacles.core import collectives, distributed, signals
from spectacles.core.device import derive_seed
from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.training.batches import Batch, StepSettings, autocast, mean_loss

log = logging.getLogger("spectacles")


class NotFinite(Exception):
    """A loss or its gradients are no numbers any more; the weights are still those before the step."""


@dataclass
class Position:
    """How far an epoch has got. Nothing else needs to be known to go on: all randomness of a step is a function of
    (seed, epoch, step)."""

    step: int = 0
    """Finished ones."""
    total: float = 0.0
    """Losses of all pictures so far."""
    seen: int = 0
    pieces: int = 1
    """That a batch is computed in."""


def train_epoch(
    network: nn.Module,
    batches: Iterable[Batch],
    settings: StepSettings,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rate: Callable[[int], float],
    epoch: int,
    sizes: Sequence[int],
    position: Position,
    after_step: Callable[[], None],
) -> float:
    """The rest of an epoch, `batches` of (inputs, labels) from `position.step` on; `sizes` are those of all batches of
    the epoch, of all processes together; `rate(step)` multiplies the base learning rates. `position` is moved on before
    each call of `after_step`. The mean loss.

    The network must already be in its training mode. Raises NotFinite.
    """
    seed, mix = settings.config.seed, _mixer(settings)
    shown = progress(batches, f"epoch {epoch}", len(sizes), unit="batch", initial=position.step)
    for step, (inputs, targets) in enumerate(shown, position.step):
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate(step)
        if mix is not None and sizes[step] % 2 == 0 and len(inputs):  # timm pairs the batch with its own reverse
            np.random.seed(derive_seed(seed, "mix", epoch, step) % 2**32)
            inputs, targets = mix(inputs, targets)
        loss = _learn(network, (inputs, targets), settings, optimizer, scaler, epoch, position)
        position.step, position.total = step + 1, position.total + loss * sizes[step]
        position.seen += sizes[step]
        after_step()
    return position.total / position.seen


def _learn(
    network: nn.Module,
    batch: Batch,
    settings: StepSettings,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    epoch: int,
    position: Position,
) -> float:
    """One step; the loss before it."""
    loss = None
    while loss is None:
        # Dropout: a function of the step, so resuming is exact.
        torch.manual_seed(derive_seed(settings.config.seed, "step", epoch, position.step, distributed.rank()))
        loss = _fitting_gradients(network, batch, settings, optimizer, scaler, position)
    learning = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if distributed.world_size() > 1:
        loss = _agreed(learning, batch, settings, loss)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(learning, settings.config.clip_grad_norm or math.inf)
    # Scaled gradients may overflow; the scaler leaves such a step out and scales less.
    if not math.isfinite(loss) or not (scaler.is_enabled() or math.isfinite(norm)):
        raise NotFinite(f"the loss became {loss:g}" if not math.isfinite(loss) else "the gradients are not finite")
    scaler.step(optimizer)
    scaler.update()
    return loss


def _agreed(learning: list[nn.Parameter], batch: Batch, settings: StepSettings, loss: float) -> float:
    """Makes the gradients those of the mean loss of all processes' parts, which is returned. Whoever was asked to stop
    tells the others, so that all stop after the same step."""
    weight = float(_weights(batch[1], settings).sum())
    gradients = []
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad.mul_(weight))
    total, weights, asked = collectives.all_reduce_sum(gradients, [loss * weight, weight, float(signals.asked())])
    for gradient in gradients:
        gradient.div_(weights)
    if asked:
        signals.join_in()
    return total / weights


def _fitting_gradients(
    network: nn.Module,
    batch: Batch,
    settings: StepSettings,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    position: Position,
) -> float | None:
    """The loss; None where the memory was too small for the pieces of the first step, which are halved then."""
    try:
        return _gradients(network, batch, settings, optimizer, scaler, position.pieces)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        if position.step or 2 * position.pieces > len(batch[0]) or distributed.world_size() > 1:
            raise UserError(
                f"out of memory: use --grad_accum_steps {2 * position.pieces}, or lower --batch_size or --image_size."
            ) from error
    # Only here: what the exception holds on to is free again.
    optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    position.pieces *= 2
    log.info("  out of memory: each batch is computed in %d pieces from now on, and learnt from as a whole",
             position.pieces)  # fmt: skip
    return None


def _out_of_memory(error: Exception) -> bool:
    """The CPU's allocator has no exception of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _gradients(
    network: nn.Module,
    batch: Batch,
    settings: StepSettings,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    pieces: int,
) -> float:
    """Of the whole batch's mean loss, which is returned, summed over its pieces."""
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    if not len(batch[0]):  # another process has all of it
        return total
    for inputs, targets, share in _pieces(batch, settings, pieces):
        with autocast(settings):
            loss = mean_loss(network(inputs), targets, settings)
        loss = loss if share == 1 else loss * share
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _pieces(batch: Batch, settings: StepSettings, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """(inputs, targets, share of the mean loss) of each part. Of classes, torch weighs a mean by the class weights."""
    inputs, targets = batch
    count = min(count, len(inputs))
    whole = _weights(targets, settings)
    for part, wanted, weight in zip(*(each.tensor_split(count) for each in (inputs, targets, whole)), strict=True):
        yield part, wanted, float(weight.sum() / whole.sum()) if count > 1 else 1.0


def _weights(targets: torch.Tensor, settings: StepSettings) -> torch.Tensor:
    """(B,): what each picture counts for in torch's mean."""
    weights = settings.class_weights
    return weights[targets] if weights is not None and targets.ndim == 1 else torch.ones(len(targets))


def _mixer(settings: StepSettings) -> Mixup | None:
    config = settings.config
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(  # type: ignore[no-untyped-call]
        config.mixup, config.cutmix, label_smoothing=0.0, num_classes=settings.num_classes,
        multi_label=settings.multi_label,
    )  # fmt: skip
