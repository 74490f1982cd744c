"""One training: what its phases share, and how it records an epoch and resumes after an interruption."""

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spectacles.core import distributed
from spectacles.core.config import TrainConfig, parse_duration, to_plain
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir
from spectacles.data.pixel_cache import Pixels
from spectacles.models import bn_folding
from spectacles.models.bn_folding import FoldedBatchNorm
from spectacles.models.bundle import BundleInfo, save_bundle
from spectacles.models.classifier import Classifier
from spectacles.models.freezing import LayerGroups
from spectacles.training import checkpoint, collectives, epoch_log, time_budget
from spectacles.training.augmentation import Augmentation
from spectacles.training.batches import Examples, StepSettings
from spectacles.training.checkpoint import Checkpoint, State
from spectacles.training.distillation import Distillation
from spectacles.training.history import Epoch, best_epoch, epochs_of, from_json
from spectacles.training.validation import validation_scores

log = logging.getLogger("spectacles")

HEAD, FINE_TUNE, HEAD_ALONE = "head", "fine_tune", "head_alone"
MAY_DIFFER_ON_RESUME = (
    "output_dir", "run_name", "device", "num_workers", "resume", "pixel_cache_gb", "cache_gb", "galleries",
    "time_budget", "threshold_for", "target_accuracy", "ood_quantile", "checkpoint_every",
)  # fmt: skip
"""Settings without influence on the weights: where and with how many threads, and what is decided last."""


@dataclass
class Trainer:
    """What the phases share."""

    settings: StepSettings
    classifier: Classifier
    layer_groups: LayerGroups
    pixels: Pixels
    train: Examples
    val: Examples
    augmentation: Augmentation
    info: BundleInfo
    run_dir: RunDir
    started: float
    """time.monotonic() at the start, moved back by the time that was spent before a resume."""
    rows: pd.DataFrame
    """Of the training and validation images."""
    size_is_open: bool = False
    """Whether neither --image_size nor a time budget has decided on the size of the pictures."""
    history: list[Epoch] = field(default_factory=list)
    folded: list[FoldedBatchNorm] = field(default_factory=list)
    validation_seconds_per_image: float = 0.0
    """In the last epoch."""
    best_state: State = field(default_factory=dict)
    """The network of the best epoch so far, with BatchNorm unfolded, on the CPU."""
    interrupted: Checkpoint | None = None
    """Of the phase to resume."""
    distillation: Distillation | None = None
    """With --teacher."""

    @property
    def config(self) -> TrainConfig:
        return self.settings.config

    @property
    def bundle(self) -> Path:
        return self.run_dir.bundle

    @property
    def folder(self) -> Path:
        return self.run_dir.folder("train")

    @property
    def examples(self) -> Examples:
        """What gradient descent looks at: the training images, and with --unlabelled others too."""
        return self.distillation.examples if self.distillation else self.train

    def resume(self) -> None:
        """Continues from the newest checkpoint, if there is one. Raises UserError where it belongs to other data or
        other settings."""
        newest = checkpoint.load_newest(self.folder)
        if newest is None:
            return
        self._check_settings(newest.values["settings"])
        self.history = from_json(newest.values["history"])
        self.started -= newest.values["seconds"]
        self.best_state = newest.states.get("best", {})
        self.interrupted = newest
        if "sampling" in newest.states:
            self.train = replace(self.train, inclusion=newest.states["sampling"]["inclusion"].numpy())
        step = newest.values["step"]
        log.info("  resuming after epoch %d%s", len(self.history), f" and {step} steps" if step else "")
        if self.history:
            self.save_bundle()  # the crash may have come between the checkpoint and the bundle of the same epoch

    def interrupted_within_epoch(self, phase: str) -> bool:
        """Whether the checkpoint to resume from was written inside an epoch of `phase`."""
        values = self.interrupted.values if self.interrupted else {}
        return values.get("phase") == phase and values["step"] > 0

    def _check_settings(self, before: dict[str, Any]) -> None:
        settings = self._settings_to_match()
        changed = [name for name in settings if before.get(name) != settings[name]]
        if not changed:
            return
        if "data" in changed:
            reason = checkpoint.describe_changed_rows(self.folder, self.rows)
            raise UserError(f"cannot resume: {reason}. Train without --resume from the start.")
        changes = "; ".join(f"--{name} was {before.get(name)} and is {settings[name]}" for name in changed)
        raise UserError(
            f"cannot resume: {changes}. Train with the former {'value' if len(changed) == 1 else 'values'}, or without "
            "--resume from the start."
        )

    def _settings_to_match(self) -> dict[str, Any]:
        """What the weights depend on."""
        settings = {name: value for name, value in to_plain(self.config).items() if name not in MAY_DIFFER_ON_RESUME}
        data = checkpoint.rows_fingerprint(self.rows)
        teacher = {"model of the teacher": self.distillation.teacher.model_id} if self.distillation else {}
        return {**settings, **teacher, "positive_class": self.info.positive_class, "data": data}

    def score_epoch(self, phase: str, loss: float, logits: np.ndarray, learning_rate: float, started: float) -> Epoch:
        """The record of the epoch that ends now, from its training loss and its validation logits (N, K)."""
        scores = validation_scores(logits, self.val.labels)
        return Epoch(
            epoch=len(self.history) + 1,
            phase=phase,
            train_loss=loss,
            val_loss=scores["loss"],
            metric=self.config.metric,
            value=scores[self.config.metric],
            val_accuracy=scores["accuracy"],
            val_balanced_accuracy=scores["balanced_accuracy"],
            learning_rate=learning_rate,
            seconds=round(time.monotonic() - started, 3),
        )

    def record_epoch(self, epoch: Epoch, network: Classifier, state: Checkpoint) -> None:
        """Saves a checkpoint and then, where the epoch is the best so far, the bundle. `network` is what was validated;
        `state` is what the next step depends on."""
        self.history.append(epoch)
        is_best = best_epoch(self.history) is epoch
        if is_best:
            unfolded = bn_folding.unfolded_state(network.state_dict(), self.folded, "backbone.")
            self.best_state = {name: value.detach().cpu().clone() for name, value in unfolded.items()}
        self.save_checkpoint(state)
        if is_best:
            self.save_bundle()
        if distributed.is_main_process():
            epoch_log.log_epoch(self.history, sum(count for _, count in planned_phases(self.config)))

    def save_checkpoint(self, state: Checkpoint) -> None:
        """`state` of the phase, together with what the phases share."""
        if not distributed.is_main_process():
            return
        values = {
            "history": [asdict(epoch) for epoch in self.history],
            "settings": self._settings_to_match(),
            "seconds": time.monotonic() - self.started,
        }
        states = {"best": self.best_state} | state.states
        if self.train.inclusion is not None:
            states["sampling"] = {"inclusion": torch.from_numpy(self.train.inclusion)}
        checkpoint.save(self.folder, Checkpoint(values | state.values, states, state.optimizer))

    def save_bundle(self) -> None:
        """The bundle of the best epoch, uncalibrated: it can be used should training end here."""
        if not distributed.is_main_process():
            return
        epoch = best_epoch(self.history)
        info = replace(self.info, metric_value=epoch.value, epoch=epoch.epoch, phase=epoch.phase)
        save_bundle(self.bundle, info, self.best_state)

    def out_of_time(self, final_images: int) -> bool:
        """Whether one more epoch like the last one, and the final pass over `final_images`, would exceed the time
        budget. All processes get the main process's answer."""
        return bool(collectives.broadcast_object(self._out_of_time(final_images)))

    def _out_of_time(self, final_images: int) -> bool:
        epochs = epochs_of(self.history, FINE_TUNE)
        if self.config.time_budget is None or not epochs:
            return False
        spent, allowed = time.monotonic() - self.started, parse_duration(self.config.time_budget)
        needed = epochs[-1].seconds + final_images * self.validation_seconds_per_image
        if spent + needed <= allowed * time_budget.OVERRUN:
            return False
        log.info("  the time budget is used up: %.0f of %.0f s are spent and an epoch takes %.0f s", spent, allowed,
                 epochs[-1].seconds)  # fmt: skip
        return True


def planned_phases(config: TrainConfig) -> list[tuple[str, int]]:
    """(phase, epochs) of a resolved config. A head on random features learns nothing useful, so --no_pretrained starts
    with all layers; fitting the linear probe counts as one additional epoch."""
    assert config.epochs is not None
    if config.head == "linear_probe":
        phases = [(HEAD, 0 if config.no_pretrained else 1), (FINE_TUNE, config.epochs)]
    else:
        default = 0 if config.no_pretrained else max(1, config.epochs // 5)
        head_epochs = min(default if config.head_epochs is None else config.head_epochs, config.epochs)
        phases = [(HEAD, head_epochs), (FINE_TUNE, config.epochs - head_epochs)]
    return [(phase, epochs) for phase, epochs in phases if epochs]
