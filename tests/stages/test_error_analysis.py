"""The stage on a small data set with hand-written predictions: errors, doubtful labels, pictures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import write_csv
from PIL import Image
from safetensors.torch import save_file

import dataset
import error_analysis
from spectacles.core.config import DatasetConfig, ErrorAnalysisConfig
from spectacles.core.errors import UserError
from spectacles.core.results import ErrorReport, EvaluateReport, from_json, to_json
from spectacles.core.run_dir import RunDir
from spectacles.data.preprocessing import Preprocessing
from spectacles.data.schemas import load_split
from spectacles.evaluation import attribution, saliency
from spectacles.models import backbones
from spectacles.models.bundle import BundleInfo, save_bundle
from spectacles.models.classifier import Classifier

CLASSES = ("0", "NA")
FLIPPED = ("7.png", "20.png")
PREPROCESSING = Preprocessing(32, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)


@dataclass
class Prepared:
    run_dir: RunDir
    table: pd.DataFrame
    """A row for each labelled image of val and test, all predicted right."""

    def run(self, scored_on: str = "test", **flags: object) -> ErrorReport:
        self.run_dir.predictions.parent.mkdir(exist_ok=True)
        self.table.to_csv(self.run_dir.predictions, index=False)
        facts = {"summary": [], "metrics": {}, "artifacts": [], "model_id": "x", "accuracy_interval": (0.0, 1.0)}
        self.run_dir.save_result("evaluate", EvaluateReport(scored_on=scored_on, **facts))
        config = ErrorAnalysisConfig(device="cpu", num_workers=1, gallery_size=4, batch_size=3, **flags)
        return error_analysis.run(config, self.run_dir)

    def predict(self, row: int, predicted: str, confidence: float) -> None:
        self.table.loc[row, ["predicted", "confidence"]] = [predicted, confidence]

    def read(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.run_dir.path / "error_analysis" / name, dtype=str, keep_default_na=False)

    def image_size(self, name: str) -> tuple[int, int]:
        with Image.open(self.run_dir.path / "error_analysis" / name) as picture:
            return picture.size


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """Dark images are class 0 and bright ones class NA, but for FLIPPED; a random simple_cnn stands for the model."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        bright = number % 2
        pixels = rng.integers(0, 100, (8, 8, 3), dtype=np.uint8) + np.uint8(150 * bright)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{CLASSES[bright ^ (f'{number}.png' in FLIPPED)]}")
    table = write_csv(tmp_path / "train.csv", "file,label", *rows)
    run_dir = RunDir(tmp_path / "outputs" / "run", "error_analysis")
    config = DatasetConfig(
        train_csv=table, num_workers=1, val_fraction=0.2, test_fraction=0.2, duplicate_similarity=1, na_labels=""
    )
    run_dir.save_result("dataset", dataset.run(config, run_dir))
    save_model(run_dir, tmp_path)
    return Prepared(run_dir, right_predictions(run_dir))


def save_model(run_dir: RunDir, folder: Path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(backbones.build("simple_cnn", 3, 32), 128, 2, 0.0)
    info = BundleInfo(
        backbone="simple_cnn", classes=CLASSES, label_column="label", preprocessing=PREPROCESSING, feature_dim=128,
        dropout=0.0, threshold=None, temperature=1.0, data_fingerprint="", training_profile={}, class_shares=(0.5, 0.5),
        metric="accuracy",
        metric_value=0.5, epoch=1, phase="head",
    )  # fmt: skip
    save_bundle(run_dir.bundle, info, classifier.state_dict())
    save_file(classifier.backbone.state_dict(), folder / "pretrained.safetensors")
    run_dir.save_config("train", {"no_pretrained": False, "weights": str(folder / "pretrained.safetensors")})


def right_predictions(run_dir: RunDir) -> pd.DataFrame:
    table = load_split(run_dir, "val", "test")[["file", "path", "split", "label", "cluster"]]
    return table.assign(predicted=table["label"], confidence=0.75, correct=True, status="predicted", p_0=0.5, p_NA=0.5)


def test_errors_of_both_splits_are_listed_and_those_of_test_counted(prepared: Prepared) -> None:
    table = prepared.table
    in_test = table.index[(table["split"] == "test") & (table["label"] == "0")]
    in_val = table.index[(table["split"] == "val") & (table["label"] == "NA")]
    prepared.predict(in_test[0], "NA", 0.6)
    prepared.predict(in_test[1], "NA", 0.9)
    prepared.predict(in_val[0], "0", 0.8)
    table.loc[in_test[2], ["predicted", "confidence", "status"]] = ["", 0.0, "rejected: truncated"]
    report = prepared.run()
    listed = prepared.read("misclassified.csv")
    assert list(listed.columns) == ["file", "split", "label", "predicted", "confidence"]
    assert listed["file"].tolist() == table.loc[[in_test[1], in_val[0], in_test[0]], "file"].tolist()
    assert listed["predicted"].tolist() == ["NA", "0", "NA"]
    [pair] = prepared.read("confused_pairs.csv").to_dict("records")
    assert (pair["label"], pair["predicted"], pair["count"]) == ("0", "NA", "2")
    assert float(pair["share"]) == pytest.approx(2 / (len(in_test) - 1))
    assert report.errors == 2
    assert report.metrics["test_errors"] == 2
    assert report.metrics["val_errors"] == 1
    assert f"2 of {(table['split'] == 'test').sum() - 1} images misclassified" in report.summary[0]
    assert "0 mistaken for NA, 2 times" in report.summary[1]
    assert from_json(ErrorReport, to_json(report)) == report
    for artifact in report.artifacts:
        assert (prepared.run_dir.path / artifact).is_file()
    # Two errors, each with its overlay, are wider than two errors alone.
    assert prepared.image_size("explained_errors.png")[0] > prepared.image_size("misclassified.png")[0]


def test_wrong_labels_come_first(prepared: Prepared) -> None:
    report = prepared.run()
    listed = prepared.read("noisy_labels.csv")
    assert set(listed["file"][:2]) == set(FLIPPED)
    assert dict(zip(listed["file"][:2], listed["suggested_label"][:2], strict=True)) == {"7.png": "NA", "20.png": "0"}
    assert (listed["label"] != listed["suggested_label"]).all()
    assert listed["score"].astype(float).is_monotonic_increasing
    assert report.suspected_labels == (listed["suspected"] == "True").sum() >= 2
    assert listed["suspected"][:2].tolist() == ["True", "True"]
    given, suggested = (listed[f"probability_{name}"].astype(float) for name in ("given", "suggested"))
    assert (given < suggested).all()
    assert not any("features of the trained network" in line for line in report.summary)


def test_without_errors_all_files_are_still_written(prepared: Prepared) -> None:
    report = prepared.run()
    assert report.errors == 0
    assert prepared.read("misclassified.csv").empty
    assert prepared.read("confused_pairs.csv").empty
    assert prepared.read("nearest.csv").empty
    for name in (
        "misclassified.png",
        "nearest.png",
        "explained_errors.png",
        "explained_correct.png",
        "noisy_labels.png",
    ):
        assert f"error_analysis/{name}" in report.artifacts
        assert prepared.image_size(name)[1] > 50


def test_the_next_step_is_the_review_page_by_its_full_path(prepared: Prepared) -> None:
    report = prepared.run()
    page = prepared.run_dir.path / "error_analysis" / "review.html"
    listed = prepared.read("noisy_labels.csv")
    assert any(f"{len(listed)} labels to review" in line for line in report.summary)
    assert any(line.startswith("next: ") and str(page) in line for line in report.summary)
    assert "error_analysis/review.html" in report.artifacts
    text = page.read_text(encoding="utf-8")
    assert all(f'"{file}"' in text for file in listed["file"])
    assert text.count("data:image/webp") > len(listed)


def test_each_error_has_its_nearest_training_images(prepared: Prepared) -> None:
    prepared.predict(0, {"0": "NA", "NA": "0"}[prepared.table["label"][0]], 0.6)
    prepared.run()
    nearest = prepared.read("nearest.csv")
    assert nearest.columns.tolist() == ["file", "rank", "neighbour", "neighbour_label", "similarity"]
    assert set(nearest["file"]) == {prepared.table["file"][0]}
    assert nearest["rank"].tolist() == ["1", "2", "3", "4", "5"]
    train = load_split(prepared.run_dir, "train").set_index("file")["label"]
    assert nearest["neighbour_label"].tolist() == train[nearest["neighbour"]].tolist()
    # The class follows brightness, and so do the neighbours' names: even numbers are dark.
    assert len({int(name.split(".")[0]) % 2 for name in [*nearest["neighbour"], nearest["file"][0]]}) == 1


def test_without_galleries_no_photo_is_written(prepared: Prepared) -> None:
    first = prepared.table.iloc[0]
    prepared.predict(0, {"0": "NA", "NA": "0"}[first["label"]], 0.6)
    report = prepared.run(galleries=False)
    folder = prepared.run_dir.path / "error_analysis"
    assert not [path for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".webp", ".npy")]
    page = (folder / "review.html").read_text(encoding="utf-8")
    assert "data:image" not in page
    assert Path(first["path"]).parent.as_uri() in page
    assert {f"error_analysis/{name}.csv" for name in ("nearest", "misclassified", "noisy_labels")} <= set(
        report.artifacts
    )


def test_reviewed_labels_are_not_listed_again(prepared: Prepared, tmp_path: Path) -> None:
    before = prepared.run()
    first, second = prepared.read("noisy_labels.csv")["file"][:2]
    fixes = write_csv(tmp_path / "label_fixes.csv", "file,given_label,fixed_label,decision,run",
                      f"{first},0,0,confirmed,older", f"{second},0,NA,changed,older")  # fmt: skip
    prepared.run_dir.write_config({**prepared.run_dir.load_config(), "label_fixes": str(fixes)})
    report = prepared.run()
    listed = prepared.read("noisy_labels.csv")["file"].tolist()
    assert not {first, second} & set(listed)
    assert len(listed) == before.metrics["labels_to_check"] - 2
    assert any(line.startswith("2 labels decided in an earlier review") for line in report.summary)
    page = (prepared.run_dir.path / "error_analysis" / "review.html").read_text(encoding="utf-8")
    assert f'["{first}", "0", "0", "confirmed", "older"]' in page


def test_without_test_labels_validation_errors_are_shown(prepared: Prepared) -> None:
    prepared.table = prepared.table[prepared.table["split"] == "val"]
    first = prepared.table.index[0]
    wrong = {"0": "NA", "NA": "0"}[prepared.table["label"][first]]
    prepared.predict(first, wrong, 0.9)
    report = prepared.run(scored_on="val")
    assert report.errors == 1
    assert report.summary[0].startswith("val: 1 of ")


def test_without_pretrained_weights_the_trained_backbone_is_used_with_a_note(prepared: Prepared) -> None:
    prepared.run_dir.save_config("train", {"no_pretrained": True, "weights": None})
    report = prepared.run()
    assert any("features of the trained network" in line and "random weights" in line for line in report.summary)
    prepared.run_dir.save_config("train", {"no_pretrained": False, "weights": "gone.safetensors"})
    assert any("gone.safetensors does not exist" in line for line in prepared.run().summary)


def test_without_a_feature_map_only_the_overlays_are_missing(prepared: Prepared, monkeypatch) -> None:
    def reject(*args: object) -> None:
        raise saliency.CannotExplain("it has no map")

    monkeypatch.setitem(attribution.METHODS, "gradcam", reject)
    report = prepared.run()
    assert any(line.startswith("no gradcam for simple_cnn: it has no map") for line in report.summary)
    assert "error_analysis/explained_correct.png" not in report.artifacts


def test_user_errors_are_clear(prepared: Prepared) -> None:
    config = ErrorAnalysisConfig(device="cpu")
    with pytest.raises(UserError, match=r"run `python evaluate\.py"):
        error_analysis.run(config, prepared.run_dir)
    with pytest.raises(UserError, match="--fine_tuned_folds 1"):
        error_analysis.run(ErrorAnalysisConfig(device="cpu", fine_tuned_folds=1), prepared.run_dir)
    prepared.run()
    prepared.run_dir.predictions.unlink()
    with pytest.raises(UserError, match=r"run `python evaluate\.py"):
        error_analysis.run(config, prepared.run_dir)
    for path in prepared.table["path"]:
        Path(path).unlink()
    with pytest.raises(UserError, match="restore the file"):
        prepared.run()
