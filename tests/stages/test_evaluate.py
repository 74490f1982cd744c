"""The stage on small runs written by hand: what it leaves behind, for two and many classes and for broken files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import write_rows
from safetensors.torch import save_file

import evaluate
from spectacles.core.config import EvaluateCommand, EvaluateConfig
from spectacles.core.errors import UserError
from spectacles.core.results import DatasetReport, EvaluateReport, RowAccounting
from spectacles.core.run_dir import RunDir, create_run
from spectacles.core.wording import percent
from spectacles.data import schemas
from spectacles.evaluation import precision_check
from spectacles.export.formats import onnx_pixels
from spectacles.export.shipped import Shipped
from spectacles.inference.predictor import Predictor
from spectacles.metrics import classification, decisions, probability_scores
from spectacles.models import backbones, engines, feature_cache, precision, quantization
from spectacles.models.bundle import INT8_FILES, PRECISION_FILE, load_bundle, save_bundle
from spectacles.models.classifier import Classifier, load_classifier
from spectacles.models.precision import Checked
from spectacles.report import evaluation_plots, reliability_plots

FINGERPRINT = "f" * 64
SMALL = EvaluateConfig(device="cpu", engine="torch", num_workers=1, batch_size=8, bootstrap_resamples=60,
                       corruption_images=8)  # fmt: skip
Make = Callable[..., RunDir]


@pytest.fixture
def make_run(tmp_path: Path, make_bundle: Callable[..., Path]) -> Make:
    """A run after training: `labels` by split, a tiny net with random weights, more `columns` of splits.csv."""

    def make(name: str, labels: dict[str, Sequence[str]], classes: Sequence[str] = ("cat", "dog"), seed: int = 0,
             columns: dict[str, Sequence[object]] | None = None, **facts: object) -> RunDir:  # fmt: skip
        made = create_run(tmp_path / "outputs", name)
        names = [label for each in labels.values() for label in each]
        rows = write_rows(tmp_path / name, len(names), first_seed=seed)
        rows = rows.assign(label=names, group="", id="", cluster=range(len(names)))
        rows["split"] = [split for split, each in labels.items() for _ in each]
        rows["file"] = [Path(path).name for path in rows["path"]]
        made.splits.parent.mkdir(parents=True)
        rows.assign(**(columns or {})).to_csv(made.splits, index=False)
        shutil.copytree(make_bundle(*classes, **{"data_fingerprint": FINGERPRINT} | facts), made.bundle)
        accounting = RowAccounting(
            rows=len(rows), used=len(rows), converted=0, rejected=0, conversions={}, rejections={}
        )
        report = DatasetReport(
            summary=[], metrics={}, artifacts=[], classes=list(classes), multi_label=bool(facts.get("multi_label")),
            row_accounting=accounting, counts={}, images={}, unlabelled=0, fingerprint=FINGERPRINT,
            label_column="label", id_column="",
        )  # fmt: skip
        made.save_result("dataset", report)
        made.write_config({"no_pretrained": True})
        return made.for_stage("evaluate")

    return make


@pytest.fixture(autouse=True)
def _unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are drawn, but turning them into pixels takes longer than all the rest; test_trust_plots does that."""

    def save(figure: object, path: Path) -> Path:
        path.write_bytes(b"")
        return path

    for module in (evaluation_plots, reliability_plots):
        monkeypatch.setattr(module, "save", save)


def finish(made: RunDir, config: EvaluateConfig = SMALL) -> EvaluateReport:
    report = evaluate.run(config, made)
    made.save_result("evaluate", report)
    assert 5 <= len(report.artifacts) <= 12
    assert all((made.path / artifact).is_file() for artifact in report.artifacts)
    return report


def read(made: RunDir, name: str) -> dict:
    return json.loads((made.path / "evaluate" / name).read_text(encoding="utf-8"))


def two(count: int) -> list[str]:
    return ["cat", "dog", "dog"] * (count // 3)


def test_a_file_is_scored_in_the_place_of_the_bundle(make_run: Make, tmp_path: Path) -> None:
    made = make_run("run", {"train": two(3), "val": two(9), "test": two(12)}, temperature=0.2)
    path = tmp_path / "model.onnx"
    onnx_pixels.write(Shipped(*load_classifier(made.bundle), made.bundle), "fp32", path)
    finish(made)
    expected = schemas.probabilities(schemas.PREDICTIONS.read(made.predictions), ["cat", "dog"])
    command = EvaluateCommand(**vars(replace(SMALL, engine="auto")), bundle=path)
    report = finish(made, command)
    assert f"scored {path}, which onnxruntime computed in fp32" in report.summary
    given = schemas.probabilities(schemas.PREDICTIONS.read(made.predictions), ["cat", "dog"])
    np.testing.assert_allclose(given, expected, atol=1e-4)
    with pytest.raises(UserError, match=r"--attacks needs gradients, which .*model\.onnx does not give"):
        evaluate.run(replace(command, attacks=True), made)
    other = make_run("other", {"train": two(3), "val": two(3)}, data_fingerprint="0" * 64)
    with pytest.raises(UserError, match="was trained on other data"):
        evaluate.run(EvaluateCommand(**vars(SMALL), bundle=other.bundle), made)


def test_numbers_follow_from_the_table_of_predictions(make_run: Make) -> None:
    made = make_run("run", {"train": two(3), "val": two(9), "test": two(48)}, temperature=2.0, threshold=0.5)
    report = finish(made)
    table = schemas.PREDICTIONS.read(made.predictions)
    scores = read(made, "metrics.json")
    assert len(table) == 57 and set(scores) == {"val", "test"}
    for split, values in scores.items():
        part = table[table["split"] == split]
        labels = (part["label"] == "dog").to_numpy().astype(int)
        probabilities = schemas.probabilities(part, ["cat", "dog"])
        expected = classification.classification_metrics(labels, probabilities, decisions.decide(probabilities, 0.5), 2)
        assert {name: values[name] for name in expected} == pytest.approx(expected)
        logits = part[["z_cat", "z_dog"]].to_numpy()
        raw = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert values["calibration"]["before"] == pytest.approx(probability_scores.calibration_metrics(labels, raw))
        assert values["calibration"]["after"] == pytest.approx(
            probability_scores.calibration_metrics(labels, probabilities)
        )
        for name, (low, high) in values["intervals"].items():
            assert low <= values[name] <= high, name
        assert values["selective"]["accuracy"][-1] == pytest.approx(values["accuracy"])
        assert (values["low_confidence"], values["out_of_distribution"]) == (0, 0)
        assert values["answered"]["images"] == len(part)
    assert {"accuracy", "balanced_accuracy", "log_loss", "brier", "ece", "roc_auc"} <= scores["test"][
        "intervals"
    ].keys()
    test = scores["test"]
    assert report.scored_on == "test"
    assert report.accuracy_interval == tuple(test["accuracy_interval"]) == tuple(test["intervals"]["accuracy"])
    assert report.metrics["test_log_loss_high"] == test["intervals"]["log_loss"][1]
    assert report.metrics["test_aurc"] == test["selective"]["aurc"]
    low, high = test["accuracy_interval"]
    assert report.summary[0] == f"test: accuracy {test['accuracy']:.4f} ({low:.4f}-{high:.4f}, 95 %), 48 images"
    assert "evaluate/threshold.png" in report.artifacts and "evaluate/per_class.png" not in report.artifacts


def test_a_class_that_the_test_split_does_not_hold_is_named_where_means_are_shown(make_run: Make) -> None:
    made = make_run("run", {"train": two(3), "val": two(9), "test": ["cat"] * 6})
    report = finish(made)
    assert (report.metrics["test_classes"], report.metrics["test_classes_scored"]) == (2, 1)
    assert (report.metrics["val_classes"], report.metrics["val_classes_scored"]) == (2, 2)
    assert re.search(r"balanced accuracy \d\.\d+( \(.*\))? over 1 of 2 classes", " ".join(report.summary))
    assert report.metrics["test_precision"] is report.metrics["test_recall"] is report.metrics["test_hter"] is None
    caution = next(line for line in report.summary if line.startswith("test has no image of 1 of 2 classes ('dog')"))
    assert "their metrics are undefined" in caution


def test_precision_and_recall_are_those_of_the_positive_class(make_run: Make) -> None:
    made = make_run("run", {"train": two(3), "val": two(9), "test": two(48)}, classes=("dog", "cat"), threshold=0.5)
    report = finish(made)
    table = schemas.PREDICTIONS.read(made.predictions)
    test = table[table["split"] == "test"]
    hit = ((test["label"] == "cat") & (test["predicted"] == "cat")).sum()
    scores = read(made, "metrics.json")["test"]
    assert scores["positive_class"] == "cat"
    assert scores["recall"] == pytest.approx(hit / (test["label"] == "cat").sum())
    claimed = (test["predicted"] == "cat").sum()
    assert scores["precision"] == (pytest.approx(hit / claimed) if claimed else None)
    assert any(f"recall of 'cat' {scores['recall']:.4f}" in line for line in report.summary)
    assert report.metrics["test_recall"] == scores["recall"]


def test_given_and_measured_slices_are_scored(make_run: Make) -> None:
    columns = {
        "slice_sex": ["f", "m"] * 40,
        "brightness": np.linspace(0, 200, 80),
        "width": [32] * 80,
        "height": [32] * 80,
    }
    made = make_run("run", {"train": ["cat"] * 4, "val": ["dog"] * 4, "test": two(72)}, columns=columns)
    report = finish(made)
    found = read(made, "slices.json")["slices"]
    assert [(entry["column"], entry["source"]) for entry in found] == [("sex", "column")] * 2 + [
        ("brightness", "automatic")
    ] * 3
    table = schemas.PREDICTIONS.read(made.predictions).query("split == 'test'").reset_index(drop=True)
    women = table[table.index % 2 == 0]
    assert found[0]["accuracy"] == pytest.approx((women["label"] == women["predicted"]).mean())
    assert (found[0]["sufficient"], found[2]["sufficient"]) == (True, False)
    assert len(pd.read_csv(made.path / "evaluate" / "slices.csv")) == 5
    assert any("slice" in line for line in report.summary)


def test_looks_come_from_the_backbone_before_training(make_run: Make, tmp_path: Path) -> None:
    made = make_run("run", {"train": ["cat"] * 4, "val": ["dog"] * 4, "test": two(66)})
    torch.manual_seed(1)
    backbone = backbones.build("test_efficientnet", 3, 32)
    save_file(backbone.state_dict(), tmp_path / "backbone.safetensors")
    info = load_bundle(made.bundle).info
    dim = backbones.feature_dim(backbone, 3, 32)
    trained = Classifier(backbone, dim, 2, 0.0)
    save_bundle(made.bundle, replace(info, backbone="test_efficientnet", feature_dim=dim), trained.state_dict())
    made.write_config({"no_pretrained": False, "weights": str(tmp_path / "backbone.safetensors")})
    finish(made)
    looks = [entry for entry in read(made, "slices.json")["slices"] if entry["column"] == "looks"]
    assert len(looks) == 2 and sum(entry["images"] for entry in looks) == 66
    assert (made.output_dir / "cache" / feature_cache.FILE).is_file()
    made.write_config({"no_pretrained": False, "weights": str(tmp_path / "lost.safetensors")})
    finish(made)
    assert read(made, "slices.json")["slices"] == []


def test_validation_data_alone_are_scored_and_called_optimistic(make_run: Make) -> None:
    made = make_run("run", {"train": two(3), "val": two(12), "test": [""] * 5})
    report = finish(made)
    assert report.scored_on == "val"
    assert set(read(made, "metrics.json")) == {"val"} == set(schemas.PREDICTIONS.read(made.predictions)["split"])
    assert any("optimistic" in line for line in report.summary)
    assert any("12 images are few" in line for line in report.summary)
    assert report.metrics["val_accuracy_low"] == report.accuracy_interval[0]


@pytest.mark.parametrize("test", [["dog"], ["dog"] * 7])
def test_a_test_split_of_one_class(make_run: Make, test: list[str]) -> None:
    made = make_run("run", {"train": two(3), "val": two(6), "test": test})
    report = finish(made)
    scores = read(made, "metrics.json")["test"]
    assert (scores["images"], scores["roc_auc"], scores["hter"]) == (len(test), None, None)
    assert not {"roc_auc", "hter"} & scores["intervals"].keys()
    assert report.metrics["test_roc_auc"] is None
    assert report.accuracy_interval[0] < report.accuracy_interval[1]


def test_many_classes(make_run: Make) -> None:
    classes = [f"class {number}" for number in range(12)]
    made = make_run("run", {"train": classes, "val": classes, "test": classes * 2}, classes)
    report = finish(made)
    scores = read(made, "metrics.json")["test"]
    assert len(scores["per_class"]) == 12 and "hter" not in scores
    assert scores["intervals"]["macro_f1"][0] <= scores["macro_f1"] <= scores["intervals"]["macro_f1"][1]
    assert "evaluate/per_class.png" in report.artifacts and "evaluate/threshold.png" not in report.artifacts


def test_files_that_broke_since_are_counted_and_nothing_else_suffers(make_run: Make) -> None:
    made = make_run("run", {"train": two(3), "val": two(6), "test": two(12)})
    rows = pd.read_csv(made.splits)
    broken = rows.loc[rows["split"] == "test", "path"].iloc[3]
    Path(broken).write_bytes(b"")
    report = finish(made)
    scores = read(made, "metrics.json")
    assert (scores["test"]["images"], scores["test"]["rejected"], scores["val"]["rejected"]) == (11, 1, 0)
    assert any("1 file became unreadable" in line for line in report.summary)
    for path in rows["path"]:
        Path(path).write_bytes(b"")
    with pytest.raises(UserError, match="nothing can be scored"):
        evaluate.run(SMALL, made)


def test_another_split_than_the_bundles_is_rejected(make_run: Make) -> None:
    made = make_run("run", {"train": two(3), "val": two(6), "test": two(6)})
    report = made.load_result("dataset", DatasetReport)
    made.save_result("dataset", replace(report, fingerprint="0" * 64))
    with pytest.raises(UserError, match=r"run train\.py again"):
        evaluate.run(SMALL, made)


def test_abstentions_are_counted(make_run: Make) -> None:
    labels = {"train": two(3), "val": two(6), "test": two(30)}
    whole = make_run("whole", labels)
    finish(whole)
    surest = schemas.PREDICTIONS.read(whole.predictions)[["p_cat", "p_dog"]].max(axis=1)
    made = make_run("strict", labels, confidence_threshold=float(surest.median()))
    report = finish(made)
    scores, table = read(made, "metrics.json")["test"], schemas.PREDICTIONS.read(made.predictions)
    part = table[(table["split"] == "test") & ~table["abstained"]]
    assert scores["low_confidence"] == 30 - len(part) > 0
    assert scores["answered"]["accuracy"] == pytest.approx((part["label"] == part["predicted"]).mean())
    assert report.metrics["test_low_confidence"] == scores["low_confidence"]
    assert any(f"({scores['low_confidence']} low confidence); of the other" in line for line in report.summary)


def test_two_runs_are_compared_on_the_same_contents(make_run: Make) -> None:
    labels = {"train": two(3), "val": two(6), "test": two(30)}
    finish(make_run("before", labels))
    made = make_run("after", labels, threshold=0.99)
    report = finish(made, replace(SMALL, compare="before"))
    found = read(made, "comparison.json")
    assert (found["other"], found["images"], found["split"]) == ("before", 30, "test")
    assert found["differences"]["accuracy"]["this"] == read(made, "metrics.json")["test"]["accuracy"]
    assert found["sentence"] in report.summary and "evaluate/comparison.json" in report.artifacts
    finish(made)
    assert not (made.path / "evaluate" / "comparison.json").exists()


def test_what_cannot_be_compared_costs_no_inference(make_run: Make) -> None:
    made = make_run("run", {"train": two(3), "val": two(6), "test": two(6)})
    with pytest.raises(UserError, match=r"--compare can be one of: .*run"):
        evaluate.run(replace(SMALL, compare="nowhere"), made)
    assert not made.predictions.exists()


def test_corruptions_are_measured_on_request_and_no_old_file_stays(make_run: Make) -> None:
    made = make_run("run", {"train": two(3), "val": two(6), "test": two(12)})
    report = finish(made, replace(SMALL, attacks=True))
    found = read(made, "corruptions.json")
    assert found["images"] == 8 and set(found["attacks"]) == {"fgsm", "pgd"}
    assert report.metrics["test_accuracy_gaussian_blur"] == pytest.approx(np.mean(found["accuracies"]["gaussian_blur"]))
    assert report.metrics["test_accuracy_pgd_8"] == found["attacks"]["pgd"]["8/255"]
    assert (made.path / "evaluate" / "corruptions.png").is_file()
    report = finish(made, replace(SMALL, corruption_images=0))
    assert not list((made.path / "evaluate").glob("corruptions*"))
    assert not any("blur" in name for name in report.metrics)


def test_the_same_again_is_the_same(make_run: Make) -> None:
    made = make_run("run", {"train": two(3), "val": two(6), "test": two(36)})
    names = ("metrics.json", "slices.json", "corruptions.json", "predictions.csv")
    first = finish(made)
    before = {name: (made.path / "evaluate" / name).read_bytes() for name in names}
    assert finish(made) == first
    assert {name: (made.path / "evaluate" / name).read_bytes() for name in names} == before


def check_precision(made: RunDir, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Checked, EvaluateReport]:
    """Of a run with 60 validation photos, evaluated at a precision that any processor can compute in."""
    monkeypatch.setattr(precision_check, "ENOUGH", 60)
    monkeypatch.setattr(precision, "obstacle", lambda *_: "")
    report = finish(made, replace(SMALL, precision=name, corruption_images=0))
    bundle, model_id = made.bundle, report.model_id
    found = precision.recorded("int8" if name == "int8" else "bf16", bundle, model_id, "cpu")
    assert found is not None
    return found, report


OPENVINO = pytest.mark.skipif(not engines.is_installed("openvino"), reason="openvino is not installed")


@OPENVINO
def test_bfloat16_is_checked_for_the_commands_that_follow(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_run("run", {"train": two(3), "val": two(60), "test": two(9)}, threshold=0.5)
    made.write_config({"no_pretrained": True, "threshold_for": "hter"})
    found, report = check_precision(made, "auto", monkeypatch)
    exact = pd.read_csv(made.predictions)
    assert found.sentence() in report.summary and found.images == 60
    assert 0 < found.fitted.temperature != 1 and found.fitted.threshold not in (None, 0.5)
    found, report = check_precision(made, "bf16", monkeypatch)
    assert "scored in bf16" in report.summary
    scored, val = pd.read_csv(made.predictions), exact["split"] == "val"
    columns = [column for column in exact.columns if column.startswith("z_")]
    np.testing.assert_allclose(scored[columns], exact[columns], atol=0.05)
    right = scored.loc[val, "correct"]
    assert right.mean() == found.accuracy
    model = Predictor(made.bundle, "cpu", precision="bf16")
    assert (model.precision, model.engine) == ("bf16", "openvino")
    assert (model.info.temperature, model.info.threshold) == (found.fitted.temperature, found.fitted.threshold)
    [answer] = model.predict([Path(exact["path"][0])])
    assert answer.probabilities == pytest.approx(tuple(scored.loc[0, ["p_cat", "p_dog"]]))
    assert Predictor(made.bundle, "cpu").info.threshold == 0.5


@OPENVINO
@pytest.mark.skipif(not engines.is_installed("nncf"), reason="nncf is not installed")
def test_int8_is_quantised_once_scored_and_verified(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_run("run", {"train": two(12), "val": two(60)}, multi_label=False)
    found, report = check_precision(made, "int8", monkeypatch)
    assert "scored in int8" in report.summary and set(found.files) == set(INT8_FILES)
    monkeypatch.setattr(quantization, "quantize", None)
    again, _ = check_precision(made, "int8", monkeypatch)
    assert again == found
    assert Predictor(made.bundle, "cpu", precision="int8").precision == "int8"
    (made.bundle / INT8_FILES[1]).write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"network-int8.bin was changed: run `python evaluate.py --precision int8`"):
        Predictor(made.bundle, "cpu", precision="int8")


@OPENVINO
def test_a_precision_with_other_answers_is_not_taken(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made up: it swaps the classes, which no calibration mends, for every tenth photo."""
    made = make_run("run", {"train": two(3), "val": two(60)})
    exact = Predictor(made.bundle, "cpu", engine="torch")

    def build(*_: object) -> engines.Engine:
        def run(pixels: np.ndarray) -> engines.Outputs:
            outputs = exact.run(pixels)
            outputs["logits"][:1] += np.array([50.0, -50.0], dtype=np.float32)
            return outputs

        return run

    monkeypatch.setattr(precision, "build", build)
    found, _ = check_precision(made, "auto", monkeypatch)
    assert 0 < found.same_labels < precision.MIN_AGREEMENT and found.difference > 0.1
    assert found.objection == f"only {percent(found.same_labels)} of the labels are float32's"
    assert f"auto does not take it: {found.objection}" in found.sentence()


def test_few_validation_photos_show_nothing_about_a_precision(make_run: Make, monkeypatch) -> None:
    made = make_run("run", {"train": two(3), "val": two(9)})
    monkeypatch.setattr(precision, "obstacle", lambda *_: "")
    with pytest.raises(UserError, match="--precision bf16 is compared with float32 on 100 validation photos or more"):
        finish(made, replace(SMALL, precision="bf16"))
    finish(made, replace(SMALL, precision="auto", corruption_images=0))
    assert not (made.bundle / PRECISION_FILE).exists()
