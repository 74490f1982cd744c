"""Training in two phases: the head on frozen features, then as much of the backbone as pays; the best epoch is kept."""

import copy
import json
import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import dataset
import model
from spectacles import (
    budget,
    bundle,
    calibration,
    checkpoint,
    cli,
    embeddings,
    engines,
    epochs,
    folding,
    history,
    probe,
    recipes,
    runtime,
    schedule,
    stages,
    tracking,
    training_log,
)
from spectacles import classifier as classifiers
from spectacles.augment import Augmentation
from spectacles.border import Border
from spectacles.bundle import BundleInfo
from spectacles.classifier import Classifier
from spectacles.config import AugmentConfig, TrainConfig, seconds, select, to_plain
from spectacles.epochs import Examples
from spectacles.errors import UserError
from spectacles.folding import Fold
from spectacles.history import Epoch
from spectacles.pixels import Pixels
from spectacles.records import DatasetReport, TrainReport
from spectacles.run_dir import RunDir, write_json
from spectacles.runtime import derive_seed
from spectacles.stages import Stages

log = logging.getLogger("spectacles")

HEAD, FINE_TUNE = "head", "fine_tune"
FEW_ERRORS, LOW_ERROR_RATE = 6, 0.02
"""Below both, fine-tuning is left out: a model with none of fewer than 6 errors is not significantly better (McNemar,
exact, two-sided, p = 0.05), and at most a fiftieth of the images is at stake."""
PROFILED = ("brightness", "contrast", "sharpness")


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

    @property
    def config(self) -> TrainConfig:
        return self.settings.config

    @property
    def bundle(self) -> Path:
        return self.run_dir.bundle

    @property
    def checkpoint(self) -> Path:
        return self.run_dir.folder("train") / "checkpoint.safetensors"


def run(config: TrainConfig, run_dir: RunDir) -> TrainReport:
    """Trains, and leaves the bundle of the best epoch, history.csv and curves.png."""
    training = prepare(config, run_dir)
    with training.pixels:
        if config.resume and training.checkpoint.is_file():
            resume(training)
        _announce(training)
        try:
            for phase, count in phases(training.config):
                if phase == FINE_TUNE and not fine_tuning_pays(training):
                    break
                if not history.phase_over(training.history, phase, count, training.config.patience):
                    with tracking.child_run(phase):
                        run_phase(training, phase, count)
        except KeyboardInterrupt:
            training_log.explain_interruption(training.history, run_dir)
            raise
        finally:
            training_log.save(training.history, training.config.metric, run_dir.folder("train"))
        return finish(training)


def phases(config: TrainConfig) -> list[tuple[str, int]]:
    """(phase, epochs) of a resolved config. A head on random features learns nothing of use, so --no_pretrained
    starts with all layers; the probe's one fit counts as one epoch of its own."""
    assert config.epochs is not None
    if config.head == "probe":
        planned = [(HEAD, 0 if config.no_pretrained else 1), (FINE_TUNE, config.epochs)]
    else:
        default = 0 if config.no_pretrained else max(1, config.epochs // 5)
        head_epochs = min(default if config.head_epochs is None else config.head_epochs, config.epochs)
        planned = [(HEAD, head_epochs), (FINE_TUNE, config.epochs - head_epochs)]
    return [(phase, count) for phase, count in planned if count]


def prepare(config: TrainConfig, run_dir: RunDir) -> Training:
    started = time.monotonic()
    data = run_dir.load_result("dataset", DatasetReport)
    device = runtime.prepare(runtime.resolve_device(config.device))
    rows = dataset.load_split(run_dir, "train", "val")
    config = _plan(config, run_dir, data, rows, device)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    classifier, preprocessing = model.build(config, len(data.classes))
    classifier.to(device, memory_format=torch.channels_last)
    pixels = Pixels(
        rows, preprocessing, run_dir.cache / "pixels", int(config.pixel_cache_gb * 2**30), config.num_workers
    )
    labels = np.array(dataset.class_indices(rows["label"], data.classes), dtype=np.int64)
    places = {split: np.flatnonzero(rows["split"] == split) for split in ("train", "val")}
    train, val = (Examples(pixels, places[split], labels[places[split]]) for split in ("train", "val"))
    weights = epochs.balanced_weights(train.labels, len(data.classes)) if config.class_weights == "balanced" else None
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
        training_profile=_profile(rows[rows["split"] == "train"], data.counts["train"]),
        metric=config.metric,
        metric_value=0.0,
        epoch=0,
        phase="",
    )
    on_device = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
    return Training(
        settings=epochs.Settings(config, device, len(data.classes), on_device),
        classifier=classifier,
        stages=stages.stage_modules(classifier),
        pixels=pixels,
        train=train,
        val=val,
        augmentation=Augmentation(select(config, AugmentConfig), preprocessing),
        info=info,
        run_dir=run_dir,
        started=started,
    )


def _plan(
    config: TrainConfig, run_dir: RunDir, data: DatasetReport, rows: pd.DataFrame, device: torch.device
) -> TrainConfig:
    """Everything decided that the person left open, and kept in plan.json: a time budget is measured only once."""
    kept, reasons = run_dir.folder("train") / "plan.json", []
    if config.time_budget is None:
        plan = recipes.resolve(config)
    elif config.resume and kept.is_file():
        before = json.loads(kept.read_text(encoding="utf-8"))
        plan = recipes.resolve(replace(config, **{name: before[name] for name in budget.CHOSEN}))
    else:
        images = {split: sum(data.counts[split].values()) for split in ("train", "val")}

        def untrained(candidate: TrainConfig) -> Classifier:
            return model.build(replace(candidate, no_pretrained=True, weights=None), len(data.classes))[0]

        decoding = budget.decoding_seconds(rows["path"].tolist(), config)
        plan, reasons = budget.choose(config, images["train"], images["val"], untrained, decoding, device)
    write_json(kept, to_plain(plan))
    for line in reasons:
        log.info("  %s", line)
    return plan


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
    log.info("  resuming after epoch %d", len(training.history))


def _settings(training: Training) -> dict[str, Any]:
    """What the weights depend on: every setting but where and with how many threads, and the data."""
    elsewhere = ("output_dir", "run_name", "device", "num_workers", "resume", "pixel_cache_gb", "time_budget")
    settings = {name: value for name, value in to_plain(training.config).items() if name not in elsewhere}
    return {**settings, "data": training.info.data_fingerprint}


def fine_tuning_pays(training: Training) -> bool:
    """Is there anything to gain that could be told from chance? Asked once, of the head's validation errors."""
    config = training.config
    if config.fine_tune != "auto" or not training.history:
        return config.fine_tune != "never"
    head = history.best(history.of_phase(training.history, HEAD))
    images = len(training.val.labels)
    errors = round((1 - head.val_accuracy) * images)
    if errors >= FEW_ERRORS or errors > LOW_ERROR_RATE * images:
        return True
    log.info("  fine-tuning is left out: the head alone makes %d errors on %d validation images, too few for anything "
             "better to be told from chance (--fine_tune always insists)", errors, images)  # fmt: skip
    return False


def run_phase(training: Training, phase: str, count: int) -> None:
    if phase == HEAD and training.config.head == "probe":
        _finish_epoch(training, fit_probe(training), None)
    else:
        descend(training, phase, count)


def fit_probe(training: Training) -> Epoch:
    """The head fitted to convergence on features; regularisation chosen on validation data."""
    config, started, classes = training.config, time.monotonic(), len(training.info.classes)

    def features(places: np.ndarray, view: embeddings.View | None = None) -> np.ndarray:
        cache = training.run_dir.cache / "embeddings"
        return embeddings.embed(
            training.classifier.backbone, config.backbone, training.pixels, cache, training.settings.device,
            config.batch_size, config.engine, places, view,
        )  # fmt: skip

    both = features(np.concatenate([training.train.positions, training.val.positions]))
    count = len(training.train.labels)
    views = [embeddings.View(number, training.augmentation) for number in range(1, config.views)]
    seen = np.concatenate([both[:count], *(features(training.train.positions, view) for view in views)])
    labels = np.tile(training.train.labels, config.views)
    weights = training.settings.class_weights
    sample_weights = None if weights is None else weights.cpu().numpy()[labels]
    head = probe.fit_head((seen, labels), (both[count:], training.val.labels), classes, sample_weights)
    with torch.no_grad():
        training.classifier.head.weight.copy_(torch.from_numpy(head.weight))
        training.classifier.head.bias.copy_(torch.from_numpy(head.bias))
    log.info("  head fitted to %d features of %d views (C = %g)", seen.shape[1], len(seen), head.strength)
    return _to_epoch(training, HEAD, head.train_loss, head.logits(both[count:]), 0.0, started)


def descend(training: Training, phase: str, count: int) -> None:
    """A phase by gradient descent: from the best weights so far (or the checkpoint's), until its epochs, the patience
    or the time are used up."""
    config, device = training.config, training.settings.device
    own = history.of_phase(training.history, phase)
    if training.history and not own:
        training.classifier.load_state_dict(bundle.load(training.bundle)[1])
    if phase == FINE_TUNE and config.batch_norm == "fold":
        _fold(training)
    rate = config.head_lr if phase == HEAD else config.lr
    assert rate is not None
    groups = stages.parameter_groups(
        training.classifier, training.stages, rate, config.weight_decay, config.layer_decay
    )
    optimizer = epochs.make_optimizer(config, groups, device)
    if own:
        state, slots = checkpoint.load(training.checkpoint)
        training.classifier.load_state_dict(state)
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
        if history.best(training.history) is training.history[-1]:
            # The crash may have come between the checkpoint and the bundle of the same epoch.
            _save_bundle(training, training.history[-1])
    scaler = torch.amp.GradScaler(enabled=epochs.precision(config, device) == torch.float16)
    border = _border(training, count) if phase == FINE_TUNE and config.cached_views else None
    while not history.phase_over(training.history, phase, count, config.patience) and not _out_of_time(training):
        _finish_epoch(training, run_epoch(training, phase, count, optimizer, scaler, border), optimizer)


def _fold(training: Training) -> None:
    """Folds BatchNorm on a copy first: a backbone on which that is not exact keeps it as it is."""
    preprocessing, backbone = training.info.preprocessing, training.classifier.backbone
    photos = runtime.to_device(engines.photographs(preprocessing, count=2), training.settings.device)
    folded = copy.deepcopy(backbone)
    try:
        training.folds = folding.fold_batchnorm(folded, preprocessing.normalize(photos))
    except ValueError as error:
        log.info("  BatchNorm is kept as it is: %s", error)
    else:
        training.classifier.backbone = folded


def _border(training: Training, count: int) -> Border:
    config = training.config
    assert config.unfreeze is not None
    learning = stages.depth(config.unfreeze, len(training.stages), 0, count)
    frozen = stages.frozen(training.stages, learning)
    views = [embeddings.View(number, training.augmentation) for number in range(2, 2 + config.cached_views)]
    return Border(training.classifier, frozen, training.train, views, training.settings,
                  training.run_dir.cache, config.pixel_cache_gb)  # fmt: skip


def run_epoch(
    training: Training,
    phase: str,
    count: int,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    border: Border | None,
) -> Epoch:
    config, classifier, started = training.config, training.classifier, time.monotonic()
    assert config.unfreeze is not None and config.image_size is not None
    own = history.of_phase(training.history, phase)
    gains, number = history.gains(own), len(training.history) + 1
    learning = stages.depth(config.unfreeze, len(training.stages), len(own), count) if phase == FINE_TUNE else 0
    stages.freeze_below(classifier, training.stages, learning)
    stages.train_mode(classifier, config.batch_norm)
    steps = len(epochs.order(config.seed, number, len(training.train.labels), config.batch_size))

    def rate(step: int) -> float:
        done = len(own) * steps + step
        return schedule.factor(config.scheduler, done, count * steps, round(config.warmup_epochs * steps), gains)

    network: nn.Module = classifier
    if border is None:
        side = recipes.side(config, len(own), count) if phase == FINE_TUNE else config.image_size
        batches = epochs.augmented(training.train, training.augmentation, training.settings, number, side)
    else:
        network, batches = border.network, border.batches(number)
    loss = epochs.train_epoch(network, batches, training.settings, optimizer, scaler, rate, number, steps)
    logits = epochs.validate(classifier, training.val, training.settings)
    return _to_epoch(training, phase, loss, logits, float(optimizer.param_groups[0]["lr"]), started)


def _to_epoch(
    training: Training, phase: str, loss: float, logits: np.ndarray, learning_rate: float, started: float
) -> Epoch:
    scores = epochs.score(logits, training.val.labels)
    return Epoch(
        epoch=len(training.history) + 1,
        phase=phase,
        train_loss=loss,
        val_loss=scores["loss"],
        metric=training.config.metric,
        value=scores[training.config.metric],
        val_accuracy=scores["accuracy"],
        val_balanced_accuracy=scores["balanced_accuracy"],
        learning_rate=learning_rate,
        seconds=round(time.monotonic() - started, 3),
    )


def _finish_epoch(training: Training, epoch: Epoch, optimizer: torch.optim.Optimizer | None) -> None:
    """Kept first as a checkpoint, then, where it is the best so far, as the bundle."""
    training.history.append(epoch)
    facts = {"history": [asdict(finished) for finished in training.history], "settings": _settings(training)}
    slots = optimizer.state_dict() if optimizer else {"state": {}}
    checkpoint.save(training.checkpoint, training.classifier.state_dict(), slots, facts)
    if history.best(training.history) is epoch:
        _save_bundle(training, epoch)
    training_log.tell(training.history, sum(count for _, count in phases(training.config)))


def _out_of_time(training: Training) -> bool:
    """Would one more epoch like the last one overrun the time budget?"""
    own = history.of_phase(training.history, FINE_TUNE)
    if training.config.time_budget is None or not own:
        return False
    spent, allowed = time.monotonic() - training.started, seconds(training.config.time_budget)
    if spent + own[-1].seconds <= allowed * budget.OVERRUN:
        return False
    log.info("  the time budget is used up: %.0f of %.0f s are spent and an epoch takes %.0f s", spent, allowed,
             own[-1].seconds)  # fmt: skip
    return True


def finish(training: Training) -> TrainReport:
    """Loads the kept bundle afresh, scores it once more, fits the temperature, and writes the final bundle."""
    config, best = training.config, history.best(training.history)
    classifier, _, _ = classifiers.load(training.bundle)
    training.classifier, training.folds = classifier, []
    classifier.to(training.settings.device, memory_format=torch.channels_last)
    logits, labels = epochs.validate(classifier, training.val, training.settings), training.val.labels
    rescored = epochs.score(logits, labels)[config.metric]
    temperature = calibration.temperature_for(logits, labels)
    model_id = _save_bundle(training, best, temperature)
    training.checkpoint.unlink(missing_ok=True)
    elapsed, run_dir = time.monotonic() - training.started, training.run_dir
    summary = [
        f"best {config.metric} {best.value:.4f} on validation data, epoch {best.epoch} ({best.phase}); "
        f"read back from the bundle: {rescored:.4f}",
        f"trained {len(training.history)} epochs in {elapsed:.0f} s",
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
            "train_seconds": round(elapsed, 1),
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
        seconds=round(elapsed, 1),
    )


def _save_bundle(training: Training, epoch: Epoch, temperature: float = 1.0) -> str:
    info = replace(
        training.info, metric_value=epoch.value, epoch=epoch.epoch, phase=epoch.phase, temperature=temperature
    )
    state = folding.unfolded_state(training.classifier.state_dict(), training.folds, "backbone.")
    return bundle.save(training.bundle, info, state)


def _profile(rows: pd.DataFrame, counts: dict[str, int]) -> dict[str, Any]:
    spread = {name: {"mean": float(rows[name].mean()), "std": float(rows[name].std(ddof=0))} for name in PROFILED}
    return {"images": counts, **spread}


def _announce(training: Training) -> None:
    config, images = training.config, len(training.train.labels)
    planned = ", ".join(f"{phase} {count}" for phase, count in phases(config))
    log.info("  %s on %s, %d images of %d px; unfreeze %s; epochs: %s", config.backbone, training.settings.device,
             images, training.info.preprocessing.image_size, config.unfreeze, planned)  # fmt: skip
    if config.time_budget is not None:
        return  # the plan has said it
    rates = budget.measure(config, training.classifier, training.settings.device)
    decoding = budget.decoding_seconds(training.pixels.paths, config)
    seconds_needed = budget.estimate(config, rates, decoding, images, len(training.val.labels))
    log.info("  estimated training time: about %s", training_log.readable(seconds_needed))


if __name__ == "__main__":
    cli.main("train", run, TrainConfig, "Fine-tune a backbone in two phases and keep the best epoch of both.")
