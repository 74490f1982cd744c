"""Two-phase fine-tuning: the head on a frozen backbone, then all of it; the best epoch of both phases is kept."""

import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader

import dataset
import model
from spectacles import (
    augment,
    bundle,
    calibration,
    checkpoint,
    cli,
    engine,
    history,
    plots,
    runtime,
    schedule,
    tracking,
)
from spectacles import classifier as classifiers
from spectacles.bundle import BundleInfo
from spectacles.classifier import Classifier
from spectacles.config import TrainConfig, to_plain
from spectacles.errors import UserError
from spectacles.history import Epoch
from spectacles.loading import EpochSampler, Sample, make_loader
from spectacles.records import DatasetReport, TrainReport
from spectacles.run_dir import RunDir, write_csv
from spectacles.runtime import derive_seed

log = logging.getLogger("spectacles")

HEAD, FINE_TUNE = "head", "fine_tune"
ENOUGH_TO_CALIBRATE = 50
"""Validation images below which a fitted temperature is noise (it overfits to 0 or infinity) and 1 is kept."""
PROFILED = ("brightness", "contrast", "sharpness")


@dataclass
class Training:
    """What both phases share."""

    settings: engine.Settings
    classifier: Classifier
    train_loader: DataLoader[Sample]
    sampler: EpochSampler
    val_loader: DataLoader[Sample]
    info: BundleInfo
    bundle: Path
    checkpoint: Path
    history: list[Epoch]

    @property
    def config(self) -> TrainConfig:
        return self.settings.config


def run(config: TrainConfig, run_dir: RunDir) -> TrainReport:
    """Trains, and leaves the bundle of the best epoch, history.csv and curves.png."""
    started = time.monotonic()
    training = prepare(config, run_dir)
    if config.resume and training.checkpoint.is_file():
        resume(training)
    _announce(training)
    try:
        for phase, epochs in phases(config):
            if not history.phase_over(training.history, phase, epochs, config.patience):
                with tracking.child_run(phase):
                    run_phase(training, phase, epochs)
    except KeyboardInterrupt:
        _explain_interruption(training, run_dir)
        raise
    finally:
        _save_history(training, run_dir)
    return finish(training, run_dir, time.monotonic() - started)


def resume(training: Training) -> None:
    """Takes up the checkpoint's history. Raises UserError where it belongs to other data or other settings."""
    facts, settings = checkpoint.load_facts(training.checkpoint), _settings(training)
    changed = [name for name in settings if facts["settings"].get(name) != settings[name]]
    if changed:
        name = changed[0]
        raise UserError(
            f"cannot resume: --{name} was {facts['settings'].get(name)} and is {settings[name]}. "
            "Train with what it was, or without --resume from the start."
        )
    training.history = history.from_json(facts["history"])
    if history.best(training.history) is training.history[-1]:
        # The crash may have come between the checkpoint and the bundle of the same epoch.
        _save_bundle(training, checkpoint.load(training.checkpoint)[0], training.history[-1])
    log.info("  resuming after epoch %d", len(training.history))


def _settings(training: Training) -> dict[str, Any]:
    """What the weights depend on: every setting but where and with how many processes, and the data."""
    elsewhere = ("output_dir", "run_name", "device", "num_workers", "resume")
    settings = {name: value for name, value in to_plain(training.config).items() if name not in elsewhere}
    return {**settings, "data": training.info.data_fingerprint}


def phases(config: TrainConfig) -> list[tuple[str, int]]:
    """(phase, epochs). A head on random features learns nothing of use, so --no_pretrained starts with all layers."""
    head_epochs = config.head_epochs
    if head_epochs is None:
        head_epochs = 0 if config.no_pretrained else max(1, config.epochs // 5)
    head_epochs = min(head_epochs, config.epochs)
    planned = [(HEAD, head_epochs), (FINE_TUNE, config.epochs - head_epochs)]
    return [(phase, epochs) for phase, epochs in planned if epochs]


def prepare(config: TrainConfig, run_dir: RunDir) -> Training:
    data = run_dir.load_result("dataset", DatasetReport)
    device = runtime.prepare(runtime.resolve_device(config.device))
    torch.manual_seed(derive_seed(config.seed, "weights"))
    classifier, preprocessing = model.build(config, len(data.classes))
    classifier.to(device, memory_format=torch.channels_last)
    rows = dataset.load_split(run_dir, "train")
    augmentation = augment.build(config, preprocessing)
    train_set = dataset.make_dataset(rows, data.classes, preprocessing, augmentation, config.seed)
    val_set = dataset.make_dataset(dataset.load_split(run_dir, "val"), data.classes, preprocessing)
    workers, pin = runtime.worker_count(config.num_workers, device), device.type == "cuda"
    train_loader, sampler = make_loader(train_set, config.batch_size, workers, config.seed, shuffle=True, pin=pin)
    val_loader, _ = make_loader(val_set, config.batch_size, workers, pin=pin)
    weights = (
        engine.balanced_weights(train_set.labels, len(data.classes)) if config.class_weights == "balanced" else None
    )
    info = BundleInfo(
        backbone=config.backbone,
        classes=tuple(data.classes),
        label_column=data.label_column,
        preprocessing=preprocessing,
        feature_dim=classifier.head.in_features,
        dropout=classifier.dropout.p,
        threshold=None,
        temperature=1.0,
        data_fingerprint=data.fingerprint,
        training_profile=_profile(rows, data.counts["train"]),
        metric=config.metric,
        metric_value=0.0,
        epoch=0,
        phase="",
    )
    settings = engine.Settings(config, device, len(data.classes), weights.to(device) if weights is not None else None)
    folder = run_dir.folder("train")
    return Training(
        settings, classifier, train_loader, sampler, val_loader, info, run_dir.bundle,
        folder / "checkpoint.safetensors", [],
    )  # fmt: skip


def run_phase(training: Training, phase: str, epochs: int) -> None:
    """From the best weights so far (or the checkpoint's), until the phase's epochs or the patience are used up."""
    config, classifier = training.config, training.classifier
    model.set_phase(classifier, phase)
    backbone_lr = config.lr * (1.0 if config.no_pretrained else config.backbone_lr_scale)
    groups = model.parameter_groups(classifier, phase, config.lr, backbone_lr, config.weight_decay)
    optimizer = engine.make_optimizer(config, groups, training.settings.device)
    if history.of_phase(training.history, phase):
        _restore(training, optimizer)
    elif training.history:
        classifier.load_state_dict(bundle.load(training.bundle)[1])
    scaler = torch.amp.GradScaler(enabled=engine.precision(config, training.settings.device) == torch.float16)
    while not history.phase_over(training.history, phase, epochs, config.patience):
        epoch = run_epoch(training, phase, epochs, optimizer, scaler)
        training.history.append(epoch)
        facts = {"history": [asdict(finished) for finished in training.history], "settings": _settings(training)}
        checkpoint.save(training.checkpoint, classifier.state_dict(), optimizer.state_dict(), facts)
        if history.best(training.history) is epoch:
            _save_bundle(training, classifier.state_dict(), epoch)
        _report_epoch(training)


def run_epoch(
    training: Training, phase: str, epochs: int, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Epoch:
    config, started = training.config, time.monotonic()
    own = history.of_phase(training.history, phase)
    steps = len(training.train_loader)
    gains = history.gains(own)

    def rate(step: int) -> float:
        done = len(own) * steps + step
        return schedule.factor(config.scheduler, done, epochs * steps, round(config.warmup_epochs * steps), gains)

    number = len(training.history) + 1
    training.sampler.epoch = number
    model.train_mode(training.classifier, phase, pretrained=not config.no_pretrained)
    train_loss = engine.train_epoch(
        training.classifier, training.train_loader, training.settings, optimizer, scaler, rate, number
    )
    logits, labels = engine.validate(training.classifier, training.val_loader, training.settings)
    scores = engine.score(logits, labels)
    return Epoch(
        epoch=number,
        phase=phase,
        train_loss=train_loss,
        val_loss=scores["log_loss"],
        metric=config.metric,
        value=scores[config.metric],
        val_accuracy=scores["accuracy"],
        val_balanced_accuracy=scores["balanced_accuracy"],
        learning_rate=float(optimizer.param_groups[0]["lr"]),
        seconds=round(time.monotonic() - started, 3),
    )


def finish(training: Training, run_dir: RunDir, seconds: float) -> TrainReport:
    """Loads the kept bundle afresh, scores it once more, fits the temperature, and writes the final bundle."""
    config, best = training.config, history.best(training.history)
    classifier, _, _ = classifiers.load(training.bundle)
    classifier.to(training.settings.device, memory_format=torch.channels_last)
    logits, labels = engine.validate(classifier, training.val_loader, training.settings)
    rescored = engine.score(logits, labels)[config.metric]
    temperature = calibration.fit_temperature(logits, labels) if len(labels) >= ENOUGH_TO_CALIBRATE else 1.0
    model_id = _save_bundle(training, classifier.state_dict(), best, temperature)
    training.checkpoint.unlink(missing_ok=True)
    summary = [
        f"best {config.metric} {best.value:.4f} on validation data, epoch {best.epoch} ({best.phase}); "
        f"read back from the bundle: {rescored:.4f}",
        f"trained {len(training.history)} of {config.epochs} epochs in {seconds:.0f} s",
        f"calibration temperature {temperature:.3f}; model {model_id} in {training.bundle}",
        f"next: python evaluate.py --output_dir {run_dir.output_dir} --run_name {run_dir.name}",
    ]
    folder = run_dir.folder("train")
    return TrainReport(
        summary=summary,
        metrics={
            f"best_val_{config.metric}": best.value,
            "rescored": rescored,
            "best_epoch": float(best.epoch),
            "train_seconds": round(seconds, 1),
            "temperature": temperature,
        },
        artifacts=run_dir.relative(folder / "history.csv", folder / "curves.png", training.bundle),
        backbone=config.backbone,
        model_id=model_id,
        metric=config.metric,
        best_value=best.value,
        best_epoch=best.epoch,
        best_phase=best.phase,
        epochs_run=len(training.history),
        seconds=round(seconds, 1),
    )


def _restore(training: Training, optimizer: torch.optim.Optimizer) -> None:
    state, slots = checkpoint.load(training.checkpoint)
    training.classifier.load_state_dict(state)
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def _save_bundle(training: Training, state: dict[str, Any], epoch: Epoch, temperature: float = 1.0) -> str:
    info = replace(
        training.info, metric_value=epoch.value, epoch=epoch.epoch, phase=epoch.phase, temperature=temperature
    )
    return bundle.save(training.bundle, info, state)


def _profile(rows: pd.DataFrame, counts: dict[str, int]) -> dict[str, Any]:
    spread = {name: {"mean": float(rows[name].mean()), "std": float(rows[name].std(ddof=0))} for name in PROFILED}
    return {"images": counts, **spread}


def _save_history(training: Training, run_dir: RunDir) -> None:
    if not training.history:
        return
    folder, frame = run_dir.folder("train"), history.to_frame(training.history)
    write_csv(folder / "history.csv", frame)
    plots.training_curves(frame.to_dict("records"), folder / "curves.png", training.config.metric)


def _announce(training: Training) -> None:
    config = training.config
    planned = ", ".join(f"{phase} {epochs}" for phase, epochs in phases(config))
    images = len(training.train_loader.dataset)  # type: ignore[arg-type]
    log.info("  %s on %s, %d images of %d px; epochs: %s", config.backbone, training.settings.device, images,
             training.info.preprocessing.image_size, planned)  # fmt: skip
    data = (training.classifier, training.settings, training.info.preprocessing, images)
    seconds = sum(engine.estimate_seconds(*data, phase == FINE_TUNE) * epochs for phase, epochs in phases(config))
    readable = f"{math.ceil(seconds)} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    log.info("  estimated training time: about %s", readable)


def _report_epoch(training: Training) -> None:
    epoch = training.history[-1]
    mark = " *" if history.best(training.history) is epoch else ""
    log.info("  epoch %d/%d %-9s train loss %.4f  val loss %.4f  accuracy %.4f  %s %.4f%s  (%.1f s)",
             epoch.epoch, training.config.epochs, epoch.phase, epoch.train_loss, epoch.val_loss, epoch.val_accuracy,
             epoch.metric, epoch.value, mark, epoch.seconds)  # fmt: skip
    values = {"train_loss": epoch.train_loss, "val_loss": epoch.val_loss, f"val_{epoch.metric}": epoch.value,
              "val_accuracy": epoch.val_accuracy, "val_balanced_accuracy": epoch.val_balanced_accuracy,
              "learning_rate": epoch.learning_rate, "epoch_seconds": epoch.seconds}  # fmt: skip
    tracking.log_metrics(values, step=epoch.epoch)


def _explain_interruption(training: Training, run_dir: RunDir) -> None:
    if not training.history:
        log.info("  interrupted before the first epoch was finished: nothing is kept.")
        return
    best = history.best(training.history)
    log.info("  interrupted. The best so far (epoch %d, %s %.4f) is a complete bundle: %s", best.epoch,
             best.metric, best.value, training.bundle)  # fmt: skip
    log.info("  use it:   python predict.py photo.jpg --bundle %s", training.bundle)
    log.info("  go on:    python train.py --output_dir %s --run_name %s --resume", run_dir.output_dir, run_dir.name)


if __name__ == "__main__":
    cli.main("train", run, TrainConfig, "Fine-tune a backbone in two phases and keep the best epoch of both.")
