"""A phase of training: the head fitted to features, or gradient descent epoch by epoch."""

import copy
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from timm.utils.model_ema import ModelEmaV3

from spectacles.core import collectives, distributed, signals
from spectacles.core.device import to_device
from spectacles.core.errors import UserError
from spectacles.core.signals import Stopped
from spectacles.models import bn_folding, engines, feature_cache, freezing, linear_probe, recipes
from spectacles.models.classifier import Classifier, network_state
from spectacles.training import finalize, lr_schedule, train_loop
from spectacles.training.augmentation import View
from spectacles.training.batches import Batch, augmented_batches, epoch_order, make_optimizer, training_dtype, validate
from spectacles.training.checkpoint import Checkpoint
from spectacles.training.history import Epoch, gains, of_phase, phase_over
from spectacles.training.train_loop import NotFinite, Position
from spectacles.training.trainer import FINE_TUNE, HEAD, Training

log = logging.getLogger("spectacles")

NAMED = 8
"""Files of a batch that a sentence names."""


def run(training: Training, phase: str, count: int) -> None:
    if phase == HEAD and training.config.head == "linear_probe":
        training.keep(shared_probe(training), training.classifier, Checkpoint({"phase": HEAD, "step": 0}, {}))
    else:
        descend(training, phase, count)


def shared_probe(training: Training) -> Epoch:
    """The head is fitted by the first process."""
    epoch = asdict(fit_probe(training)) if distributed.is_main_process() else None
    device = training.settings.device
    collectives.broadcast_tensors([tensor.data for tensor in training.classifier.head.parameters()])
    return Epoch(**collectives.broadcast_object(epoch, device))


def fit_probe(training: Training) -> Epoch:
    """The head fitted to convergence on features; regularisation chosen on validation data."""
    config, started, classes = training.config, time.monotonic(), len(training.info.classes)

    def features(places: np.ndarray, view: View | None = None) -> np.ndarray:
        cache = training.run_dir.cache / "embeddings"
        return feature_cache.embed(
            training.classifier.backbone, config.backbone, training.pixels, cache, training.settings.device,
            config.batch_size, config.engine, places, view,
        )  # fmt: skip

    both = features(np.concatenate([training.train.positions, training.val.positions]))
    count = len(training.train.labels)
    views = [View(number, training.augmentation) for number in range(1, config.views)]
    seen = np.concatenate([both[:count], *(features(training.train.positions, view) for view in views)])
    labels = np.concatenate([training.train.labels] * config.views)
    weights = training.settings.class_weights
    class_weights = None if weights is None else weights.cpu().numpy()
    head = linear_probe.fit_head((seen, labels), (both[count:], training.val.labels), classes, class_weights)
    with torch.no_grad():
        training.classifier.head.weight.copy_(torch.from_numpy(head.weight))
        training.classifier.head.bias.copy_(torch.from_numpy(head.bias))
    log.info("  head fitted to %d features of %d views (C = %g)", seen.shape[1], len(seen), head.strength)
    return training.scored(HEAD, head.train_loss, head.logits(both[count:]), 0.0, started)


@dataclass
class Descent:
    """A phase of gradient descent under way: what its steps change."""

    phase: str
    count: int
    """Epochs planned."""
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: ModelEmaV3 | None
    """Of the weights, where --ema asks for it."""
    position: Position

    @property
    def scored(self) -> Classifier:
        """What is validated and kept."""
        return self.average.module if self.average else self.classifier

    def state(self) -> Checkpoint:
        parts = {"model": self.classifier.state_dict()}
        if self.average:
            parts["average"] = self.average.module.state_dict()
        facts = {"phase": self.phase, "scaler": self.scaler.state_dict(), **asdict(self.position)}
        return Checkpoint(facts, parts, self.optimizer.state_dict()["state"])

    def restore(self, before: Checkpoint) -> None:
        self.classifier.load_state_dict(before.parts["model"])
        if self.average:
            self.average.module.load_state_dict(before.parts["average"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": before.slots, "param_groups": groups})
        self.scaler.load_state_dict(before.facts["scaler"])
        self.position = Position(**{item.name: before.facts[item.name] for item in fields(Position)})


def descend(training: Training, phase: str, count: int) -> None:
    """A phase by gradient descent: from the best weights so far (or a checkpoint of the phase), until its epochs, the
    patience or the time are used up."""
    config, before = training.config, training.interrupted
    goes_on = before is not None and before.facts["phase"] == phase
    if training.best and not goes_on:
        training.classifier.load_state_dict(network_state(training.best))
    descent = _begin(training, phase, count)
    if before is not None and goes_on:
        descent.restore(before)
    training.interrupted = None
    last_look = finalize.images(training)
    while descent.position.step or not (
        phase_over(training.history, phase, count, config.patience) or training.out_of_time(last_look)
    ):
        try:
            epoch = run_epoch(training, descent)
        except Stopped:
            training.save(descent.state())
            raise
        descent.position = Position(pieces=descent.position.pieces)
        training.keep(epoch, descent.scored, descent.state())


def _begin(training: Training, phase: str, count: int) -> Descent:
    config, device = training.config, training.settings.device
    if phase == FINE_TUNE and config.batch_norm == "fold":
        _fold(training)
    rate = config.head_lr if phase == HEAD else config.lr
    assert rate is not None
    groups = freezing.parameter_groups(
        training.classifier, training.layer_groups, rate, config.weight_decay, config.layer_decay
    )
    scaler = torch.amp.GradScaler(enabled=training_dtype(config, device) == torch.float16)
    average = ModelEmaV3(training.classifier, config.ema, use_warmup=True) if config.ema else None  # type: ignore[no-untyped-call]
    optimizer = make_optimizer(config, groups, device)
    return Descent(
        phase, count, training.classifier, optimizer, scaler, average, Position(pieces=config.grad_accum_steps)
    )


def _fold(training: Training) -> None:
    """Folds BatchNorm on a copy first: a backbone on which that is not exact keeps it as it is."""
    preprocessing, backbone = training.info.preprocessing, training.classifier.backbone
    photos = to_device(engines.photographs(preprocessing, count=2), training.settings.device)
    folded = copy.deepcopy(backbone)
    try:
        training.folds = bn_folding.fold_batchnorm(folded, preprocessing.normalize(photos))
    except ValueError as error:
        log.info("  BatchNorm is kept as it is: %s", error)
    else:
        training.classifier.backbone = folded


def run_epoch(training: Training, descent: Descent) -> Epoch:
    """What is left of an epoch, and its validation. Raises UserError where the numbers go wrong."""
    config, classifier, started = training.config, training.classifier, time.monotonic()
    assert config.unfreeze is not None
    phase, count, position = descent.phase, descent.count, descent.position
    own = of_phase(training.history, phase)
    gained, number = gains(own), len(training.history) + 1
    groups = len(training.layer_groups)
    unfrozen = freezing.unfrozen_groups(config.unfreeze, groups, len(own), count) if phase == FINE_TUNE else 0
    freezing.freeze_below(classifier, training.layer_groups, unfrozen)
    freezing.train_mode(classifier, config.batch_norm)
    order = epoch_order(config.seed, number, len(training.train.labels), config.batch_size)
    steps, sizes = len(order), [len(indices) for indices in order]

    def rate(step: int) -> float:
        done = len(own) * steps + step
        return lr_schedule.factor(config.scheduler, done, count * steps, round(config.warmup_epochs * steps), gained)

    saved = time.monotonic()

    def after_step() -> None:
        nonlocal saved
        if descent.average:
            descent.average.update(classifier, len(own) * steps + position.step)  # type: ignore[no-untyped-call]
        if position.step < steps and time.monotonic() - saved >= config.checkpoint_every:
            training.save(descent.state())
            saved = time.monotonic()
        signals.check()

    batches = _batches(training, descent, number, len(own))
    try:
        with signals.deferred():
            loss = train_loop.train_epoch(classifier, batches, training.settings, descent.optimizer, descent.scaler,
                                          rate, number, sizes, position, after_step)  # fmt: skip
    except NotFinite as error:
        raise _wrong_numbers(training, error, number, order[position.step]) from error
    validating = time.monotonic()
    logits = validate(descent.scored, training.val, training.settings)
    training.seconds_an_image = (time.monotonic() - validating) / len(logits)
    return training.scored(phase, loss, logits, float(descent.optimizer.param_groups[0]["lr"]), started)


def _batches(training: Training, descent: Descent, number: int, own: int) -> Iterator[Batch]:
    """The remaining batches of an epoch, after `own` epochs of the phase."""
    config, start = training.config, descent.position.step
    assert config.image_size is not None
    side = recipes.side(config, own, descent.count) if descent.phase == FINE_TUNE else config.image_size
    return augmented_batches(training.train, training.augmentation, training.settings, number, side, start)


def _wrong_numbers(training: Training, error: NotFinite, epoch: int, places: np.ndarray) -> UserError:
    names = [str(training.pixels.paths[training.train.positions[place]]) for place in places]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return UserError(
        f"{error} in epoch {epoch}: lower --lr, or use --mixed_precision off. The batch was {', '.join(names[:NAMED])}"
        f"{more}. What was kept before it stands."
    )
