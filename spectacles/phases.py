"""A phase of training: the head fitted to features, or gradient descent epoch by epoch."""

import copy
import logging
import time

import numpy as np
import torch
from torch import nn

from spectacles import (
    bundle,
    checkpoint,
    embeddings,
    engines,
    epochs,
    finishing,
    folding,
    history,
    probe,
    recipes,
    runtime,
    schedule,
    stages,
)
from spectacles import classifier as classifiers
from spectacles.border import Border
from spectacles.history import Epoch
from spectacles.training import FINE_TUNE, HEAD, Training

log = logging.getLogger("spectacles")


def run(training: Training, phase: str, count: int) -> None:
    if phase == HEAD and training.config.head == "probe":
        training.keep(fit_probe(training), None)
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
    labels = np.concatenate([training.train.labels] * config.views)
    weights = training.settings.class_weights
    class_weights = None if weights is None else weights.cpu().numpy()
    head = probe.fit_head((seen, labels), (both[count:], training.val.labels), classes, class_weights)
    with torch.no_grad():
        training.classifier.head.weight.copy_(torch.from_numpy(head.weight))
        training.classifier.head.bias.copy_(torch.from_numpy(head.bias))
    log.info("  head fitted to %d features of %d views (C = %g)", seen.shape[1], len(seen), head.strength)
    return training.scored(HEAD, head.train_loss, head.logits(both[count:]), 0.0, started)


def descend(training: Training, phase: str, count: int) -> None:
    """A phase by gradient descent: from the best weights so far (or the checkpoint's), until its epochs, the patience
    or the time are used up."""
    config, device = training.config, training.settings.device
    own = history.of_phase(training.history, phase)
    if training.history and not own:
        training.classifier.load_state_dict(classifiers.network_state(bundle.load(training.bundle)[1]))
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
            training.save_bundle(training.history[-1])
    scaler = torch.amp.GradScaler(enabled=epochs.precision(config, device) == torch.float16)
    border = _border(training, count) if phase == FINE_TUNE and config.cached_views else None
    last_look = finishing.images(training)
    while not history.phase_over(training.history, phase, count, config.patience) and not training.out_of_time(
        last_look
    ):
        training.keep(run_epoch(training, phase, count, optimizer, scaler, border), optimizer)


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
    validating = time.monotonic()
    logits = epochs.validate(classifier, training.val, training.settings)
    training.seconds_an_image = (time.monotonic() - validating) / len(logits)
    return training.scored(phase, loss, logits, float(optimizer.param_groups[0]["lr"]), started)
