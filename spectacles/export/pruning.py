"""Structured pruning: whole channels leave a trained network, which is then fine-tuned, with the network that it was as
its teacher (DepGraph, Fang et al. 2023)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from spectacles.core.config import AugmentConfig, TrainConfig, select
from spectacles.core.device import resolve_device
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir
from spectacles.core.wording import percent, percents
from spectacles.data import file_index, label_sets, training_photos
from spectacles.data.pixel_cache import Pixels
from spectacles.data.schemas import load_split
from spectacles.export.shipped import Shipped
from spectacles.metrics import bootstrap
from spectacles.metrics.decisions import is_correct
from spectacles.metrics.paired import p_worse
from spectacles.models import bn_statistics, engines, freezing, recipes
from spectacles.models.bundle import BundleInfo
from spectacles.models.classifier import LAST_LAYER, Classifier
from spectacles.models.normalization import normalize
from spectacles.models.precision import SIGNIFICANT
from spectacles.models.quantization import CALIBRATION_IMAGES
from spectacles.models.torch_device import prepare_device
from spectacles.training import distillation, finalize, phases
from spectacles.training.augmentation import Augmentation
from spectacles.training.batches import Examples, StepSettings
from spectacles.training.trainer import FINE_TUNE, Trainer
from spectacles.training.validation import validate

log = logging.getLogger("spectacles")

EPOCHS, LR = 8, 1e-3
"""Of fine-tuning all layers. The rate is between those for pretrained and for random weights."""
BATCH = 64
"""Photos over which statistics are taken at once, and averaged."""
ROUND_TO = 8
"""Channels stay a multiple of it: processors compute as many at once."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Comparison:
    """The pruned network and the whole one on the validation photos."""

    accuracy: float
    before: float
    interval: tuple[float, float]
    """Of `before`, 95 %."""
    p_worse: float
    """Exact McNemar test: that chance alone makes the pruned one so much less accurate."""

    @property
    def objection(self) -> str:
        """'' where the pruned network is as good as can be told."""
        if self.p_worse < SIGNIFICANT:
            return f"it is less accurate (p = {self.p_worse:.2g})"
        return "its accuracy is below that interval" if self.accuracy < self.interval[0] else ""

    def __str__(self) -> str:
        return (
            f"accuracy {percent(self.accuracy)} on validation data, that of the whole network {percent(self.before)} "
            f"({percents(self.interval)}, 95 %)"
        )


def prune(shipped: Shipped, share: float, run_dir: RunDir) -> tuple[Shipped, str]:
    """The model without `share` of the channels of its layers, fine-tuned, with calibration and thresholds fitted to
    it; and a sentence. Raises UserError where it cannot be pruned, or is less accurate on validation photos."""
    if not engines.is_installed("torch_pruning"):
        raise UserError("--prune takes torch-pruning: pip install -r requirements-export.txt")
    if shipped.info.taps != LAST_LAYER:
        raise UserError(
            "--prune is for networks that were fine-tuned, and this head looks at several layers of a frozen one: "
            "train with --fine_tune always."
        )
    pixels = training_photos.pixels_of(run_dir, shipped.info.preprocessing, CALIBRATION_IMAGES)
    smaller = without_channels(shipped.classifier, share, shipped.info, pixels)
    before, after = (sum(each.numel() for each in net.parameters()) for net in (shipped.classifier, smaller))
    with _trainer(smaller, shipped, run_dir) as trainer:
        whole = validate(shipped.classifier.to(trainer.settings.device), trainer.val, trainer.settings)
        phases.run(trainer, FINE_TUNE, EPOCHS)
        smaller.load_state_dict(trainer.best_state)
        logits = validate(smaller, trainer.val, trainer.settings)
        info = finalize.decide(trainer.config, shipped.info, logits, trainer.val.labels, None).info
        compared = _compare(trainer, (shipped.info, whole), (info, logits))
    sentence = f"pruned by {percent(share)}: {before / 1e6:.2f} million parameters became {after / 1e6:.2f}; {compared}"
    if compared.objection:
        raise UserError(f"{sentence}: {compared.objection}. Use a lower --prune, or export without it.")
    model_id = f"{shipped.model_id}-pruned-{round(100 * share)}"
    return replace(shipped, classifier=smaller.cpu().eval(), info=info, model_id=model_id), sentence


def without_channels(classifier: Classifier, share: float, info: BundleInfo, pixels: np.ndarray) -> Classifier:
    """A copy on the CPU without those channels of each layer whose weights are the smallest; layers that depend on each
    other lose the same ones. What is left keeps the mean and spread that it had on `pixels` (N, S, S, C), uint8. Raises
    UserError where that leaves a network that does not work."""
    import torch_pruning

    smaller = copy.deepcopy(classifier).cpu().eval()
    parts = np.array_split(pixels, -(-len(pixels) // BATCH))
    photos = [normalize(info.preprocessing, torch.from_numpy(part)) for part in parts]
    bn_statistics.absorb(smaller, photos)
    for parameter in smaller.parameters():
        parameter.requires_grad_(True)
    with engines.explained("--prune", "another --backbone, or no --prune"):
        pruner = torch_pruning.pruner.BasePruner(
            smaller, photos[0][:2], importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=share,
            ignored_layers=[smaller.head], round_to=ROUND_TO,
        )  # fmt: skip
        pruner.step()
        bn_statistics.estimate(smaller, photos)
        with torch.no_grad():
            assert smaller(photos[0][:2]).shape[1] == len(info.classes)
    return smaller


@contextmanager
def _trainer(smaller: Classifier, shipped: Shipped, run_dir: RunDir) -> Iterator[Trainer]:
    """Trains with the run's photos and settings as far as they fit; what it writes is temporary."""
    info, config = shipped.info, _config(shipped, run_dir)
    device = prepare_device(resolve_device(config.device))
    rows = load_split(run_dir, "train", "val")
    file_index.require_unchanged(rows)
    labels = label_sets.encode(rows["label"], list(info.classes), info.multi_label)
    cache_bytes = int(config.pixel_cache_gb * 2**30) if config.galleries else 0
    places = {split: np.flatnonzero(rows["split"] == split) for split in ("train", "val")}
    with TemporaryDirectory(dir=run_dir.folder("export")) as scratch, Pixels(
        rows, info.preprocessing, run_dir.cache / "pixels", cache_bytes, config.num_workers
    ) as pixels:  # fmt: skip
        train, val = (Examples(pixels, places[split], labels[places[split]]) for split in ("train", "val"))
        teacher = distillation.load_teacher(shipped.folder)
        yield Trainer(
            settings=StepSettings(config, device, len(info.classes), None, info.multi_label),
            classifier=smaller.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            layer_groups=freezing.layer_groups_of(smaller),
            pixels=pixels,
            train=train,
            val=val,
            augmentation=Augmentation(select(config, AugmentConfig), info.preprocessing).to(device),
            info=info,
            run_dir=RunDir(Path(scratch)),
            started=0.0,
            rows=rows,
            distillation=distillation.prepare(teacher, info, train, rows, config, run_dir, device),
        )


def _config(shipped: Shipped, run_dir: RunDir) -> TrainConfig:
    """BatchNorm learns, since `without_channels` has given it the statistics of the data: constant, and folded, the
    network forgets what is left of it in the first steps."""
    changed: dict[str, Any] = {
        "backbone": shipped.info.backbone, "image_size": shipped.info.preprocessing.image_size,
        "batch_norm": "train", "teacher": shipped.folder, "unlabelled": None,
        "epochs": EPOCHS, "lr": LR, "unfreeze": "all", "fine_tune": "always", "epoch_share": 1.0, "patience": EPOCHS,
        "progressive_size": False, "mixup": 0.0, "cutmix": 0.0, "class_weights": "none",
        "time_budget": None, "resume": False, "grad_accum_steps": 1,
    }  # fmt: skip
    return recipes.resolve(replace(finalize.settings_of(run_dir), **changed))


def _compare(
    trainer: Trainer, whole: tuple[BundleInfo, np.ndarray], pruned: tuple[BundleInfo, np.ndarray]
) -> Comparison:
    was_right, is_right = (
        is_correct(info.decide(info.calibration.probabilities(logits)), trainer.val.labels)
        for info, logits in (whole, pruned)
    )
    clusters = trainer.rows["cluster"].to_numpy()[trainer.val.positions]
    low, high = bootstrap.share_interval(was_right, clusters, 0, RESAMPLES)
    return Comparison(
        accuracy=float(is_right.mean()),
        before=float(was_right.mean()),
        interval=(low, high),
        p_worse=p_worse(was_right, is_right),
    )
