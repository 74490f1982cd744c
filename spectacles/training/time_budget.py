"""How long training will take on this machine, and which settings fit into a time budget."""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from spectacles.core.config import TrainConfig, parse_duration
from spectacles.core.wording import duration
from spectacles.data.preprocessing import Preprocessing, decoded_batches
from spectacles.models import backbones, bn_folding, freezing, recipes
from spectacles.models.classifier import Classifier
from spectacles.models.depthwise import fast_gradients
from spectacles.models.ood import REFERENCES
from spectacles.models.recipes import Recipe
from spectacles.models.torch_device import tf32_allowed
from spectacles.training import sampling
from spectacles.training.batches import StepSettings
from spectacles.training.train_loop import autocast

CHOSEN = ("image_size", "unfreeze", "epochs", "epoch_share", "progressive_size", "fine_tune")
"""Settings that a time budget decides where they were left open."""
PLANNED_SHARE = 0.9
"""Of the budget that the estimate of a plan may use: machines slow down."""
OVERRUN = 1.1
"""Multiple of the budget that training may take; an epoch that would exceed it is not started."""
HEAD_ONLY = Recipe(0.57, 0.4, 1)
"""Without fine-tuning where --fine_tune is auto."""
PRUNED = partial(Recipe, epoch_share=0.5, progressive_size=True)
LADDER = (
    HEAD_ONLY, PRUNED(0.57, 0.5, 2), PRUNED(0.57, 0.5, 3), PRUNED(0.71, 0.5, 3), PRUNED(0.71, 0.5, 4),
    PRUNED(0.71, 0.5, 6), PRUNED(0.71, 0.5, 8), PRUNED(0.86, 0.5, 8), PRUNED(1.0, 0.5, 10), Recipe(1.0, 1.0, 10),
    Recipe(1.0, 1.0, 20),
)  # fmt: skip
"""From the cheapest to the best: image size, share of the layer groups, epochs."""
OVERHEAD = 10.0
"""Seconds that training takes regardless of the data: building, fitting the head, exporting (most of it), saving."""
FILES_TIMED = 48
"""Files that are decoded to measure how long one takes."""
AUGMENTATION_FACTOR = 1.15
"""Time of a training step with augmentation, relative to one without."""


@dataclass(frozen=True)
class Rates:
    """Seconds per image."""

    training: float
    inference: float


def choose(
    config: TrainConfig, train_images: int, val_images: int, build: Callable[[TrainConfig], Classifier],
    decoding: float, device: torch.device,
) -> tuple[TrainConfig, list[str]]:  # fmt: skip
    """(the best resolved config that fits --time_budget, the reasons as sentences).

    `build` makes the network of a resolved config, which is timed here for some seconds; `decoding` is in seconds per
    file. Given settings stay as they are; where even the cheapest plan does not fit, it is taken anyway, and the
    reasons say so.
    """
    assert config.time_budget is not None
    allowed, started = parse_duration(config.time_budget), time.monotonic()
    plan = None
    needed = 0.0
    reasons = []
    rates: dict[tuple[int | None, str | None], Rates] = {}
    for recipe in LADDER:
        candidate = with_recipe(config, recipe)
        key = (candidate.image_size, candidate.unfreeze)
        if key not in rates:
            rates[key] = measure(candidate, build(candidate), device)
        estimated = estimate(candidate, rates[key], decoding, train_images, val_images) + time.monotonic() - started
        fits = estimated <= PLANNED_SHARE * allowed
        reasons.append(f"{_describe(candidate)}: about {duration(estimated)}{'' if fits else ', too long'}")
        if plan is not None and not fits:
            break
        plan, needed = candidate, estimated
        if not fits:
            break
    assert plan is not None
    decision = f"time budget {config.time_budget}: {_describe(plan)}, about {duration(needed)}"
    if needed > PLANNED_SHARE * allowed:
        decision += "; that may be more than the budget, but there is no cheaper plan"
    return plan, [*reasons, decision]


def with_recipe(config: TrainConfig, recipe: Recipe) -> TrainConfig:
    """The config with the recipe's choices where settings were left open."""
    base = recipes.resolve(config, recipe)
    if recipe is HEAD_ONLY and config.fine_tune == "auto" and base.head == "linear_probe" and not base.no_pretrained:
        return replace(base, fine_tune="never")
    return base


def _describe(config: TrainConfig) -> str:
    if config.fine_tune == "never":
        return f"{config.image_size} px, the head alone"
    photos = "" if config.epoch_share == 1 else f" of {config.epoch_share:.0%} of the photos"
    return f"{config.image_size} px, {config.epochs} epochs{photos}, unfreeze {config.unfreeze}"


def estimate(config: TrainConfig, rates: Rates, decoding: float, train_images: int, val_images: int) -> float:
    """Seconds that training will take, at `decoding` seconds per file."""
    assert config.image_size is not None and config.epochs is not None and config.epoch_share is not None
    images = train_images + val_images
    total = OVERHEAD + images * (decoding + rates.inference)
    if config.fine_tune != "never":
        seen = sampling.images_per_epoch(train_images, config.epoch_share)
        sides = [recipes.side(config, epoch, config.epochs) for epoch in range(config.epochs)]
        full_epochs = sum((side / config.image_size) ** 2 for side in sides)
        total += full_epochs * seen * rates.training * AUGMENTATION_FACTOR
        total += config.epochs * val_images * rates.inference
    return total + (val_images + min(REFERENCES, train_images)) * rates.inference


def decoding_seconds(paths: Sequence[str], config: TrainConfig) -> float:
    """Per file, measured on some of them."""
    size = config.image_size or backbones.native_size(config.backbone)
    preprocessing = Preprocessing(size, config.resize, "bicubic", (0.5,), (0.5,), config.in_chans)
    timed = [Path(path) for path in paths[:: -(-len(paths) // FILES_TIMED)]]
    started = time.perf_counter()
    for _ in decoded_batches(timed, preprocessing, len(timed), config.num_workers):
        pass
    return (time.perf_counter() - started) / len(timed)


def measure(config: TrainConfig, classifier: Classifier, device: torch.device) -> Rates:
    """Times a few small steps of a resolved config on a copy of `classifier`."""
    assert config.image_size is not None and config.epochs is not None and config.unfreeze is not None
    trial = copy.deepcopy(classifier).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = freezing.layer_groups_of(trial)
    shape = (min(16, config.batch_size), config.in_chans, config.image_size, config.image_size)
    inputs = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
    if config.batch_norm == "fold":
        with suppress(ValueError):  # whether it is exact does not matter for timing
            bn_folding.fold_batchnorm(trial.backbone, inputs[:1])
    unfrozen = freezing.unfrozen_groups(config.unfreeze, len(groups), config.epochs // 2, config.epochs)
    freezing.freeze_below(trial, groups, unfrozen)
    trial.eval()  # timing must not move BatchNorm statistics
    settings = StepSettings(config, device, trial.head.out_features, None)
    return Rates(
        training=_fastest(lambda: _step(trial, inputs, settings)) / len(inputs),
        inference=_fastest(lambda: _infer(trial, inputs)) / len(inputs),
    )


def _step(classifier: Classifier, inputs: torch.Tensor, settings: StepSettings) -> None:
    with tf32_allowed():
        with autocast(settings), fast_gradients(settings.device):
            loss = classifier(inputs).float().square().mean()
        loss.backward()
    loss.detach().item()  # waits for the device


@torch.inference_mode()
def _infer(classifier: Classifier, inputs: torch.Tensor) -> None:
    classifier(inputs).sum().item()


def _fastest(action: Callable[[], None], rounds: int = 3) -> float:
    """Seconds of the fastest round; the first ones also allocate memory and choose kernels."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)
