"""Training on any number of labels an image: the loss, the head, probabilities, thresholds; and the stages in a row."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import noise, write_csv
from PIL import Image
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.preprocessing import StandardScaler

import dataset
import evaluate
import predict
import train
from spectacles.core.config import DatasetConfig, EvaluateConfig, PredictConfig, TrainConfig, parse_goal
from spectacles.core.results import EvaluateReport
from spectacles.core.run_dir import RunDir, create_run
from spectacles.data import label_sets, label_text
from spectacles.data.schemas import load_split
from spectacles.inference.predictor import Predictor
from spectacles.metrics import abstention, calibration, calibration_fit, decision_threshold
from spectacles.metrics.decisions import is_correct
from spectacles.models import linear_probe
from spectacles.models.bundle import load_bundle, read_bundle_info
from spectacles.training import epoch_log, finalize
from spectacles.training.batches import StepSettings
from spectacles.training.train_loop import balanced_weights, mean_loss

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_export")]

CPU = torch.device("cpu")
TINY = TrainConfig(
    backbone="simple_cnn", no_pretrained=True, image_size=32, epochs=6, batch_size=8, device="cpu", lr=1e-2, seed=3,
    resize="squash", crop_scale=1.0, zoom_out=0, color_jitter=0, grayscale=0, blur=0, jpeg=0, random_erasing=0,
    rotation=0,
)  # fmt: skip
COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


def settings(weights: list[float] | None = None, **values: object) -> StepSettings:
    on_device = None if weights is None else torch.tensor(weights)
    return StepSettings(replace(TINY, **values), CPU, 3, on_device, multi_label=True)


def test_the_loss_is_each_labels_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3), torch.randint(0, 2, (5, 3))
    expected = np.mean([
        log_loss(labels[:, place], expit(logits[:, place].numpy()), labels=[0, 1]) for place in range(3)
    ])  # fmt: skip
    assert float(mean_loss(logits, labels, settings())) == pytest.approx(expected, rel=1e-5)
    assert linear_probe.log_loss(logits.numpy(), labels.numpy()) == pytest.approx(expected, rel=1e-5)


def test_weights_are_of_having_a_label() -> None:
    logits, labels = torch.zeros(2, 3), torch.tensor([[1, 0, 1], [0, 0, 1]])
    found = float(mean_loss(logits, labels, settings([5.0, 5.0, 1.0])))
    assert found == pytest.approx(math.log(2) * (5 + 1 + 1 + 1 + 1 + 1) / 6)
    weights = balanced_weights(np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 1]]), 3)
    assert weights.tolist() == [3.0, 3.0, 0.0]


def test_smoothing_moves_answers_towards_one_half() -> None:
    logits, labels = torch.tensor([[2.0]]), torch.tensor([[1]])
    found = float(mean_loss(logits, labels, settings(label_smoothing=0.2)))
    assert found == pytest.approx(-(0.9 * math.log(expit(2.0)) + 0.1 * math.log(expit(-2.0))))


def labelled(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 6) and labels (N, 3); the last one is rare."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 6))
    scores = features[:, :3] + 0.5 * rng.normal(size=(count, 3)) - np.array([0, 0.3, 1.2])
    return features, (scores > 0).astype(np.int64)


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 6.0])])
def test_the_head_is_scikit_learns_regression_of_each_label(weights: np.ndarray | None) -> None:
    features, labels = labelled(200)
    head = linear_probe.fit_head((features, labels), labelled(100, seed=1), 3, weights)
    for place in range(3):
        own = None if weights is None else np.where(labels[:, place] == 1, weights[place], 1.0)
        scaler = StandardScaler().fit(features)
        model = LogisticRegression(C=head.strength, max_iter=3000)
        model.fit(scaler.transform(features), labels[:, place], sample_weight=own)
        expected = model.decision_function(scaler.transform(features))
        np.testing.assert_allclose(head.logits(features)[:, place], expected, atol=2e-2)


def test_a_label_that_all_or_none_have_gets_its_frequency() -> None:
    features, labels = labelled(98)
    labels[:, 0], labels[:, 2] = 1, 0
    head = linear_probe.fit_head((features, labels), (features, labels), 3)
    probabilities = expit(head.logits(features))
    np.testing.assert_allclose(probabilities[:, 0], 99 / 100, rtol=1e-5)
    np.testing.assert_allclose(probabilities[:, 2], 1 / 100, rtol=1e-5)


def test_calibration_mends_what_weights_have_bent() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3000, 2))
    labels = (rng.random((3000, 2)) < expit(logits)).astype(np.int64)
    bent = np.stack([3 * logits[:, 0], logits[:, 1] + 2], axis=1)
    found = calibration_fit.fit(bent, labels)
    assert found.multi_label
    for place in range(2):
        ours = log_loss(labels[:, place], found.probabilities(bent)[:, place])
        platt = LogisticRegression(C=1e6).fit(bent[:, [place]], labels[:, place])
        best = log_loss(labels[:, place], platt.predict_proba(bent[:, [place]]))
        assert ours < best + 0.01 and ours < log_loss(labels[:, place], expit(bent[:, place])) - 0.05


def test_a_few_images_calibrate_nothing() -> None:
    few = calibration_fit.fit(np.random.default_rng(0).normal(size=(20, 3)), np.ones((20, 3), dtype=np.int64))
    assert few == calibration.Calibration(multi_label=True)
    np.testing.assert_allclose(few.probabilities(np.array([[0.0, 2.0]])), [[0.5, expit(2.0)]])


def test_each_threshold_is_the_best_for_its_label() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((200, 3)) < [0.5, 0.2, 0.02]).astype(np.int64)
    probabilities = np.clip(0.3 * labels + rng.random((200, 3)) * 0.7, 0, 1)
    choices = decision_threshold.choose_each(parse_goal("recall:0.9"), labels, probabilities)
    assert choices[2] is None, "4 images are too few"
    for place in range(2):
        assert choices[place] == decision_threshold.choose(
            parse_goal("recall:0.9"), labels[:, place], probabilities[:, place]
        )


def test_for_f1_it_is_where_calibrated_probabilities_have_their_best() -> None:
    rng = np.random.default_rng(2)
    probabilities = rng.beta(0.5, 2, (20_000, 1))  # the truth is drawn from them, so they are calibrated
    labels = (rng.random((20_000, 1)) < probabilities).astype(np.int64)
    [choice] = decision_threshold.choose_each(parse_goal("f1"), labels, probabilities)
    assert choice is not None
    said = probabilities[:, 0] >= choice.threshold
    best = max(f1_score(labels[:, 0], probabilities[:, 0] >= cut) for cut in np.linspace(0.1, 0.9, 81))
    assert f1_score(labels[:, 0], said) > best - 0.003
    assert choice.threshold == pytest.approx(best / 2, abs=0.005)
    assert choice.recall == pytest.approx(said[labels[:, 0] == 1].mean())
    assert choice.precision == pytest.approx(labels[said, 0].mean())


def test_confidence_is_that_of_the_least_certain_label() -> None:
    decided = np.array([[1, 0, 0], [1, 1, 0]])
    found = abstention.certainty(np.array([[0.9, 0.2, 0.01], [0.3, 0.99, 0.4]]), decided)
    np.testing.assert_allclose(found, [0.8, 0.3])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with stripes of up to three colours over noise."""
    folder = tmp_path_factory.mktemp("stripes")
    rng, rows = np.random.default_rng(0), []
    for number in range(120):
        has = rng.random(3) < 0.4
        picture = noise(number)
        for place, colour in enumerate(COLOURS.values()):
            if has[place]:
                picture.paste(Image.new("RGB", (32, 10), colour), (0, 11 * place))
        picture.save(folder / f"{number}.png")
        rows.append(f"{number},{number}.png,{','.join(str(int(each)) for each in has)}")
    return write_csv(folder / "train.csv", f"id,file,{','.join(COLOURS)}", *rows)


def make_run(table: Path, folder: Path, name: str = "run", **flags: object) -> RunDir:
    made = create_run(folder, name)
    config = DatasetConfig(train_csv=table, label_column=",".join(COLOURS), no_pretrained=True, **flags)
    made.save_result("dataset", dataset.run(config, made))
    return made


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    made = make_run(table, tmp_path_factory.mktemp("outputs"))
    made.save_result("train", train.run(TINY, made.for_stage("train")))
    return made


@pytest.fixture(scope="module")
def evaluated(trained: RunDir) -> EvaluateReport:
    config = EvaluateConfig(device="cpu", bootstrap_resamples=50, corruption_images=4, attacks=True)
    report = evaluate.run(config, trained.for_stage("evaluate"))
    trained.save_result("evaluate", report)
    return report


def test_the_bundle_knows_its_labels(trained: RunDir) -> None:
    info, _ = read_bundle_info(trained.bundle)
    assert info.multi_label and info.classes == ("blue", "green", "red") and len(info.label_thresholds) == 3
    assert info.calibration.multi_label


def test_stripes_are_learnt(evaluated: EvaluateReport) -> None:
    assert (evaluated.metrics["test_mean_average_precision"] or 0) > 0.9
    assert evaluated.summary[0].startswith("test: all labels correct ")


def test_what_evaluate_scores_is_what_the_table_says(evaluated: EvaluateReport, trained: RunDir) -> None:
    table = pd.read_csv(trained.predictions, keep_default_na=False)
    test = table[table["split"] == "test"]
    assert evaluated.metrics["test_accuracy"] == pytest.approx((test["label"] == test["predicted"]).mean())
    info, _ = read_bundle_info(trained.bundle)
    probabilities = test[[f"p_{name}" for name in info.classes]].to_numpy()
    labels = label_sets.encode(test["label"], info.classes, multi_label=True)
    decided = (probabilities >= np.array(info.label_thresholds)).astype(int)
    assert label_sets.decode(decided, info.classes) == test["predicted"].tolist()
    expected = f1_score(labels, decided, average="micro", zero_division=0)
    assert evaluated.metrics["test_micro_f1"] == pytest.approx(expected)
    assert (trained.path / "evaluate" / "label_errors.png").is_file()


def test_predict_gives_columns_back(trained: RunDir, table: Path) -> None:
    report = predict.run(PredictConfig(device="cpu", top_k=2), trained.for_stage("predict"))
    folder = trained.path / "predict"
    given = pd.read_csv(table).set_index("id")
    submission = pd.read_csv(folder / "submission.csv").set_index("id")
    assert list(submission.columns) == list(COLOURS)
    rows = pd.read_csv(folder / "predictions.csv", keep_default_na=False).set_index("id")
    assert len(rows) == report.rows == len(submission)
    for identity, row in rows.iterrows():
        assert set(label_text.parts(row["label"])) == {c for c in COLOURS if submission.loc[identity, c]}
    assert (submission == given.loc[submission.index, list(COLOURS)]).to_numpy().mean() > 0.8


def test_training_goes_on_as_if_it_had_not_stopped(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, epochs=3, mixup=0.4, class_weights="balanced", label_smoothing=0.1)
    whole, stopped = (make_run(table, tmp_path, name).for_stage("train") for name in ("whole", "stopped"))
    train.run(config, whole)
    with monkeypatch.context() as patch:
        patch.setattr(epoch_log, "log_epoch", lambda history, planned: _interrupt())
        with pytest.raises(KeyboardInterrupt):
            train.run(config, stopped)
    train.run(replace(config, resume=True), stopped)
    expected, found = (load_bundle(each.bundle).tensors() for each in (whole, stopped))
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_precision_asked_for_is_kept_for_every_label(table: Path, tmp_path: Path) -> None:
    made = make_run(table, tmp_path).for_stage("train")
    report = train.run(replace(TINY, epochs=1, threshold_for="recall:0.9", target_accuracy=0.6), made)
    assert any("each label has its threshold, for recall:0.9" in line for line in report.summary)
    info, _ = read_bundle_info(made.bundle)
    rows = load_split(made, "val")
    predictor = Predictor(made.bundle, "cpu", engine="torch")
    outcomes = list(predictor.predict([Path(path) for path in rows["path"]]))
    labels = label_sets.encode(rows["label"], info.classes, multi_label=True)
    decided = label_sets.encode([outcome.label for outcome in outcomes], info.classes, multi_label=True)
    for place, threshold in enumerate(info.label_thresholds):
        has = labels[:, place] == 1
        if threshold != 0.5:
            assert decided[has, place].mean() >= 0.9
    right = is_correct(decided, labels)
    sure = np.array([outcome.confidence >= (info.confidence_threshold or 0) for outcome in outcomes])
    assert not sure.any() or right[sure].mean() >= 0.6


def test_labels_have_thresholds_in_any_case() -> None:
    labels = np.array([[0, 1], [1, 1]])
    assert str(finalize.threshold_goal(TINY, labels, 2)) == "f1"
    assert str(finalize.threshold_goal(replace(TINY, threshold_for="recall:0.9"), labels, 2)) == "recall:0.9"
