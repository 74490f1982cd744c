"""What a finished training has decided on validation data, and that its bundle decides so."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import encoded, noise

import dataset
import train
from spectacles.core.config import DatasetConfig, TrainConfig, parse_goal
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir, create_run
from spectacles.data import label_sets
from spectacles.data.preprocessing import Preprocessing
from spectacles.data.schemas import load_split
from spectacles.inference.predictor import Prediction, Predictor
from spectacles.metrics import abstention, calibration_fit, decision_threshold, decisions
from spectacles.models.bundle import BundleInfo, read_bundle_info
from spectacles.training import epoch_log, finalize
from spectacles.training.finalize import decide
from spectacles.training.history import Epoch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_export")]

CPU = "cpu"
TINY = TrainConfig(
    backbone="simple_cnn", no_pretrained=True, image_size=32, epochs=2, head="sgd", head_epochs=1, batch_size=16,
    device="cpu", lr=1e-3, head_lr=1e-3, seed=3,
)  # fmt: skip


def draw(folder: Path, classes: int, count: int) -> Path:
    """One folder per class: noise, more or less reddish."""
    for number in range(count):
        label = number % classes
        keep = 1 - 0.5 * label / (classes - 1)
        picture = noise(number).convert("RGB", (1, 0, 0, 40 * label, 0, keep, 0, 0, 0, 0, keep, 0))
        path = folder / f"class_{label}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(encoded(picture))
    return folder


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunDir]:
    """A run on 120 pictures of so many classes, 54 of them to validate on, that has not been trained."""
    folder = tmp_path_factory.mktemp("finishing")

    def make(classes: int = 2) -> RunDir:
        run = create_run(folder / f"outputs_{classes}", "run")
        shutil.rmtree(run.path / "train", ignore_errors=True)
        if not run.done("dataset"):
            photos = draw(folder / f"{classes}_classes", classes, 120)
            config = DatasetConfig(image_dir=photos, val_fraction=0.45, test_fraction=0.1, duplicate_similarity=1)
            run.save_result("dataset", dataset.run(config, run))
        return run.for_stage("train")

    return make


def validation(run: RunDir) -> tuple[np.ndarray, list[Prediction], Predictor]:
    """(class indices, what the finished bundle predicts, with what) of the validation photos."""
    rows = load_split(run, "val")
    predictor = Predictor(run.bundle, CPU, engine="torch")
    labels = label_sets.encode(rows["label"], list(predictor.info.classes), multi_label=False)
    return labels, list(predictor.predict([Path(path) for path in rows["path"]])), predictor


def numbers(outcomes: list[Prediction], name: str) -> np.ndarray:
    return np.array([getattr(outcome, name) for outcome in outcomes], dtype=np.float64)


def test_the_bundle_is_calibrated_and_scores_what_is_out_of_distribution(indexed: Callable[..., RunDir]) -> None:
    run = indexed()
    report = train.run(TINY, run)
    labels, outcomes, predictor = validation(run)
    expected = calibration_fit.fit(numbers(outcomes, "logits"), labels)
    assert predictor.info.temperature == pytest.approx(expected.temperature, rel=1e-4)
    assert (predictor.info.threshold, predictor.info.confidence_threshold) == (None, None)
    assert predictor.info.ood_threshold == 0.995
    scores = numbers(outcomes, "ood_score")
    assert np.median(scores) == pytest.approx(0.5, abs=0.05)
    assert report.metrics["ood_share"] == np.mean(scores > 0.995)
    assert any("less like the training photos than 99.5% of the validation photos" in line for line in report.summary)
    assert any(f"temperature {predictor.info.temperature:.3f}" in line for line in report.summary)


@pytest.mark.parametrize("goal", ["f1", "recall:0.95", "cost:FP=1,FN=5"])
def test_a_threshold_is_the_best_for_what_it_was_asked_for(indexed: Callable[..., RunDir], goal: str) -> None:
    run = indexed()
    report = train.run(replace(TINY, threshold_for=goal), run)
    labels, outcomes, predictor = validation(run)
    probabilities = numbers(outcomes, "probabilities")
    choice = decision_threshold.choose(parse_goal(goal), labels, probabilities[:, 1])
    assert predictor.info.threshold == pytest.approx(choice.threshold, abs=1e-5)
    assert report.metrics["threshold_recall"] == pytest.approx(choice.recall)
    predicted = [predictor.info.classes.index(outcome.label) for outcome in outcomes]
    np.testing.assert_array_equal(predicted, decisions.decide(probabilities, predictor.info.threshold))
    assert any(line.startswith("called 'class_1' from a probability of") and goal in line for line in report.summary)


def test_the_model_abstains_below_the_confidence_that_the_target_accuracy_takes(indexed: Callable[..., RunDir]) -> None:
    run = indexed()
    report = train.run(replace(TINY, target_accuracy=0.9, ood_quantile=1.0), run)
    labels, outcomes, predictor = validation(run)
    answered = np.array([not outcome.abstained for outcome in outcomes])
    right = np.array([predictor.info.classes.index(outcome.label) for outcome in outcomes]) == labels
    assert report.metrics["selective_coverage"] == pytest.approx(answered.mean(), abs=0.02)
    assert {outcome.abstain_reason for outcome in outcomes} <= {None, "low_confidence"}
    if answered.any():
        confidences = numbers(outcomes, "confidence")
        assert right[answered].mean() >= 0.9
        assert confidences[answered].min() >= confidences[~answered].max(initial=0)


def test_many_classes_train_with_all_of_it_but_a_threshold(indexed: Callable[..., RunDir]) -> None:
    run = indexed(4)
    train.run(replace(TINY, target_accuracy=0.8), run)
    labels, outcomes, predictor = validation(run)
    assert len(predictor.info.classes) == 4 and len(outcomes) == len(labels)
    assert predictor.info.confidence_threshold is not None
    with pytest.raises(UserError, match="--threshold_for f1 is for two classes, and the data have 4"):
        train.run(replace(TINY, threshold_for="f1"), indexed(4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold_for": "f2"}, "--threshold_for 'f2' is unknown"),
        (
            {"target_accuracy": 0.99},
            "--target_accuracy 0.99 needs at least 99 validation images, and there are 5",
        ),
        ({"target_accuracy": 1.0}, "--target_accuracy 1 cannot be shown"),
    ],
)
def test_what_cannot_be_decided_is_rejected_before_anything_is_trained(
    indexed: Callable[..., RunDir], changes: dict[str, object], message: str
) -> None:
    run = indexed()
    with pytest.raises(UserError, match=message):
        train.run(replace(TINY, **changes), run)
    assert not run.bundle.exists() and not (run.path / "train" / "plan.json").exists()


def test_a_threshold_needs_validation_images_of_both_classes() -> None:
    config = replace(TINY, threshold_for="f1")
    with pytest.raises(UserError, match="--threshold_for f1 needs validation images of both classes"):
        finalize.threshold_goal(config, np.zeros(30, dtype=np.int64), 2)


def test_decisions_may_be_others_when_a_training_is_resumed(
    indexed: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tell = indexed(), epoch_log.log_epoch

    def interrupt(history: list[Epoch], planned: int) -> None:
        tell(history, planned)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(epoch_log, "log_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.run(TINY, run)
    config = replace(TINY, threshold_for="f1", target_accuracy=0.8, ood_quantile=0.9)
    resumed = train.run(replace(config, resume=True), run)
    info, _ = read_bundle_info(run.bundle)
    assert train.run(config, run).model_id == resumed.model_id
    assert info.threshold is not None and info.confidence_threshold is not None and info.ood_threshold == 0.9


@pytest.mark.parametrize(("images", "over"), [(0, False), (90, False), (110, True)])
def test_a_time_budget_leaves_room_for_the_final_pass(indexed: Callable[..., RunDir], images: int, over: bool) -> None:
    """50 of 100 s are spent, an epoch takes 50 s and an image 0.1 s; a tenth more than the budget is allowed."""
    training = train.prepare(TINY, indexed(), torch.device("cpu"))
    training.pixels.close()
    training.settings = replace(training.settings, config=replace(TINY, time_budget="100s"))
    training.history = [Epoch(1, "fine_tune", 0.1, 0.1, "log_loss", 0.1, 1.0, 1.0, 0.1, 50.0)]
    training.started, training.validation_seconds_per_image = time.monotonic() - 50, 0.1
    assert training.out_of_time(images) == over


def test_without_galleries_no_picture_is_kept(indexed: Callable[..., RunDir]) -> None:
    run = indexed(3)
    train.run(replace(TINY, galleries=False), run)
    assert not list((run.cache / "pixels").glob("*"))
    train.run(TINY, run)
    assert list((run.cache / "pixels").glob("*.npy"))


# decisions alone

INFO = BundleInfo(
    backbone="simple_cnn", classes=("no", "yes"), label_column="label",
    preprocessing=Preprocessing(16, "pad", "bilinear", (0.5,) * 3, (0.5,) * 3, 3), feature_dim=128, dropout=0.0,
    threshold=None, temperature=1.0, data_fingerprint="", training_profile={}, class_shares=(0.5, 0.5),
    metric="log_loss", metric_value=0.1,
    epoch=1, phase="head",
)  # fmt: skip


def validated(count: int, seed: int = 0, errors: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """(logits, labels): the larger the logit, the rarer an error."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    margin = rng.normal(1 / errors, 5, size=count) * np.where(labels == 1, 1, -1)
    return np.stack([-margin, margin], axis=1) / 4, labels


def test_each_decision_stands_on_the_one_before_it() -> None:
    logits, labels = validated(400)
    config = replace(TINY, threshold_for="recall:0.99", target_accuracy=0.95)
    decided = decide(config, INFO, logits, labels, np.linspace(0, 1, 400))
    probabilities = decided.info.calibration.probabilities(logits)
    assert decided.info.calibration == calibration_fit.fit(logits, labels)
    choice = decision_threshold.choose(parse_goal("recall:0.99"), labels, probabilities[:, 1])
    assert decided.info.threshold == choice.threshold
    predicted = decisions.decide(probabilities, choice.threshold)
    confidence = probabilities[np.arange(400), predicted]
    assert decided.info.confidence_threshold == abstention.choose_confidence(predicted == labels, confidence, 0.95)
    assert (predicted == labels)[confidence >= decided.info.confidence_threshold].mean() >= 0.95
    assert len(decided.sentences) == 4


def test_with_too_little_to_go_by_the_sentences_say_so() -> None:
    logits, labels = validated(calibration_fit.ENOUGH - 1)
    decided = decide(TINY, INFO, logits, labels, None)
    assert decided.info == INFO
    assert (
        "at least 50 validation images" in decided.sentences[0]
        and "no out-of-distribution scores" in decided.sentences[1]
    )


def test_a_model_that_knows_nothing_abstains_on_every_image() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 2)), rng.integers(2, size=300)
    decided = decide(replace(TINY, target_accuracy=0.95), INFO, logits, labels, None)
    assert decided.info.confidence_threshold == abstention.NEVER
    assert decided.numbers["selective_coverage"] == 0 and decided.numbers["selective_accuracy"] is None
    assert "abstains on every image" in decided.sentences[1]


def test_a_precision_out_of_reach_is_reported() -> None:
    labels = np.tile([0, 1], 100)
    logits = np.stack([np.zeros(200), np.random.default_rng(0).normal(size=200) - 2 * labels], axis=1)
    decided = decide(replace(TINY, threshold_for="precision:0.99"), INFO, logits, labels, None)
    assert "no threshold reaches the precision of 0.99" in decided.sentences[1]


def test_a_quantile_of_1_switches_abstention_for_strangeness_off() -> None:
    logits, labels = validated(100)
    decided = decide(replace(TINY, ood_quantile=1.0), INFO, logits, labels, np.linspace(0, 1, 100))
    assert decided.info.ood_threshold == 1
    assert "does not abstain for them" in decided.sentences[-1]


def test_history_and_report_name_the_same_best_epoch(indexed: Callable[..., RunDir]) -> None:
    run = indexed()
    report = train.run(TINY, run)
    table = pd.read_csv(run.path / "train" / "history.csv")
    assert report.best_value == pytest.approx(table["val_log_loss"].min())
    assert report.metrics["rescored"] == pytest.approx(report.best_value, abs=1e-6)
