"""The end of a training: what the kept model's numbers mean, found on validation data, and the final bundle."""

import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from spectacles.core.config import Goal, TrainConfig, parse_goal
from spectacles.core.device import release_freed_memory
from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.core.results import TrainReport
from spectacles.core.run_dir import RunDir
from spectacles.data.pixel_cache import in_batches
from spectacles.metrics import abstention, basics, calibration_fit, decision_threshold, prior_shift
from spectacles.metrics.calibration import Calibration
from spectacles.metrics.decisions import is_correct
from spectacles.models import bn_folding, bundle_export, bundle_network, engine_choice, ood
from spectacles.models.all_outputs import AllOutputs
from spectacles.models.bundle import ENGINE_FILE, BundleInfo, save_bundle
from spectacles.models.classifier import Classifier, load_classifier
from spectacles.models.feature_blocks import describe
from spectacles.models.ood import REFERENCES, OODScorer
from spectacles.models.torch_network import PixelNetwork
from spectacles.training.history import Epoch, best_epoch
from spectacles.training.trainer import HEAD_ALONE, Trainer
from spectacles.training.validation import validation_scores

log = logging.getLogger("spectacles")

LABELS_NAMED = 10
"""In a sentence, at most."""
PHOTOS_COMPARED = 24
"""Validation photos on which the exported network must answer as PyTorch does."""


@dataclass(frozen=True)
class Decided:
    """The final content of the bundle besides its weights, and the same in sentences and in numbers."""

    info: BundleInfo
    sentences: list[str]
    numbers: dict[str, float | None]


def threshold_goal(config: TrainConfig, labels: np.ndarray, num_classes: int) -> Goal | None:
    """What --threshold_for optimises; `labels` are those of the validation images: (N,) class indices, or (N, K) with
    several labels per image, which always have thresholds, for f1 by default.

    Raises UserError where these data do not allow for a threshold, or for --target_accuracy.
    """
    if config.target_accuracy is not None and len(labels) < (
        needed := abstention.images_needed(config.target_accuracy)
    ):
        raise UserError(
            f"--target_accuracy {config.target_accuracy:g} needs at least {needed} validation images, and there are "
            f"{len(labels)}: give more images, a larger --val_fraction, or a lower --target_accuracy."
        )
    if labels.ndim == 2:
        return parse_goal(config.threshold_for or "f1")
    if config.threshold_for is None:
        return None
    goal = parse_goal(config.threshold_for)
    if num_classes != 2:
        raise UserError(f"--threshold_for {goal} is for two classes, and the data have {num_classes}: leave it out.")
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"--threshold_for {goal} needs validation images of both classes: give more images, or another --seed."
        )
    return goal


def settings_of(run_dir: RunDir) -> TrainConfig:
    """What the run's model was trained with, for `decide`."""
    known = {field.name for field in fields(TrainConfig)}
    return TrainConfig(**{name: value for name, value in run_dir.trained_config().items() if name in known})


def images_of_final_pass(trainer: Trainer) -> int:
    return len(trainer.val.labels) + min(REFERENCES, len(trainer.train.labels))


def run(trainer: Trainer) -> TrainReport:
    """Reloads the bundle of the best epoch, scores it, decides on validation data, and writes the final bundle."""
    best, labels = best_epoch(trainer.history), trainer.val.labels
    classifier, _, _ = load_classifier(trainer.bundle)
    network = _pixel_network(trainer, classifier)
    logits, val_maps, train_maps = _final_pass(trainer, network)
    if not np.isfinite(logits).all():
        raise UserError("the model's outputs are no longer finite: lower --lr, or use --mixed_precision off.")
    ood_scorer = ood.fit(train_maps, val_maps)
    info = replace(trainer.info, metric_value=best.value, epoch=best.epoch, phase=best.phase)
    decided = decide(trainer.config, info, logits, labels, ood_scorer(val_maps) if ood_scorer else None)
    model_id = _save(trainer, network, decided.info, ood_scorer)
    if _engine_choice_file(trainer).is_file():  # evaluate, predict and the server need not measure again
        shutil.copyfile(_engine_choice_file(trainer), trainer.bundle / ENGINE_FILE)
    return _report(trainer, best, validation_scores(logits, labels)[trainer.config.metric], decided, model_id)


def _pixel_network(trainer: Trainer, classifier: Classifier) -> PixelNetwork:
    preprocessing = trainer.info.preprocessing
    return PixelNetwork(AllOutputs(classifier, preprocessing), preprocessing, trainer.settings.device)


def _save(trainer: Trainer, network: PixelNetwork, info: BundleInfo, ood_scorer: OODScorer | None) -> str:
    """The final bundle, with an ONNX file where there can be one. Returns the model id."""
    log.info("  exporting the network, and comparing the file with PyTorch")
    photos = trainer.pixels.batch(trainer.val.positions[:PHOTOS_COMPARED])
    classifier, _, _ = load_classifier(trainer.bundle)
    with suppress(ValueError):  # then the exported graph has its BatchNorms, and is twice as long
        bn_folding.fold_pairs(classifier.backbone, bn_folding.exact_pairs(classifier.backbone, info.preprocessing))
    exported = bundle_export.export(
        network, bundle_network.difference(info, ood_scorer), photos, _pixel_network(trainer, classifier)
    )
    if exported.reason:
        log.info("  only PyTorch can run this model: %s", exported.reason)
    tensors = trainer.best_state | (ood_scorer.tensors() if ood_scorer else {}) | exported.tensors
    return save_bundle(trainer.bundle, info, tensors, exported.content, exported.reason)


def decide(
    config: TrainConfig, info: BundleInfo, logits: np.ndarray, labels: np.ndarray, ood_scores: np.ndarray | None
) -> Decided:
    """Calibration, decision threshold and abstention, from validation logits (N, K), class indices (N,) or labels (N,
    K), and ood_scores (N,), each on top of the one before it."""
    calibrated = calibration_fit.fit(logits, labels)
    info = replace(info, temperature=calibrated.temperature, class_scales=calibrated.scales,
                   class_biases=calibrated.biases)  # fmt: skip
    if calibrated.biases:  # they fit the probabilities to the validation data's class mix
        info = replace(info, class_shares=prior_shift.fitted_shares(labels, len(info.classes), None))
    decided = Decided(info, [_about_calibration(calibrated, len(labels))], {"temperature": calibrated.temperature})
    probabilities = calibrated.probabilities(logits)
    goal = threshold_goal(config, labels, len(info.classes))
    if goal is not None:
        with_thresholds = _with_label_thresholds if info.multi_label else _with_threshold
        decided = with_thresholds(decided, goal, labels, probabilities)
    if config.target_accuracy is not None:
        decided = _with_confidence(decided, config.target_accuracy, labels, probabilities)
    return _with_ood_threshold(decided, config.ood_quantile, ood_scores)


def _about_calibration(calibrated: Calibration, images: int) -> str:
    if images < calibration_fit.ENOUGH:
        return f"probabilities are not calibrated: that takes at least {calibration_fit.ENOUGH} validation images"
    each = "label" if calibrated.multi_label else "class"
    more = f", and a scale and a bias for each {each}" if calibrated.scales else ""
    return f"probabilities are calibrated on validation data: temperature {calibrated.temperature:.3f}{more}"


def _with_threshold(decided: Decided, goal: Goal, labels: np.ndarray, probabilities: np.ndarray) -> Decided:
    choice = decision_threshold.choose(goal, labels, probabilities[:, 1])
    called = decided.info.classes[1]
    sentence = (
        f"called {called!r} from a probability of {choice.threshold:.4g}, for {goal}: on validation data precision "
        f"{choice.precision:.4f}, recall {choice.recall:.4f}, false positive rate {choice.false_positive_rate:.4f}"
    )
    if not choice.reached:
        sentence += f"; no threshold reaches the precision of {goal.least:g}, this is the nearest"
    numbers = {"threshold": choice.threshold, "threshold_precision": choice.precision,
               "threshold_recall": choice.recall}  # fmt: skip
    info = replace(decided.info, threshold=choice.threshold)
    return Decided(info, [*decided.sentences, sentence], {**decided.numbers, **numbers})


def _with_label_thresholds(decided: Decided, goal: Goal, labels: np.ndarray, probabilities: np.ndarray) -> Decided:
    choices = decision_threshold.choose_each(goal, labels, probabilities)
    chosen = tuple(0.5 if choice is None else choice.threshold for choice in choices)
    classes = decided.info.classes
    texts = [f"{name} {choice.threshold:.3g}" for name, choice in zip(classes, choices, strict=True) if choice]
    sentence = (
        f"each label has its threshold, for {goal} on validation data: {', '.join(texts[:LABELS_NAMED]) or 'none'}"
    )
    sentence += f" and {len(texts) - LABELS_NAMED} more" if len(texts) > LABELS_NAMED else ""
    few = [name for name, choice in zip(classes, choices, strict=True) if choice is None]
    if few:
        sentence += (
            f"; 0.5 for {', '.join(few[:LABELS_NAMED])}{' and others' if len(few) > LABELS_NAMED else ''}, which fewer "
            f"than {decision_threshold.ENOUGH_EACH} validation images have or lack"
        )
    missed = [name for name, choice in zip(classes, choices, strict=True) if choice and not choice.reached]
    if missed:
        sentence += f"; no threshold reaches the precision of {goal.least:g} for {', '.join(missed[:LABELS_NAMED])}"
    info = replace(decided.info, label_thresholds=chosen)
    return replace(decided, info=info, sentences=[*decided.sentences, sentence])


def _with_confidence(decided: Decided, target: float, labels: np.ndarray, probabilities: np.ndarray) -> Decided:
    correct = is_correct(decided.info.decide(probabilities), labels)
    confidences = decided.info.certainty(probabilities)
    confidence_threshold = abstention.choose_confidence(correct, confidences, target)
    answered = confidences >= confidence_threshold
    coverage = float(answered.mean())
    accuracy = float(correct[answered].mean()) if answered.any() else None
    if accuracy is None:
        sentence = (
            f"--target_accuracy {target:g} is out of reach: not even the most confident labels are right that often, "
            "so the model abstains on every image"
        )
    else:
        sentence = (
            f"--target_accuracy {target:g}: the model answers on {coverage:.1%} of the validation images, and "
            f"{accuracy:.1%} of these labels are right"
        )
        sentence += f"; it abstains below a confidence of {confidence_threshold:.4g}" if confidence_threshold else ""
    numbers = {"selective_coverage": coverage, "selective_accuracy": accuracy}
    info = replace(decided.info, confidence_threshold=confidence_threshold)
    return Decided(info, [*decided.sentences, sentence], {**decided.numbers, **numbers})


def _with_ood_threshold(decided: Decided, quantile: float, ood_scores: np.ndarray | None) -> Decided:
    if ood_scores is None:
        sentence = f"no out-of-distribution scores: they take {ood.ENOUGH} training and as many validation images"
        return replace(decided, sentences=[*decided.sentences, sentence])
    outside = int((ood_scores > quantile).sum())
    if quantile == 1:
        sentence = "out-of-distribution scores are measured, and the model does not abstain for them (--ood_quantile 1)"
    else:
        sentence = (
            f"photos less like the training photos than {quantile:.1%} of the validation photos are out of "
            f"distribution: {outside} of these {len(ood_scores)} are"
        )
    numbers = {"ood_share": outside / len(ood_scores)}
    info = replace(decided.info, ood_threshold=quantile)
    return Decided(info, [*decided.sentences, sentence], {**decided.numbers, **numbers})


def _final_pass(trainer: Trainer, network: PixelNetwork) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One pass of the fastest engine: logits (V, K) and ood_features (V, E) of the validation images, and ood_features
    (R, E) of at most REFERENCES training images, evenly spaced."""
    config, count = trainer.config, images_of_final_pass(trainer)
    release_freed_memory()  # of the training steps
    spaced = np.linspace(0, len(trainer.train.labels) - 1, count - len(trainer.val.labels)).round().astype(np.int64)
    positions = np.concatenate([trainer.val.positions, trainer.train.positions[spaced]])
    # Later stages compute about as many images again. A time budget leaves no time for measuring.
    expected = count if config.time_budget else 2 * count
    _, run = engine_choice.choose(network, _engine_choice_file(trainer), config.engine, images=expected)
    batches = in_batches(positions, config.batch_size)
    pixel_batches = progress(trainer.pixels.batches(batches), "final pass", len(batches), unit="batch")
    outputs = [run(pixels) for pixels in pixel_batches]
    logits, maps = (np.concatenate([each[name] for each in outputs]) for name in ("logits", "ood_features"))
    split = len(trainer.val.labels)
    return logits[:split], maps[:split], maps[split:]


def _about_the_head(info: BundleInfo) -> list[str]:
    if info.phase != HEAD_ALONE:
        return []
    return [f"the head looks at {describe([info.taps.blocks])}, in pictures of {info.preprocessing.image_size} px"]


def _over(trainer: Trainer) -> str:
    """' over 2 of 3 classes' where the metric that chose the epoch is a mean to which not all classes contribute."""
    labels, classes = trainer.val.labels, trainer.info.classes
    support = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(classes))
    rows = {name: {"support": int(count)} for name, count in zip(classes, support, strict=True)}
    scores = {"per_class": rows} | ({"label_accuracy": None} if labels.ndim == 2 else {})
    over = basics.over_classes(trainer.config.metric, scores)
    return f" {over}" if over else ""


def _engine_choice_file(trainer: Trainer) -> Path:
    return engine_choice.choice_file(trainer.run_dir.cache, trainer.info.backbone, trainer.info.preprocessing)


def _report(trainer: Trainer, best: Epoch, rescored: float, decided: Decided, model_id: str) -> TrainReport:
    config, run_dir = trainer.config, trainer.run_dir
    elapsed = time.monotonic() - trainer.started
    folder = run_dir.folder("train")
    summary = [
        f"best {config.metric} {best.value:.4f}{_over(trainer)} on validation data, epoch {best.epoch} ({best.phase}); "
        f"read back from the bundle: {rescored:.4f}",
        f"trained {len(trainer.history)} epochs in {elapsed:.0f} s",
        *_about_the_head(decided.info),
        *([trainer.distillation.describe()] if trainer.distillation else []),
        *decided.sentences,
        f"model {model_id} in {trainer.bundle}",
        f"next: python evaluate.py --output_dir {run_dir.output_dir} --run_name {run_dir.name}",
    ]
    return TrainReport(
        summary=summary,
        metrics={
            f"best_val_{config.metric}": best.value,
            "rescored": rescored,
            "best_epoch": float(best.epoch),
            "train_seconds": round(elapsed, 1),
            **decided.numbers,
        },
        artifacts=run_dir.relative(folder / "history.csv", folder / "curves.png", trainer.bundle),
        backbone=config.backbone,
        model_id=model_id,
        metric=config.metric,
        best_value=best.value,
        best_epoch=best.epoch,
        best_phase=best.phase,
        epochs_run=len(trainer.history),
        train_seconds=round(elapsed, 1),
    )
