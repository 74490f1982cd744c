"""One training: what its phases share, and how a finished epoch is kept and taken up again."""

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectacles.core import collectives, distributed
from spectacles.core.config import TrainConfig, seconds, to_plain
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir
from spectacles.data.pixel_cache import Pixels
from spectacles.models import bn_folding
from spectacles.models.bn_folding import Fold
from spectacles.models.bundle import BundleInfo, save_bundle
from spectacles.models.classifier import Classifier
from spectacles.models.freezing import LayerGroups
from spectacles.training import checkpoint, epoch_log, time_budget
from spectacles.training.augmentation import Augmentation
from spectacles.training.batches import Examples, StepSettings, validation_scores
from spectacles.training.checkpoint import Checkpoint, State
from spectacles.training.history import Epoch, best_epoch, from_json, of_phase

log = logging.getLogger("spectacles")

HEAD, FINE_TUNE = "head", "fine_tune"
NOT_IN_THE_WEIGHTS = (
    "output_dir", "run_name", "device", "num_workers", "resume", "pixel_cache_gb", "galleries", "time_budget",
    "threshold_for", "target_accuracy", "ood_quantile", "checkpoint_every",
)  # fmt: skip
"""Settings that may differ when a training is resumed: where and with how many threads, and what is decided last."""


@dataclass
class Training:
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
    rows: pd.DataFrame
    """Of the training and validation images."""
    history: list[Epoch] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    seconds_an_image: float = 0.0
    """That validation took last."""
    best: State = field(default_factory=dict)
    """The network of the best epoch so far, as its bundle has it, on the CPU."""
    interrupted: Checkpoint | None = None
    """Of the phase that is to go on."""

    @property
    def config(self) -> TrainConfig:
        return self.settings.config

    @property
    def bundle(self) -> Path:
        return self.run_dir.bundle

    @property
    def folder(self) -> Path:
        return self.run_dir.folder("train")

    def resume(self) -> None:
        """Takes up the newest checkpoint, if there is one. Raises UserError where it belongs to other data or other
        settings."""
        found = checkpoint.load(self.folder)
        if found is None:
            return
        self._check_settings(found.facts["settings"])
        self.history = from_json(found.facts["history"])
        self.started -= found.facts["spent"]
        self.best, self.interrupted = found.parts.get("best", {}), found
        log.info("  resuming after epoch %d%s", len(self.history),
                 f" and {found.facts['step']} steps" * bool(found.facts["step"]))  # fmt: skip
        if self.history:
            self.save_bundle()  # the crash may have come between the checkpoint and the bundle of the same epoch

    def in_the_middle_of(self, phase: str) -> bool:
        """Of one of its epochs, where it was interrupted."""
        facts = self.interrupted.facts if self.interrupted else {}
        return facts.get("phase") == phase and facts["step"] > 0

    def _check_settings(self, before: dict[str, Any]) -> None:
        settings = self._decisive_settings()
        changed = [name for name in settings if before.get(name) != settings[name]]
        if not changed:
            return
        if "data" in changed:
            told = checkpoint.difference(self.folder, self.rows)
            raise UserError(f"cannot resume: {told}. Train without --resume from the start.")
        told = "; ".join(f"--{name} was {before.get(name)} and is {settings[name]}" for name in changed)
        raise UserError(
            f"cannot resume: {told}. Train with what {'it was' if len(changed) == 1 else 'they were'}, or without "
            "--resume from the start."
        )

    def _decisive_settings(self) -> dict[str, Any]:
        """What the weights depend on."""
        settings = {name: value for name, value in to_plain(self.config).items() if name not in NOT_IN_THE_WEIGHTS}
        return {**settings, "data": checkpoint.fingerprint(self.rows)}

    def scored(self, phase: str, loss: float, logits: np.ndarray, learning_rate: float, started: float) -> Epoch:
        """The epoch that ends now, from its validation logits (N, K)."""
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

    def keep(self, epoch: Epoch, network: Classifier, state: Checkpoint) -> None:
        """First as a checkpoint, then, where it is the best so far, as the bundle. `network` is what was scored;
        `state` is what the next step depends on."""
        self.history.append(epoch)
        best = best_epoch(self.history) is epoch
        if best:
            unfolded = bn_folding.unfolded_state(network.state_dict(), self.folds, "backbone.")
            self.best = {name: value.detach().cpu().clone() for name, value in unfolded.items()}
        self.save(state)
        if best:
            self.save_bundle()
        if distributed.is_main_process():
            epoch_log.tell(self.history, sum(count for _, count in planned(self.config)))

    def save(self, state: Checkpoint) -> None:
        if not distributed.is_main_process():
            return
        facts = {
            "history": [asdict(finished) for finished in self.history],
            "settings": self._decisive_settings(),
            "spent": time.monotonic() - self.started,
        }
        parts = {"best": self.best} | state.parts
        checkpoint.save(self.folder, Checkpoint(facts | state.facts, parts, state.slots))

    def save_bundle(self) -> None:
        """Of the best epoch, uncalibrated: what serves, should training end here."""
        if not distributed.is_main_process():
            return
        epoch = best_epoch(self.history)
        info = replace(self.info, metric_value=epoch.value, epoch=epoch.epoch, phase=epoch.phase)
        save_bundle(self.bundle, info, self.best)

    def out_of_time(self, images_at_the_end: int) -> bool:
        """Would one more epoch like the last one, and a look at so many images after it, overrun the time budget?"""
        return bool(collectives.broadcast_object(self._out_of_time(images_at_the_end), self.settings.device))

    def _out_of_time(self, images_at_the_end: int) -> bool:
        own = of_phase(self.history, FINE_TUNE)
        if self.config.time_budget is None or not own:
            return False
        spent, allowed = time.monotonic() - self.started, seconds(self.config.time_budget)
        needed = own[-1].seconds + images_at_the_end * self.seconds_an_image
        if spent + needed <= allowed * time_budget.OVERRUN:
            return False
        log.info("  the time budget is used up: %.0f of %.0f s are spent and an epoch takes %.0f s", spent, allowed,
                 own[-1].seconds)  # fmt: skip
        return True


def planned(config: TrainConfig) -> list[tuple[str, int]]:
    """(phase, epochs) of a resolved config. A head on random features learns nothing of use, so --no_pretrained
    starts with all layers; the linear probe's one fit counts as one epoch of its own."""
    assert config.epochs is not None
    if config.head == "linear_probe":
        phases = [(HEAD, 0 if config.no_pretrained else 1), (FINE_TUNE, config.epochs)]
    else:
        default = 0 if config.no_pretrained else max(1, config.epochs // 5)
        head_epochs = min(default if config.head_epochs is None else config.head_epochs, config.epochs)
        phases = [(HEAD, head_epochs), (FINE_TUNE, config.epochs - head_epochs)]
    return [(phase, count) for phase, count in phases if count]
