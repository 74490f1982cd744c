"""Where no fine-tuned network is kept but the head alone: fitted again to features of several layers, and to pictures
of the backbone's own size, where held-out folds of the training data say that this pays."""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch

from spectacles.core.config import AugmentConfig, parse_duration, select
from spectacles.data.pixel_cache import Pixels
from spectacles.data.stratification import sample_clusters, stratified_folds
from spectacles.models import backbones, feature_blocks, linear_probe
from spectacles.models.feature_blocks import GRIDS, LAST
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.models.linear_probe import CrossFit
from spectacles.training import epoch_log
from spectacles.training.augmentation import Augmentation, View
from spectacles.training.history import best_epoch
from spectacles.training.trainer import HEAD, HEAD_ALONE, Trainer

log = logging.getLogger("spectacles")

FOLDS, MOST_IMAGES = 3, 2000
"""Folds, and training images at most, that choose among blocks and sizes."""
MOVING_VIEWS = (2, 3)
"""Augmented views that grids are fitted to as well: a head that has only seen things where they stood misses them
elsewhere."""
COST = 4
"""A refit takes at most about so many times as long as the first fit, features included."""


@dataclass(frozen=True)
class Source:
    """The frozen backbone, looking at the pictures in one size."""

    extractor: FeatureExtractor
    pixels: Pixels

    @property
    def size(self) -> int:
        return self.pixels.preprocessing.image_size


def refit(trainer: Trainer, stack: ExitStack) -> None:
    """Where the best epoch is the linear probe's, adds an epoch in which the probe is fitted to whatever folds of the
    training data choose. It is kept where it is better on validation data. Pictures of another size are closed by
    `stack`."""
    if trainer.config.head != "linear_probe" or best_epoch(trainer.history).phase != HEAD or not _in_time(trainer):
        return
    started = time.monotonic()
    source, choice = _choose(trainer, [_source(trainer, size, stack) for size in _sizes(trainer)])
    if choice.blocks == (LAST,) and source.pixels is trainer.pixels:
        return
    _fit(trainer, source, choice, started)


def _in_time(trainer: Trainer) -> bool:
    if trainer.config.time_budget is None:
        return True
    spent, allowed = time.monotonic() - trainer.started, parse_duration(trainer.config.time_budget)
    return spent + COST * best_epoch(trainer.history).seconds <= allowed


def _sizes(trainer: Trainer) -> list[int]:
    """That of training, and the backbone's own where --image_size was left open."""
    size = trainer.info.preprocessing.image_size
    own = backbones.native_size(trainer.config.backbone)
    return [size, own] if trainer.size_is_open and own != size else [size]


def _source(trainer: Trainer, size: int, stack: ExitStack) -> Source:
    config, preprocessing = trainer.config, replace(trainer.info.preprocessing, image_size=size)
    pixels = trainer.pixels
    if preprocessing != pixels.preprocessing:
        cache_bytes = int(config.pixel_cache_gb * 2**30) if config.galleries else 0
        folder = trainer.run_dir.cache / "pixels"
        pixels = stack.enter_context(Pixels(trainer.rows, preprocessing, folder, cache_bytes, config.num_workers))
    backbone = backbones.build(config.backbone, preprocessing.in_chans, size)
    state = {name: value for name, value in trainer.best_state.items() if name.startswith("backbone.")}
    backbone.load_state_dict({name.removeprefix("backbone."): value for name, value in state.items()})
    extractor = FeatureExtractor(
        backbone, config.backbone, preprocessing, trainer.run_dir.cache, trainer.settings.device, config
    )
    return Source(extractor, pixels)


def _choose(trainer: Trainer, sources: list[Source]) -> tuple[Source, CrossFit]:
    """The source and the blocks with the lowest log loss on held-out folds of (a sample of) the training data."""
    train, seed = trainer.train, trainer.config.seed
    clusters = trainer.rows["cluster"].to_numpy(dtype=np.int64)[train.positions]
    sample = sample_clusters(clusters, MOST_IMAGES, seed)
    labels = train.labels[sample]
    fold = stratified_folds(labels, clusters[sample], FOLDS, seed)
    wanted = feature_blocks.blocks_for(len(train.labels))
    tried = []
    for source in sources:
        features = source.extractor.embed(source.pixels, train.positions[sample], blocks=wanted)
        fit = linear_probe.cross_fit(features, labels, [fold])
        tried.append((source, fit))
        losses = ", ".join(f"{feature_blocks.describe([names])} {loss:.4f}" for names, loss in fit.losses.items())
        log.info("  log loss of the head alone on %d held-out training images of %d px: %s", len(sample), source.size,
                 losses)  # fmt: skip
    return min(tried, key=lambda pair: pair[1].loss)


def _fit(trainer: Trainer, source: Source, choice: CrossFit, started: float) -> None:
    train, val, blocks = trainer.train, trainer.val, choice.blocks
    views = _views(trainer, source, moving=GRIDS in blocks)
    parts = [source.extractor.embed(source.pixels, train.positions, view, blocks) for view in (None, *views)]
    held_out = source.extractor.embed(source.pixels, val.positions, blocks=blocks)
    weights = trainer.settings.class_weights
    head = linear_probe.fit_head(
        (feature_blocks.stack(parts).side_by_side(blocks), np.concatenate([train.labels] * len(parts))),
        (held_out.side_by_side(blocks), val.labels),
        len(trainer.info.classes),
        None if weights is None else weights.cpu().numpy(),
        held_out.scales(blocks),
    )
    epoch = trainer.score_epoch(HEAD_ALONE, head.train_loss, head.logits(held_out.side_by_side(blocks)), 0.0, started)
    trainer.history.append(epoch)
    epoch_log.log_epoch(trainer.history, planned=len(trainer.history))
    epoch_log.write_history(trainer.history, trainer.config.metric, trainer.folder)
    if best_epoch(trainer.history) is epoch:
        _keep(trainer, source, choice, head)


def _views(trainer: Trainer, source: Source, moving: bool) -> list[View]:
    """Those of --views, and the moving ones."""
    numbers = sorted({*range(1, trainer.config.views), *(MOVING_VIEWS if moving else ())})
    augmentation = Augmentation(select(trainer.config, AugmentConfig), source.pixels.preprocessing)
    return [View(number, augmentation) for number in numbers]


def _keep(trainer: Trainer, source: Source, choice: CrossFit, head: linear_probe.Head) -> None:
    taps = source.extractor.taps.only(choice.blocks)
    trainer.info = replace(
        trainer.info, preprocessing=source.pixels.preprocessing, feature_dim=head.weight.shape[1], taps=taps
    )
    trainer.pixels = source.pixels
    trainer.train, trainer.val = (replace(part, pixels=source.pixels) for part in (trainer.train, trainer.val))
    backbone = {name: value for name, value in trainer.best_state.items() if name.startswith("backbone.")}
    trainer.best_state = backbone | {
        "head.weight": torch.from_numpy(head.weight), "head.bias": torch.from_numpy(head.bias)
    }  # fmt: skip
    trainer.save_bundle()
