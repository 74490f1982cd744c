"""One training: what its phases share, and how a finished epoch is kept and taken up again."""

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectacles import budget, bundle, checkpoint, epochs, folding, history, training_log
from spectacles.augment import Augmentation
from spectacles.bundle import BundleInfo
from spectacles.classifier import Classifier
from spectacles.config import TrainConfig
from spectacles.epochs import Examples
from spectacles.errors import UserError
from spectacles.folding import Fold
from spectacles.history import Epoch
from spectacles.pixels import Pixels
from spectacles.run_dir import RunDir
from spectacles.settings import seconds, to_plain
from spectacles.stages import Stages

log = logging.getLogger("spectacles")

HEAD, FINE_TUNE = "head", "fine_tune"
NOT_IN_THE_WEIGHTS = (
    "output_dir", "run_name", "device", "num_workers", "resume", "pixel_cache_gb", "galleries", "time_budget",
    "threshold_for", "sure", "familiar",
)  # fmt: skip
"""Settings that may differ when a training is resumed: where and with how many threads, and what is decided last."""


@dataclass
class Training:
    """What the phases share."""

    settings: epochs.Settings
    classifier: Classifier
    stages: Stages
    pixels: Pixels
    train: Examples
    val: Examples
    augmentation: Augmentation
    info: BundleInfo
    run_dir: RunDir
    started: float
    history: list[Epoch] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    seconds_an_image: float = 0.0
    """That validation took last."""

    @property
    def config(self) -> TrainConfig:
        return self.settings.config

    @property
    def bundle(self) -> Path:
        return self.run_dir.bundle

    @property
    def checkpoint(self) -> Path:
        return self.run_dir.folder("train") / "checkpoint.safetensors"

    def resume(self) -> None:
        """Takes up the checkpoint's history. Raises UserError where it belongs to other data or other settings."""
        facts, settings = checkpoint.load_facts(self.checkpoint), self._decisive_settings()
        changed = [name for name in settings if facts["settings"].get(name) != settings[name]]
        if changed:
            name = changed[0]
            raise UserError(
                f"cannot resume: --{name} was {facts['settings'].get(name)} and is {settings[name]}. "
                "Train with what it was, or without --resume from the start."
            )
        self.history = history.from_json(facts["history"])
        log.info("  resuming after epoch %d", len(self.history))

    def _decisive_settings(self) -> dict[str, Any]:
        """What the weights depend on."""
        settings = {name: value for name, value in to_plain(self.config).items() if name not in NOT_IN_THE_WEIGHTS}
        return {**settings, "data": self.info.data_fingerprint}

    def scored(self, phase: str, loss: float, logits: np.ndarray, learning_rate: float, started: float) -> Epoch:
        """The epoch that ends now, from its validation logits (N, K)."""
        scores = epochs.score(logits, self.val.labels)
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

    def keep(self, epoch: Epoch, optimizer: torch.optim.Optimizer | None) -> None:
        """First as a checkpoint, then, where it is the best so far, as the bundle."""
        self.history.append(epoch)
        facts = {"history": [asdict(finished) for finished in self.history], "settings": self._decisive_settings()}
        slots = optimizer.state_dict() if optimizer else {"state": {}}
        checkpoint.save(self.checkpoint, self.classifier.state_dict(), slots, facts)
        if history.best(self.history) is epoch:
            self.save_bundle(epoch)
        training_log.tell(self.history, sum(count for _, count in planned(self.config)))

    def save_bundle(self, epoch: Epoch) -> None:
        """Of the weights as they are, uncalibrated: what serves, should training end here."""
        info = replace(self.info, metric_value=epoch.value, epoch=epoch.epoch, phase=epoch.phase)
        bundle.save(self.bundle, info, folding.unfolded_state(self.classifier.state_dict(), self.folds, "backbone."))

    def out_of_time(self, images_at_the_end: int) -> bool:
        """Would one more epoch like the last one, and a look at so many images after it, overrun the time budget?"""
        own = history.of_phase(self.history, FINE_TUNE)
        if self.config.time_budget is None or not own:
            return False
        spent, allowed = time.monotonic() - self.started, seconds(self.config.time_budget)
        needed = own[-1].seconds + images_at_the_end * self.seconds_an_image
        if spent + needed <= allowed * budget.OVERRUN:
            return False
        log.info("  the time budget is used up: %.0f of %.0f s are spent and an epoch takes %.0f s", spent, allowed,
                 own[-1].seconds)  # fmt: skip
        return True


def planned(config: TrainConfig) -> list[tuple[str, int]]:
    """(phase, epochs) of a resolved config. A head on random features learns nothing of use, so --no_pretrained
    starts with all layers; the probe's one fit counts as one epoch of its own."""
    assert config.epochs is not None
    if config.head == "probe":
        phases = [(HEAD, 0 if config.no_pretrained else 1), (FINE_TUNE, config.epochs)]
    else:
        default = 0 if config.no_pretrained else max(1, config.epochs // 5)
        head_epochs = min(default if config.head_epochs is None else config.head_epochs, config.epochs)
        phases = [(HEAD, head_epochs), (FINE_TUNE, config.epochs - head_epochs)]
    return [(phase, count) for phase, count in phases if count]
