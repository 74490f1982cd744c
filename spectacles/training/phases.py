"""The phases of training: the head fitted to features as a linear probe, or gradient descent epoch by epoch."""

import copy
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import torch
from timm.utils.model_ema import ModelEmaV3

from spectacles.core import distributed, signals
from spectacles.core.device import derive_seed, release_freed_memory
from spectacles.core.errors import UserError
from spectacles.core.signals import Stopped
from spectacles.models import bn_folding, freezing, linear_probe, recipes
from spectacles.models.classifier import Classifier
from spectacles.models.feature_blocks import LAST
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.training import batches, collectives, finalize, lr_schedule, sampling, train_loop
from spectacles.training.augmentation import View
from spectacles.training.batches import Batch, TeacherView, augmented_batches, epoch_order
from spectacles.training.checkpoint import Checkpoint
from spectacles.training.epoch_progress import NotFinite, Position
from spectacles.training.history import Epoch, epochs_of, improvements, phase_finished
from spectacles.training.train_loop import EpochPlan, Hooks, Learner, make_optimizer, training_dtype
from spectacles.training.trainer import FINE_TUNE, HEAD, Trainer
from spectacles.training.validation import validate

log = logging.getLogger("spectacles")

FILES_NAMED = 8
"""In the message about a batch, at most."""


def run(trainer: Trainer, phase: str, epochs: int) -> None:
    if phase == HEAD and trainer.config.head == "linear_probe":
        epoch = fit_head_in_main_process(trainer)
        trainer.record_epoch(epoch, trainer.classifier, Checkpoint({"phase": HEAD, "step": 0}, {}))
    else:
        descend(trainer, phase, epochs)


def fit_head_in_main_process(trainer: Trainer) -> Epoch:
    """The other processes receive the head, what epochs of fine-tuning draw images by, and the record of the epoch."""
    fitted = None
    with collectives.long_wait() as group:
        if distributed.is_main_process():
            epoch, inclusion = fit_head(trainer)
            fitted = {"epoch": asdict(epoch), "inclusion": None if inclusion is None else inclusion.tolist()}
        fitted = collectives.broadcast_object(fitted, group)
    collectives.broadcast_tensors([tensor.data for tensor in trainer.classifier.head.parameters()])
    if fitted["inclusion"] is not None:
        trainer.train = replace(trainer.train, inclusion=np.array(fitted["inclusion"]))
    return Epoch(**fitted["epoch"])


def _inclusion(trainer: Trainer, features: np.ndarray) -> np.ndarray | None:
    """(N,) float64: how probably an epoch of fine-tuning takes each training image, by the loss of a probe that has
    not seen it. None where it takes all."""
    config, labels = trainer.config, trainer.train.labels
    assert config.epoch_share is not None
    count = sampling.images_per_epoch(len(labels), config.epoch_share)
    if count == len(labels) or config.fine_tune == "never":
        return None
    losses = linear_probe.held_out_losses(features, labels, derive_seed(config.seed, "held out"))
    return sampling.inclusion_probabilities(losses, count)


def fit_head(trainer: Trainer) -> tuple[Epoch, np.ndarray | None]:
    """Fits the head to features of the backbone until it converges, with the regularisation that is best on validation
    data. Returns the training images' `inclusion` as well."""
    config, started = trainer.config, time.monotonic()
    extractor = FeatureExtractor(
        trainer.classifier.backbone, config.backbone, trainer.pixels.preprocessing, trainer.run_dir.cache,
        trainer.settings.device, config,
    )  # fmt: skip
    count = len(trainer.train.labels)
    positions = np.concatenate([trainer.train.positions, trainer.val.positions])
    plain = extractor.embed(trainer.pixels, positions, blocks=(LAST,)).last
    on_cpu = copy.deepcopy(trainer.augmentation).cpu()
    views = [View(number, on_cpu) for number in range(1, config.views)]
    changed = [extractor.embed(trainer.pixels, trainer.train.positions, view, (LAST,)).last for view in views]
    features = np.concatenate([plain[:count], *changed])
    labels = np.concatenate([trainer.train.labels] * config.views)
    weights = trainer.settings.class_weights
    head = linear_probe.fit_head(
        (features, labels),
        (plain[count:], trainer.val.labels),
        len(trainer.info.classes),
        None if weights is None else weights.cpu().numpy(),
    )
    with torch.no_grad():
        trainer.classifier.head.weight.copy_(torch.from_numpy(head.weight))
        trainer.classifier.head.bias.copy_(torch.from_numpy(head.bias))
    log.info("  head fitted to %d features of %d views (C = %g)", features.shape[1], len(features), head.strength)
    inclusion = _inclusion(trainer, plain[:count])
    return trainer.score_epoch(HEAD, head.train_loss, head.logits(plain[count:]), 0.0, started), inclusion


@dataclass
class PhaseState:
    """A phase of gradient descent in progress: what its steps change."""

    phase: str
    epochs: int
    """Planned."""
    classifier: Classifier
    learner: Learner
    average: ModelEmaV3 | None
    """Moving average of the weights, with --ema."""
    position: Position
    folded: list[tuple[str, str]]
    """Names (convolution, BatchNorm) of the folded pairs of layers."""

    @property
    def validated(self) -> Classifier:
        """The network that is validated and saved."""
        return self.average.module if self.average else self.classifier

    def to_checkpoint(self) -> Checkpoint:
        states = {"model": self.classifier.state_dict()}
        if self.average:
            states["average"] = self.average.module.state_dict()
        values = {"phase": self.phase, "scaler": self.learner.scaler.state_dict(), "folded": self.folded,
                  **asdict(self.position)}  # fmt: skip
        return Checkpoint(values, states, self.learner.optimizer.state_dict()["state"])

    def restore(self, saved: Checkpoint) -> None:
        self.classifier.load_state_dict(saved.states["model"])
        if self.average:
            self.average.module.load_state_dict(saved.states["average"])
        train_loop.restore_optimizer(self.learner.optimizer, saved.optimizer)
        if saved.values["scaler"]:
            self.learner.scaler.load_state_dict(saved.values["scaler"])
        elif self.learner.scaler.is_enabled():
            log.info("  the run has had no loss scaler so far: fp16 begins with a new one")
        self.position = Position(**{item.name: saved.values[item.name] for item in fields(Position)})


def descend(trainer: Trainer, phase: str, epochs: int) -> None:
    """Gradient descent from the best weights so far (or a checkpoint of the phase) until the epochs, the patience or
    the time are used up."""
    config, saved = trainer.config, trainer.interrupted
    if saved is not None and saved.values["phase"] != phase:
        saved = None
    if trainer.best_state and saved is None:
        trainer.classifier.load_state_dict(trainer.best_state)
    state = _begin(trainer, phase, epochs, saved)
    if saved is not None:
        state.restore(saved)
    trainer.interrupted = None
    final_images = finalize.images_of_final_pass(trainer)
    while state.position.step or not (
        phase_finished(trainer.history, phase, epochs, config.patience) or trainer.out_of_time(final_images)
    ):
        try:
            epoch = run_epoch(trainer, state)
        except (Stopped, RuntimeError) as error:
            if isinstance(error, Stopped) or collectives.other_process_ended(error):
                trainer.save_checkpoint(state.to_checkpoint())
            raise
        state.position = Position(micro_batches=state.position.micro_batches)
        trainer.record_epoch(epoch, state.validated, state.to_checkpoint())


def _begin(trainer: Trainer, phase: str, epochs: int, saved: Checkpoint | None) -> PhaseState:
    config, device = trainer.config, trainer.settings.device
    release_freed_memory()  # of the engines that computed features
    if phase == FINE_TUNE and config.batch_norm == "fold":
        _fold_batchnorm(trainer, saved)
    rate = config.head_lr if phase == HEAD else config.lr
    assert rate is not None
    groups = freezing.parameter_groups(
        trainer.classifier, trainer.layer_groups, rate, config.weight_decay, config.layer_decay
    )
    scaler = torch.amp.GradScaler(device.type, enabled=training_dtype(config, device) == torch.float16)
    average = ModelEmaV3(trainer.classifier, config.ema, use_warmup=True) if config.ema else None  # type: ignore[no-untyped-call]
    learner = Learner(trainer.classifier, make_optimizer(config, groups, device), scaler, trainer.settings)
    position = Position(micro_batches=config.grad_accum_steps)
    folded = [(pair.conv, pair.norm) for pair in trainer.folded]
    return PhaseState(phase, epochs, trainer.classifier, learner, average, position, folded)


def _fold_batchnorm(trainer: Trainer, saved: Checkpoint | None) -> None:
    """Folds the pairs of layers that the checkpoint `saved` names, because another device may find other ones exact.
    Without a checkpoint the main process decides."""
    pairs = saved.values["folded"] if saved is not None else collectives.broadcast_object(_exact_pairs(trainer))
    trainer.folded = bn_folding.fold_pairs(trainer.classifier.backbone, pairs)


def _exact_pairs(trainer: Trainer) -> list[tuple[str, str]]:
    """Names (convolution, BatchNorm); none where folding would change what the backbone computes."""
    try:
        return bn_folding.exact_pairs(trainer.classifier.backbone, trainer.info.preprocessing)
    except ValueError as error:
        log.info("  BatchNorm is kept as it is: %s", error)
        return []


def run_epoch(trainer: Trainer, state: PhaseState) -> Epoch:
    """The rest of an epoch, and its validation. Raises UserError where loss or gradients are not finite."""
    started = time.monotonic()
    done = epochs_of(trainer.history, state.phase)
    _set_train_mode(trainer, state, len(done))
    size, channels = trainer.info.preprocessing.image_size, trainer.info.preprocessing.in_chans
    example = torch.zeros(1, channels, size, size, device=trainer.settings.device)
    state.learner = replace(state.learner, network=collectives.data_parallel(state.classifier, example))
    # Takes minutes where the teacher has not seen the view before, and can be stopped.
    view = trainer.distillation.view(len(trainer.history) + 1) if trainer.distillation else None
    with signals.deferred():  # several processes have to stop at the same place
        loss = _train(trainer, state, done, view)
        validation_started = time.monotonic()
        logits = validate(state.validated, trainer.val, trainer.settings)
    if distributed.world_size() == 1:
        signals.check()
    trainer.validation_seconds_per_image = (time.monotonic() - validation_started) / len(logits)
    learning_rate = float(state.learner.optimizer.param_groups[0]["lr"])
    return trainer.score_epoch(state.phase, loss, logits, learning_rate, started)


def _train(trainer: Trainer, state: PhaseState, done: list[Epoch], view: TeacherView | None) -> float:
    """The mean loss of the epoch. `done` are the finished epochs of the phase."""
    number = len(trainer.history) + 1
    images, config = trainer.examples, trainer.config
    order = epoch_order(config.seed, number, len(images.labels), config.batch_size, images.inclusion)
    last_save = time.monotonic()

    def after_step() -> None:
        if state.average:
            state.average.update(state.classifier, len(done) * len(order) + state.position.step)  # type: ignore[no-untyped-call]

    def save_is_due() -> bool:
        seconds = time.monotonic() - last_save
        return state.position.step < len(order) and seconds >= trainer.config.checkpoint_every

    def save() -> None:
        nonlocal last_save
        trainer.save_checkpoint(state.to_checkpoint())
        last_save = time.monotonic()

    shown, plan = _remaining_batches(trainer, state, len(done), view), _epoch_plan(trainer, state, done, order)
    hooks = Hooks(after_step, save_is_due, save)
    try:
        return train_loop.train_epoch(state.learner, shown, plan, state.position, hooks)
    except NotFinite as error:
        raise _not_finite(trainer, error, number, order[error.step]) from error


def _set_train_mode(trainer: Trainer, state: PhaseState, epochs_done: int) -> None:
    config, unfrozen = trainer.config, 0
    if state.phase == FINE_TUNE:
        assert config.unfreeze is not None
        groups = len(trainer.layer_groups)
        unfrozen = freezing.unfrozen_groups(config.unfreeze, groups, epochs_done, state.epochs)
    freezing.freeze_below(state.classifier, trainer.layer_groups, unfrozen)
    freezing.train_mode(state.classifier, config.batch_norm)


def _epoch_plan(trainer: Trainer, state: PhaseState, done: list[Epoch], order: list[np.ndarray]) -> EpochPlan:
    """`done` are the finished epochs of the phase, `order` the batches of this one."""
    config, steps, improved = trainer.config, len(order), improvements(done)
    warmup = round(config.warmup_epochs * steps)

    weights = trainer.settings.class_weights
    on_host = None if weights is None or trainer.settings.multi_label else weights.cpu().numpy()

    def lr_factor(step: int) -> float:
        return lr_schedule.factor(config.scheduler, len(done) * steps + step, state.epochs * steps, warmup, improved)

    def loss_share(step: int, mixed: bool) -> float:
        return batches.loss_share(trainer.examples.labels[order[step]], None if mixed else on_host)

    return EpochPlan(len(trainer.history) + 1, [len(indices) for indices in order], lr_factor, loss_share)


def _remaining_batches(
    trainer: Trainer, state: PhaseState, epochs_done: int, view: TeacherView | None
) -> Iterator[Batch]:
    config, number = trainer.config, len(trainer.history) + 1
    assert config.image_size is not None
    size = recipes.side(config, epochs_done, state.epochs) if state.phase == FINE_TUNE else config.image_size
    return augmented_batches(
        trainer.examples, trainer.augmentation, trainer.settings, number, size, state.position.step, view
    )


def _not_finite(trainer: Trainer, error: NotFinite, epoch: int, indices: np.ndarray) -> UserError:
    names = [str(trainer.pixels.paths[trainer.examples.positions[index]]) for index in indices]
    more = f" and {len(names) - FILES_NAMED} more" if len(names) > FILES_NAMED else ""
    return UserError(
        f"{error} in epoch {epoch}: lower --lr, or use --mixed_precision off. The batch was "
        f"{', '.join(names[:FILES_NAMED])}{more}. What was saved before remains."
    )
