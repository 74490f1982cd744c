"""Fine-tune a backbone in two phases, the head on frozen features first, and keep the best epoch of both."""

from spectacles import cli
from spectacles.core.config import AugmentConfig, TrainConfig

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.main("train", TrainConfig, __doc__)

import json
import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

import model
from spectacles.core import distributed
from spectacles.core.config import select, to_plain
from spectacles.core.device import cpu_count, derive_seed, resolve_device
from spectacles.core.errors import UserError
from spectacles.core.fileio import write_json
from spectacles.core.results import DatasetReport, TrainReport
from spectacles.core.run_dir import RunDir
from spectacles.core.wording import duration
from spectacles.data import file_index, label_sets, unlabelled
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import Preprocessing
from spectacles.data.schemas import load_index, load_split
from spectacles.inference.registered_bundle import folder_of
from spectacles.metrics import prior_shift
from spectacles.models import freezing, recipes
from spectacles.models.bundle import BundleInfo
from spectacles.models.classifier import Classifier
from spectacles.models.torch_device import prepare_device
from spectacles.tracking import tracking
from spectacles.training import (
    checkpoint,
    collectives,
    distillation,
    epoch_log,
    finalize,
    head_alone,
    phases,
    time_budget,
)
from spectacles.training.augmentation import Augmentation
from spectacles.training.batches import Examples, StepSettings
from spectacles.training.history import best_epoch, epochs_of, phase_finished
from spectacles.training.train_loop import balanced_weights
from spectacles.training.trainer import FINE_TUNE, HEAD, Trainer, planned_phases

log = logging.getLogger("spectacles")

FEW_ERRORS, LOW_ERROR_RATE = 6, 0.02
"""Below both, fine-tuning is skipped: a model with none of fewer than 6 errors is not significantly better (McNemar,
exact, two-sided, p = 0.05), and at most a fiftieth of the images is at stake."""
PROFILED = ("brightness", "contrast", "sharpness")


def run(config: TrainConfig, run_dir: RunDir) -> TrainReport:
    """Trains, and leaves the bundle of the best epoch, history.csv and curves.png."""
    device = collectives.process_device(torch.device(resolve_device(config.device)))
    with ExitStack() as stack:
        with collectives.process_group(device):
            trainer = prepare(config, run_dir, device)
            stack.enter_context(trainer.pixels)
            if trainer.distillation:
                stack.enter_context(trainer.distillation.pixels)
            _train(trainer)
        if not distributed.is_main_process():
            raise SystemExit(0)  # the main process does the rest alone
        head_alone.refit(trainer, stack)
        return finalize.run(trainer)


def _train(trainer: Trainer) -> None:
    config, run_dir = trainer.config, trainer.run_dir
    if config.resume:
        trainer.resume()
    if distributed.is_main_process():
        if not config.resume:
            checkpoint.discard(trainer.folder)
        checkpoint.save_rows(trainer.folder, trainer.rows)
        _announce(trainer)
    try:
        for phase, epochs in planned_phases(config):
            if phase == FINE_TUNE and not fine_tuning_pays(trainer):
                break
            finished = phase_finished(trainer.history, phase, epochs, config.patience)
            if trainer.interrupted_within_epoch(phase) or not finished:
                with tracking.child_run(phase):
                    phases.run(trainer, phase, epochs)
    except KeyboardInterrupt:
        epoch_log.log_interruption(trainer.history, run_dir)
        raise
    finally:
        if distributed.is_main_process():
            epoch_log.write_history(trainer.history, config.metric, run_dir.folder("train"))


def prepare(config: TrainConfig, run_dir: RunDir, device: torch.device) -> Trainer:
    """Data, network and settings, ready to train. Raises UserError for settings that do not work with these data."""
    started = time.monotonic()
    data = run_dir.load_result("dataset", DatasetReport)
    teacher = distillation.load_teacher(folder_of(config.teacher, config.output_dir)) if config.teacher else None
    rows = load_split(run_dir, "train", "val")
    file_index.require_unchanged(rows)
    labels = label_sets.encode(rows["label"], data.classes, data.multi_label)
    places = {split: np.flatnonzero(rows["split"] == split) for split in ("train", "val")}
    finalize.threshold_goal(config, labels[places["val"]], len(data.classes))
    prepare_device(device)
    size_is_open = config.image_size is None and config.time_budget is None
    config = _plan(config, run_dir, data, rows, device)
    _check_processes(config)
    rows = _with_unlabelled(rows, config, run_dir)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    classifier, preprocessing = model.build(config, len(data.classes))
    preprocessing = replace(preprocessing, value_ranges=data.value_ranges)
    classifier.to(device, memory_format=torch.channels_last)
    cache_bytes = int(config.pixel_cache_gb * 2**30 / distributed.local_world_size()) if config.galleries else 0
    pixels = Pixels(rows, preprocessing, run_dir.cache / "pixels", cache_bytes, config.num_workers)
    train, val = (Examples(pixels, places[split], labels[places[split]]) for split in ("train", "val"))
    weights = balanced_weights(train.labels, len(data.classes)) if config.class_weights == "balanced" else None
    shares = prior_shift.fitted_shares(train.labels, len(data.classes), weights)
    on_device = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
    trainer = Trainer(
        settings=StepSettings(config, device, len(data.classes), on_device, data.multi_label),
        classifier=classifier,
        layer_groups=freezing.layer_groups_of(classifier),
        pixels=pixels,
        train=train,
        val=val,
        augmentation=Augmentation(select(config, AugmentConfig), preprocessing).to(device),
        info=_info(config, data, rows, classifier, preprocessing, shares),
        run_dir=run_dir,
        started=started,
        rows=rows,
        size_is_open=size_is_open,
    )
    if teacher is not None:
        examples = distillation.with_unlabelled(train, np.flatnonzero(rows["split"] == unlabelled.SPLIT))
        trainer.distillation = distillation.prepare(teacher, trainer.info, examples, rows, config, run_dir, device)
    return trainer


def _with_unlabelled(rows: pd.DataFrame, config: TrainConfig, run_dir: RunDir) -> pd.DataFrame:
    """Where some are given, photos without labels come after the others."""
    if config.unlabelled is None:
        return rows
    table = run_dir.folder("train") / "unlabelled.csv"
    found = unlabelled.read_folder(config.unlabelled, load_index(run_dir), config.num_workers or cpu_count(), table)
    log.info("  %s", unlabelled.describe(table))
    return pd.concat([rows, found.reindex(columns=rows.columns, fill_value="")], ignore_index=True)


def _plan(
    config: TrainConfig, run_dir: RunDir, data: DatasetReport, rows: pd.DataFrame, device: torch.device
) -> TrainConfig:
    """`config` with everything decided that was left open. Saved as plan.json: --time_budget measures only once."""
    path = run_dir.folder("train") / "plan.json"
    reasons = []
    if config.time_budget is None:
        plan = recipes.resolve(config)
    elif not distributed.is_main_process():
        plan = recipes.resolve(config)  # until the main process sends its plan
    elif config.resume and path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        plan = recipes.resolve(replace(config, **{name: saved[name] for name in time_budget.CHOSEN}))
    else:

        def untrained(candidate: TrainConfig) -> Classifier:
            return model.build(
                replace(candidate, no_pretrained=True, weights=None, epoch_share=None), len(data.classes)
            )[0]

        decoding = time_budget.decoding_seconds(rows["path"].tolist(), config)
        plan, reasons = time_budget.choose(
            config, data.images["train"], data.images["val"], untrained, decoding, device
        )
    if distributed.is_main_process():
        write_json(path, to_plain(plan))
    for line in reasons:
        log.info("  %s", line)
    chosen = {name: value for name, value in to_plain(plan).items() if name in time_budget.CHOSEN}
    return recipes.resolve(replace(config, **collectives.broadcast_object(chosen)))


def _check_processes(config: TrainConfig) -> None:
    """Raises UserError for settings that do not work with several processes."""
    if distributed.world_size() == 1:
        return
    if config.batch_norm == "train":
        raise UserError(
            "--batch_norm train (the default with --no_pretrained) needs a single process: leave it out, or train in "
            "one process."
        )
    if config.batch_size < 2 * distributed.world_size():
        raise UserError(
            f"--batch_size {config.batch_size} is for all {distributed.world_size()} processes together: use at least "
            f"{2 * distributed.world_size()}."
        )


def _info(
    config: TrainConfig,
    data: DatasetReport,
    rows: pd.DataFrame,
    classifier: Classifier,
    preprocessing: Preprocessing,
    class_shares: tuple[float, ...],
) -> BundleInfo:
    """What is known before training; the rest is decided at the end."""
    return BundleInfo(
        backbone=config.backbone,
        classes=tuple(data.classes),
        label_column=data.label_column,
        multi_label=data.multi_label,
        preprocessing=preprocessing,
        feature_dim=classifier.head.in_features,
        dropout=classifier.dropout.p,
        threshold=None,
        temperature=1.0,
        data_fingerprint=data.fingerprint,
        training_profile=_profile(rows[rows["split"] == "train"], data.counts["train"]),
        class_shares=class_shares,
        metric=config.metric,
        metric_value=0.0,
        epoch=0,
        phase="",
    )


def _profile(rows: pd.DataFrame, counts: dict[str, int]) -> dict[str, Any]:
    spread = {name: {"mean": float(rows[name].mean()), "std": float(rows[name].std(ddof=0))} for name in PROFILED}
    return {"images": counts, **spread}


def fine_tuning_pays(trainer: Trainer) -> bool:
    """Whether fine-tuning could gain enough to be told from chance, judged by the head's validation errors."""
    config = trainer.config
    if config.fine_tune != "auto" or not trainer.history:
        return config.fine_tune != "never"
    head = best_epoch(epochs_of(trainer.history, HEAD))
    images = len(trainer.val.labels)
    errors = round((1 - head.val_accuracy) * images)
    if errors >= FEW_ERRORS or errors > LOW_ERROR_RATE * images:
        return True
    log.info("  fine-tuning is skipped: the head alone makes %d errors on %d validation images, too few to tell an "
             "improvement from chance (--fine_tune always runs it anyway)", errors, images)  # fmt: skip
    return False


def _announce(trainer: Trainer) -> None:
    config, images = trainer.config, len(trainer.examples.labels)
    epochs = ", ".join(f"{phase} {count}" for phase, count in planned_phases(config))
    log.info("  %s on %s, %d images of %d px; unfreeze %s; epochs: %s", config.backbone, trainer.settings.device,
             images, trainer.info.preprocessing.image_size, config.unfreeze, epochs)  # fmt: skip
    if config.time_budget is not None:
        return  # the plan includes an estimate
    rates = time_budget.measure(config, trainer.classifier, trainer.settings.device)
    decoding = time_budget.decoding_seconds(trainer.pixels.paths, config)
    seconds_needed = time_budget.estimate(config, rates, decoding, images, len(trainer.val.labels))
    log.info("  estimated training time: about %s", duration(seconds_needed))
