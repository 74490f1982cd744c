"""What training looks at: labelled images, and the batches of an epoch in their order, freshly augmented."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from spectacles.core import distributed
from spectacles.core.config import TrainConfig
from spectacles.core.device import derive_seed
from spectacles.data.pixel_cache import Pixels, in_batches
from spectacles.models.torch_device import to_device
from spectacles.training import collectives, sampling
from spectacles.training.augmentation import Augmentation, draws


@dataclass(frozen=True)
class StepSettings:
    """What a step needs besides the network and the data."""

    config: TrainConfig
    device: torch.device
    num_classes: int
    class_weights: torch.Tensor | None
    """(K,) float32 on the device: one weight per class, or with several labels per image of having each label."""
    multi_label: bool = False


@dataclass(frozen=True)
class Examples:
    """Labelled images: positions in `pixels`, with their class indices or labels."""

    pixels: Pixels
    positions: np.ndarray
    """(N,) int64."""
    labels: np.ndarray
    """(N,) int64 class indices, or (N, K) int64 of 0 and 1 where an image may have several labels."""
    inclusion: np.ndarray | None = None
    """(N,) float64: how probably an epoch takes each image. None: it takes all."""
    labelled: np.ndarray | None = None
    """(N,) bool; the labels of the others mean nothing. None: all are."""


@dataclass(frozen=True)
class TeacherView:
    """One view of every image, and what a teacher answers to it."""

    rows: np.ndarray
    """(N, len(COLUMNS)): the view, as `Augmentation` takes it."""
    logits: np.ndarray
    """(N, K) float32."""


class Batch(NamedTuple):
    """On the device."""

    inputs: torch.Tensor
    """(B, ...)."""
    targets: torch.Tensor
    """(B,) class indices or (B, K) labels."""
    weights: torch.Tensor | None = None
    """(B,) float32, of the images' losses. None: all weigh the same."""
    teacher_logits: torch.Tensor | None = None
    """(B, K) float32: logits of a teacher for the same inputs."""


def epoch_order(
    seed: int, epoch: int, size: int, batch_size: int, inclusion: np.ndarray | None = None
) -> list[np.ndarray]:
    """All `size` indices once, or those drawn by `inclusion`, in batches and in an order that is a function of (seed,
    epoch).

    A last batch of one image is left out: BatchNorm cannot normalise a single value, and the next epoch has another
    order.
    """
    if inclusion is None:
        shuffled = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(size)
    else:
        shuffled = sampling.draw(inclusion, seed, epoch)
    batches = in_batches(shuffled, batch_size)
    alone = batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1
    return batches[:-1] if alone else batches


def augmented_batches(
    examples: Examples, augmentation: Augmentation, settings: StepSettings, epoch: int, size: int, start: int = 0,
    view: TeacherView | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """One epoch of freshly augmented images, or a view that a teacher has seen too, without the first `start` batches.
    Their order and augmentation are functions of (seed, epoch). With several processes, each gets its share of every
    batch."""
    seed = settings.config.seed
    rows = draws(seed, epoch, len(examples.labels)) if view is None else view.rows
    whole = epoch_order(seed, epoch, len(examples.labels), settings.config.batch_size, examples.inclusion)[start:]
    parts = [own_part(indices) for indices in whole]
    weights = _weights(examples)

    def on_host(number: int, pixels: np.ndarray) -> np.ndarray:
        return augmentation.on_host(pixels, rows[parts[number]], examples.pixels.pool)

    ahead = augmentation.host_part_is_pure
    pictures = examples.pixels.batches((examples.positions[indices] for indices in parts), on_host if ahead else None)
    for number, (indices, pixels) in enumerate(zip(parts, pictures, strict=True)):
        images = augmentation.on_device(pixels if ahead else on_host(number, pixels), rows[indices], size)
        of_images = (examples.labels, weights, None if view is None else view.logits)
        labels, weighted, answers = (
            None if values is None else to_device(values[indices], settings.device) for values in of_images
        )
        assert labels is not None
        yield Batch(images, labels, weighted, answers)


def _weights(examples: Examples) -> np.ndarray | None:
    """(N,) float32, of the losses by the labels."""
    if examples.labelled is not None:
        return examples.labelled.astype(np.float32)
    return None if examples.inclusion is None else sampling.weights(examples.inclusion)


def own_part(indices: np.ndarray) -> np.ndarray:
    """This process's part of a batch; two images of the others where its part is empty, because all processes exchange
    gradients in every step. `loss_share` is 0 then."""
    own = collectives.shard_batch(indices)
    return own if len(own) else indices[[0, -1]]


def loss_share(labels: np.ndarray, class_weights: np.ndarray | None) -> float:
    """What to multiply the mean loss of this process's part of a batch by, so that the mean over all processes is the
    mean loss of the whole batch, which has these `labels`, (B,) or (B, K)."""
    weights = np.ones(len(labels)) if class_weights is None else class_weights[labels]
    return float(distributed.world_size() * collectives.shard_batch(weights).sum() / weights.sum())
