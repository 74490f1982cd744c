"""The stage on images with any number of labels: one made wrong in two of them, predictions written by hand."""

import json
import re
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
from spectacles.core.results import ErrorReport, EvaluateReport
from spectacles.core.run_dir import RunDir
from spectacles.data import label_sets, label_text
from spectacles.data.preprocessing import Preprocessing
from spectacles.data.schemas import load_split
from spectacles.data.splits import SPLITS
from spectacles.models import backbones
from spectacles.models.bundle import BundleInfo, save_bundle
from spectacles.models.classifier import Classifier
from spectacles.report import error_galleries

CLASSES = ("bright", "red")
WRONG = {"9.png": "red", "22.png": "bright"}
"""File -> label that it has and should not, or lacks and should have."""
PREPROCESSING = Preprocessing(32, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)


def true_labels(number: int) -> set[str]:
    return {name for bit, name in enumerate(CLASSES) if number >> bit & 1}


def config_of(folder: Path, **flags: object) -> DatasetConfig:
    return DatasetConfig(
        train_csv=folder / "train.csv", label_column="bright,red", num_workers=1, val_fraction=0.2, test_fraction=0.2,
        duplicate_similarity=1, **flags,
    )  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    rng, rows = np.random.default_rng(0), []
    for number in range(60):
        true = true_labels(number)
        pixels = rng.integers(0, 100, (8, 8, 3)) + (100 if "bright" in true else 0)
        pixels[..., 0] += 55 if "red" in true else 0
        image = Image.fromarray(pixels.astype(np.uint8))
        image.resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / f"{number}.png")
        given = true ^ {WRONG.get(f"{number}.png", "")}
        rows.append(f"{number}.png,{','.join(str(int(name in given)) for name in CLASSES)}")
    write_csv(tmp_path / "train.csv", "file,bright,red", *rows)
    run = RunDir(tmp_path / "outputs" / "run", "error_analysis")
    run.save_result("dataset", dataset.run(config_of(tmp_path), run))
    torch.manual_seed(0)
    classifier = Classifier(backbones.build("simple_cnn", 3, 32), 128, 2, 0.0)
    info = BundleInfo(
        backbone="simple_cnn", classes=CLASSES, label_column="bright,red", preprocessing=PREPROCESSING, feature_dim=128,
        dropout=0.0, threshold=None, temperature=1.0, data_fingerprint="", training_profile={}, class_shares=(0.5, 0.5),
        metric="accuracy",
        metric_value=0.5, epoch=1, phase="head", multi_label=True, label_thresholds=(0.5, 0.5),
    )  # fmt: skip
    save_bundle(run.bundle, info, classifier.state_dict())
    save_file(classifier.backbone.state_dict(), tmp_path / "pretrained.safetensors")
    run.save_config("train", {"no_pretrained": False, "weights": str(tmp_path / "pretrained.safetensors")})
    return run


def analyse(run_dir: RunDir, table: pd.DataFrame) -> ErrorReport:
    run_dir.predictions.parent.mkdir(exist_ok=True)
    table.to_csv(run_dir.predictions, index=False)
    facts = {"summary": [], "metrics": {}, "artifacts": [], "model_id": "x", "accuracy_interval": (0.0, 1.0)}
    run_dir.save_result("evaluate", EvaluateReport(scored_on="test", **facts))
    config = ErrorAnalysisConfig(device="cpu", num_workers=1, gallery_size=4, batch_size=8)
    return error_analysis.run(config, run_dir)


def right_predictions(run_dir: RunDir) -> pd.DataFrame:
    table = load_split(run_dir, "val", "test")[["file", "path", "split", "label", "cluster"]]
    return table.assign(predicted=table["label"], confidence=0.75, status="predicted", p_bright=0.6, p_red=0.7)


def read(run_dir: RunDir, name: str) -> pd.DataFrame:
    return pd.read_csv(run_dir.path / "error_analysis" / name, dtype=str, keep_default_na=False)


def test_missed_and_added_labels_are_counted(run_dir: RunDir) -> None:
    table = right_predictions(run_dir)
    in_test = table[table["split"] == "test"]
    with_red = in_test.index[label_sets.has(in_test["label"], "red", True)]
    without = in_test.index[in_test["label"] == "none"]
    for row in with_red[:2]:
        table.loc[row, "predicted"] = label_sets.join(set(label_text.parts(table["label"][row])) - {"red"})
    table.loc[without[0], "predicted"] = "bright|red"
    report = analyse(run_dir, table)
    assert report.errors == 3
    assert set(read(run_dir, "misclassified.csv")["file"]) == set(table["file"][[*with_red[:2], without[0]]])
    found = read(run_dir, "confused_pairs.csv")
    assert found.columns.tolist() == ["label", "error", "count", "share"]
    counts = {(row.label, row.error): (row.count_, float(row.share))
              for row in found.rename(columns={"count": "count_"}).itertuples()}  # fmt: skip
    lack_bright = (~label_sets.has(in_test["label"], "bright", True)).sum()
    assert counts == {
        ("red", "missed"): ("2", pytest.approx(2 / len(with_red))),
        ("red", "added"): ("1", pytest.approx(1 / (len(in_test) - len(with_red)))),
        ("bright", "added"): ("1", pytest.approx(1 / lack_bright)),
    }
    assert report.summary[1].startswith("most frequent error: red missed, 2 times (")
    assert "% of the images with it)" in report.summary[1]
    nearest = read(run_dir, "nearest.csv")
    assert set(nearest["neighbour_label"]) <= {"none", "bright", "red", "bright|red"}
    for artifact in report.artifacts:
        assert (run_dir.path / artifact).is_file()


def test_wrong_labels_come_first_and_a_review_corrects_them(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[str]] = {}
    draw = error_galleries.image_grid

    def listen(pictures: list[Image.Image], captions: list[str], path: Path, **options: object) -> Path:
        drawn[path.stem] = captions
        return draw(pictures, captions, path, **options)

    monkeypatch.setattr(error_galleries, "image_grid", listen)
    report = analyse(run_dir, right_predictions(run_dir))
    listed = read(run_dir, "noisy_labels.csv")
    assert set(listed["file"][:2]) == set(WRONG) and listed["file"].is_unique
    assert report.suspected_labels == (listed["suspected"] == "True").sum() >= 1
    assert any(f"the labels of {len(listed)} images to review" in line for line in report.summary)
    for row in listed[:2].itertuples():
        assert row.suggested_label == label_sets.join(true_labels(int(row.file.split(".")[0])))
        assert row.doubtful_label == WRONG[row.file]
        assert float(row.probability_given) < 0.5 < float(row.probability_suggested)
        word = "without" if WRONG[row.file] in row.label else "with"
        assert any(
            f"{row.file}\nlabel {row.label}, suggested {word} {WRONG[row.file]}\n" in c for c in drawn["noisy_labels"]
        )
    page = (run_dir.path / "error_analysis" / "review.html").read_text(encoding="utf-8")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    assert data["multi_label"] is True and data["classes"] == list(CLASSES)
    assert [item["doubt"] for item in data["items"]] == listed["doubtful_label"].tolist()

    rows = [f"{row.file},{row.label},{row.suggested_label},changed,run" for row in listed[:2].itertuples()]
    write_csv(tmp_path / "label_fixes.csv", "file,given_label,fixed_label,decision,run", *rows)
    again = RunDir(tmp_path / "outputs" / "again")
    fixed = dataset.run(
        config_of(tmp_path, label_fixes=tmp_path / "label_fixes.csv", output_dir=tmp_path / "outputs"), again
    )
    again.save_result("dataset", fixed)
    labels = load_split(again, *SPLITS).set_index("file")["label"]
    assert all(labels[f"{number}.png"] == label_sets.join(true_labels(number)) for number in range(60))
    assert fixed.multi_label and fixed.row_accounting.converted == 2
