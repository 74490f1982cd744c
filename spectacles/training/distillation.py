"""Knowledge distillation: a student learns from a teacher's outputs besides the labels (Hinton et al. 2015). Both look
at the same view of a photo, which matters more than how the loss is made (Beyer et al. 2022)."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from spectacles.core import distributed
from spectacles.core.config import AugmentConfig, TrainConfig, select
from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.core.run_dir import RunDir
from spectacles.core.wording import count_of
from spectacles.data.pixel_cache import Pixels, in_batches
from spectacles.models import bundle_network, engine_choice, ood
from spectacles.models.bundle import MANIFEST, Bundle, BundleInfo, load_bundle
from spectacles.models.bundle_network import BundleNetwork
from spectacles.models.engines import Engine
from spectacles.models.feature_cache import FILE
from spectacles.models.feature_store import FeatureStore
from spectacles.training import collectives
from spectacles.training.augmentation import Augmentation, View
from spectacles.training.batches import Examples, TeacherView

log = logging.getLogger("spectacles")

VIEWS, FIRST_VIEW = 8, 2
"""Views of each photo; epochs take them in turn, so that the teacher computes each once. Number 1 is the mirror
image."""


@dataclass(frozen=True)
class Distillation:
    """A teacher, and the photos that it teaches with: the training images, and unlabelled ones after them."""

    teacher: Bundle
    columns: list[int]
    """Of each class of the student, that of the teacher."""
    examples: Examples
    pixels: Pixels
    """The same images as `examples.pixels`, as the teacher looks at them."""
    config: TrainConfig
    device: torch.device
    cache: Path
    """Of the run. What is stored belongs to (teacher, photo, view)."""

    def view(self, epoch: int) -> TeacherView:
        """Of the epoch, 1-based over both phases. All processes get the main process's."""
        view = View(FIRST_VIEW + (epoch - 1) % VIEWS, self._augmentation)
        digests = [self.pixels.hashes[at] for at in self.examples.positions]
        with collectives.long_wait() as group:
            logits = self._logits(view, digests).tolist() if distributed.is_main_process() else None
            logits = collectives.broadcast_object(logits, group)
        return TeacherView(view.rows(digests), np.array(logits, dtype=np.float32)[:, self.columns])

    def describe(self) -> str:
        labelled, info = self.examples.labelled, self.teacher.info
        without = "" if labelled is None else f", {int((~labelled).sum()):,} of them without a label"
        return (
            f"learned from the teacher {self.teacher.model_id} ({info.backbone} at {info.preprocessing.image_size} px) "
            f"on {count_of(len(self.examples.positions), 'photo')}{without}"
        )

    def _logits(self, view: View, digests: list[str]) -> np.ndarray:
        """(N, K) float32 in the teacher's order: from the cache, where it has all of them."""
        keys = [view.name(digest) for digest in digests]
        store = FeatureStore(self.cache / FILE, int(self.config.cache_gb * 2**30))
        identity = f"teacher-{self.teacher.model_id}"
        known = store.read(identity, list(set(keys)))
        if len(known) < len(set(keys)):
            known = dict(zip(keys, self._compute(view), strict=True))
            store.write(identity, known)
        return np.stack([known[key] for key in keys])

    def _compute(self, view: View) -> Iterator[np.ndarray]:
        """(K,) of one photo after the other."""
        batches = in_batches(self.examples.positions, self.config.batch_size)
        shown = progress(self.pixels.batches(batches), f"teacher, view {view.number}", len(batches), unit="batch")
        for positions, pixels in zip(batches, shown, strict=True):
            yield from self._run(view(pixels, [self.pixels.hashes[at] for at in positions]))["logits"]

    @cached_property
    def _augmentation(self) -> Augmentation:
        return Augmentation(select(self.config, AugmentConfig), self.teacher.info.preprocessing).to(self.device)

    @cached_property
    def _run(self) -> Engine:
        info, scorer = self.teacher.info, ood.from_tensors(self.teacher.tensors(ood.PREFIX))
        choice = engine_choice.choice_file(self.cache, info.backbone, info.preprocessing)
        agree = bundle_network.difference(info, scorer)
        network = BundleNetwork(self.teacher, str(self.device))
        images = VIEWS * len(self.examples.positions)
        return engine_choice.choose(network, choice, self.config.engine, agree, images)[1]


def load_teacher(path: Path) -> Bundle:
    """Of a bundle's folder, or of a run's. Raises UserError."""
    inside = RunDir(path).bundle
    return load_bundle(inside if (inside / MANIFEST).is_file() else path)


def prepare(
    teacher: Bundle, student: BundleInfo, examples: Examples, rows: pd.DataFrame, config: TrainConfig,
    run_dir: RunDir, device: torch.device,
) -> Distillation:  # fmt: skip
    """`rows`: of all images, in the order of `examples.pixels`. Raises UserError for a teacher of other classes."""
    info = teacher.info
    if sorted(info.classes) != sorted(student.classes) or info.multi_label != student.multi_label:
        kind = "labels" if info.multi_label else "classes"
        raise UserError(
            f"--teacher {config.teacher} knows the {kind} {', '.join(info.classes[:8])}, and the data have "
            f"{', '.join(student.classes[:8])}: a teacher must have been trained for the same ones."
        )
    cache_bytes = int(config.pixel_cache_gb * 2**30) if config.galleries else 0
    pixels = Pixels(rows, info.preprocessing, run_dir.cache / "pixels", cache_bytes, config.num_workers)
    log.info("  teacher: %s (%s at %d px), which looks once at %d views of %s", teacher.model_id, info.backbone,
             info.preprocessing.image_size, VIEWS, count_of(len(examples.positions), "photo"))  # fmt: skip
    if info.data_fingerprint != student.data_fingerprint:
        log.info("  the teacher was trained on other data: if it has seen this run's validation or test photos, they "
                 "flatter the student")  # fmt: skip
    columns = [info.classes.index(name) for name in student.classes]
    return Distillation(teacher, columns, examples, pixels, config, device, run_dir.cache)


def with_unlabelled(train: Examples, positions: np.ndarray) -> Examples:
    """The training images and after them those at `positions`, which have no labels."""
    if not len(positions):
        return train
    labels = np.zeros((len(positions), *train.labels.shape[1:]), dtype=train.labels.dtype)
    return replace(
        train,
        positions=np.concatenate([train.positions, positions]),
        labels=np.concatenate([train.labels, labels]),
        labelled=np.arange(len(train.positions) + len(positions)) < len(train.positions),
    )
