"""How far an epoch has got, and the losses of its steps, which are read from a GPU some steps at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from spectacles.training import collectives

READ_EVERY = 16
"""Steps whose losses stay on a GPU before they are read: reading waits until the GPU has computed them, and then the
GPU waits for its next step."""


def steps_between_readings(device: torch.device) -> int:
    """On the CPU, where nothing runs ahead, each step is read at once."""
    return 1 if device.type == "cpu" else READ_EVERY


class NotFinite(Exception):
    """A loss or its gradients are not finite. On the CPU the weights are still those before the step; on a GPU they may
    have followed it for up to READ_EVERY steps, and are not saved."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(what)
        self.step = step
        """0-based, within the epoch."""


@dataclass
class Position:
    """How far an epoch has got. Nothing else is needed to resume it: all randomness of a step is a function of
    (seed, epoch, step)."""

    step: int = 0
    """Number of finished steps."""
    loss_sum: float = 0.0
    """Over all images of the steps that were read."""
    images: int = 0
    micro_batches: int = 1
    """That each batch is split into."""


@dataclass(frozen=True)
class StepOutcome:
    """On the device."""

    step: int
    images: int
    """In the batch, over all processes."""
    losses: Sequence[torch.Tensor]
    """Of each micro-batch; their sum is the loss of this process's part of the batch."""
    gradient_norm: torch.Tensor


@dataclass
class LossReader:
    """Collects the outcomes of steps, and adds them to the epoch's position when it reads them."""

    position: Position
    every: int
    """Steps."""
    gradients_may_overflow: bool
    """Scaled gradients may: the scaler skips such a step and lowers its scale."""
    unread: list[StepOutcome] = field(default_factory=list)

    def add(self, outcome: StepOutcome) -> None:
        """Raises NotFinite, as `read`."""
        self.unread.append(outcome)
        if len(self.unread) >= self.every:
            self.read()

    def read(self) -> None:
        """Waits for the device. With several processes all must call it after the same step. Raises NotFinite for the
        first step whose loss or, unless they may overflow, gradients are not finite."""
        if not self.unread:
            return
        values = iter(torch.stack([v for each in self.unread for v in (*each.losses, each.gradient_norm)]).tolist())
        losses, norms = [], []
        for each in self.unread:
            losses.append(sum(next(values) for _ in each.losses))
            norms.append(next(values))
        for each, loss, norm in zip(self.unread, collectives.mean(losses), norms, strict=True):
            if not math.isfinite(loss):
                raise NotFinite(f"the loss became {loss:g}", each.step)
            if not self.gradients_may_overflow and not math.isfinite(norm):
                raise NotFinite("the gradients are not finite", each.step)
            self.position.loss_sum += loss * each.images
            self.position.images += each.images
        self.unread.clear()
