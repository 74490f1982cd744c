"""A run folder as the stages write it, made by hand: small, with hostile names, every part removable."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pictures import exif, noise
from PIL import Image

from spectacles.core.results import DatasetReport, RowAccounting
from spectacles.core.run_dir import RunDir

EVIL = "</script><img src=x onerror=alert(1)>"
CLASSES = ("plain", f"b|{EVIL}\n*q*")
PLACE = exif(1)
PLACE[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}


@dataclass
class MadeUp:
    run_dir: RunDir
    photos: Path
    classes: Sequence[str] = CLASSES
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of predictions.csv."""

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        path = self.run_dir.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    def write_table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        path = self.run_dir.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(path, index=False)

    def write_config(self, name: str = "config.yaml", **values: Any) -> None:
        path = self.run_dir.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values), encoding="utf-8")

    def result(self, stage: str, summary: Sequence[str] = (), artifacts: Sequence[str] = (), **more: Any) -> None:
        summary = [f"{stage} went well: see {self.run_dir.path / stage / 'file.csv'}", *summary]
        content = {"summary": summary, "metrics": {}, "artifacts": list(artifacts), "seconds": 12.5, **more}
        self.write_json(f"{stage}/result.json", content)

    def photo(self, name: str) -> Path:
        """A JPEG with a GPS position in its EXIF data."""
        path = self.photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            noise(len(list(self.photos.rglob("*.jpg"))), 48, 40).save(path, "JPEG", exif=PLACE)
        return path

    def predict(self, name: str, label: str, predicted: str, confidence: float, split: str = "test") -> None:
        self.rows.append(
            {"file": name, "path": str(self.photo(name)), "split": split, "label": label, "cluster": len(self.rows),
             "predicted": predicted, "confidence": confidence, "correct": label == predicted, "status": "predicted",
             "ood_score": 0.5, "abstained": confidence < 0.6,
             "abstain_reason": "low_confidence" if confidence < 0.6 else ""}
        )  # fmt: skip

    def save_predictions(self) -> None:
        self.write_table("evaluate/predictions.csv", self.rows)

    def chart(self, name: str) -> str:
        path = self.run_dir.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), "white").save(path)
        return name


def data_of(counts: dict[str, dict[str, int]], images: Mapping[str, int] | None = None) -> DatasetReport:
    """What the dataset stage reports of these images a class, or, with `images` a split, of those with each label."""
    totals = images or {split: sum(each.values()) for split, each in counts.items()}
    used = sum(totals.values())
    return DatasetReport(
        summary=[], metrics={}, artifacts=[], classes=list(counts["train"]), multi_label=images is not None,
        row_accounting=RowAccounting(rows=used, used=used, converted=0, rejected=0, conversions={}, rejections={}),
        counts=counts, images=dict(totals), unlabelled=0, fingerprint="f", label_column="label", id_column="id",
    )  # fmt: skip


def make(folder: Path, classes: Sequence[str] = CLASSES) -> MadeUp:
    """All six stages; 7 test images, of which one of class 0 is taken for class 1 and two the other way round."""
    run = MadeUp(RunDir(folder / "outputs" / "first run"), folder / "photos", classes)
    a, b = classes[:2]
    run.write_config(backbone="simple_cnn", data_licence=None, no_pretrained=True, weights=None, group_column=None,
                     label_fixes=None, slice_columns="sex", compare="other run")  # fmt: skip
    run.write_json("environment.json", {"spectacles": "0.1.0", "seed": 3, "device": "cpu", "git_commit": "abc",
                                        "versions": {"torch": "2.0"}})  # fmt: skip
    _dataset(run)
    _explore(run)
    _train(run)
    for number in range(4):
        run.predict(f"right {number}.jpg", a, a, 0.9 - number / 20)
    run.predict(f"a<{EVIL}.jpg", a, b, 0.99)
    run.predict("b2.jpg", b, a, 0.7)
    run.predict("b3.jpg", b, a, 0.55)
    run.predict("b4.jpg", b, b, 0.8, split="val")
    run.save_predictions()
    _evaluate(run)
    _error_analysis(run)
    outcomes = ((a, "predicted"), (b, "converted: turned"), ("", "rejected: empty file"))
    answers = [{"file": f"{n}.jpg", "label": label, "status": status} for n, (label, status) in enumerate(outcomes)]
    run.write_table("predict/predictions.csv", answers)
    run.result("predict", rows=3, predicted=2, rejected=1, output="")
    return run


def _dataset(run: MadeUp) -> None:
    a, b = run.classes[:2]
    counts = {split: dict.fromkeys(run.classes, 0) | {a: size, b: 4} for split, size in
              (("train", 5), ("val", 1), ("test", 5))}  # fmt: skip
    accounting = {"rows": 30, "used": 26, "converted": 1, "rejected": 3, "conversions": {"CMYK converted to RGB": 1},
                  "rejections": {"empty file": 2, f"odd {EVIL}": 1}}  # fmt: skip
    run.result("dataset", classes=list(run.classes), row_accounting=accounting, counts=counts,
               images={split: sum(each.values()) for split, each in counts.items()}, unlabelled=2,
               fingerprint="f" * 64, label_column="label", id_column="id")  # fmt: skip
    splits = [
        {"file": name, "path": str(run.photo(name)), "label": a, "split": "train"} for name in ("t1.jpg", "t2.jpg")
    ]
    run.write_table("dataset/splits.csv", splits)
    pair = {"distance": 0, "similarity": "", "file_a": "t1.jpg", "label_a": a, "split_a": "train",
            "path_a": str(run.photo("t1.jpg")), "file_b": "b2.jpg", "label_b": b, "split_b": "test",
            "path_b": str(run.photo("b2.jpg")), "conflict": True, "crosses_split": True}  # fmt: skip
    inside = pair | {"split_b": "train", "crosses_split": False, "conflict": False}
    run.write_table("dataset/duplicates.csv", [pair | {"kind": "exact"}, inside | {"kind": "mirrored"}])


def _explore(run: MadeUp) -> None:
    baseline = {
        "images": 25,
        "groups": 20,
        "grouped_split": {"accuracy": 0.9, "interval": [0.85, 0.94]},
        "random_split": {"accuracy": 0.97, "interval": [0.95, 0.98]},
        "nearest_neighbour": {"grouped_split": 0.8, "random_split": 0.99},
    }
    run.write_json("explore/baseline.json", baseline)
    outlier = {"file": "t1.jpg", "label": run.classes[0], "split": "train", "value": 9, "z": -7}
    run.write_table("explore/outliers.csv", [outlier | {"what": "dark"}, outlier | {"what": "unlike the others"}])
    pictures = [run.chart("explore/contact.png"), "explore/gone.png"]
    run.result("explore", ["warning: mind this"], pictures, warnings=["mind this"], suggestions=["try --zoom_out 0"])


def _train(run: MadeUp) -> None:
    run.write_json("train/bundle/bundle.json", {
        "backbone": "simple_cnn", "classes": list(run.classes), "label_column": "label", "model_id": "0123456789abcdef",
        "preprocessing": {"image_size": 32, "resize": "crop", "in_chans": 3}, "threshold": 0.25, "temperature": 1.5,
        "confidence_threshold": 0.875, "ood_threshold": 0.995,
        "data_fingerprint": "f" * 64, "metric": "log_loss", "metric_value": 0.25, "epoch": 2, "phase": "fine_tune",
        "versions": {"torch": "2.0"},
    })  # fmt: skip
    run.result("train", artifacts=[run.chart("train/curves.png")], backbone="simple_cnn", train_seconds=75.0)


def _evaluate(run: MadeUp) -> None:
    intervals = {"accuracy": [0.2, 0.9], "log_loss": [0.3, 0.8]}
    scores = {"accuracy": 4 / 7, "hter": 0.6, "log_loss": 0.5, "roc_auc": None, "images": 7, "rejected": 0,
              "accuracy_interval": [0.2, 0.9], "intervals": intervals}  # fmt: skip
    measured = {"log_loss": 0.7, "brier": 0.4, "ece": 0.2, "classwise_ece": 0.1}
    test = scores | {
        "per_class": {name: {"precision": 0.5, "recall": None, "f1": 0.5, "support": 3} for name in run.classes},
        "calibration": {"before": measured, "after": {key: value / 2 for key, value in measured.items()}},
        "selective": {"coverage": [1.0, 0.5, 0.25], "accuracy": [4 / 7, 0.8, 1.0]},
        "low_confidence": 1,
        "out_of_distribution": 2,
        "answered": {"images": 4, "accuracy": 0.75, "interval": [0.3, 0.9]},
    }
    run.write_json("evaluate/metrics.json", {"val": scores | {"images": 1, "accuracy": 1.0}, "test": test})
    fair = {"column": "sex", "value": "f", "source": "column", "images": 40, "accuracy": 0.4, "interval": [0.3, 0.5],
            "false_positive_rate": 0.1, "false_negative_rate": None, "sufficient": True}  # fmt: skip
    small = fair | {"value": EVIL, "images": 2, "accuracy": 0.0, "interval": None, "sufficient": False}
    light = fair | {"column": "light", "value": "dark", "source": "automatic", "accuracy": 0.35}
    gap = light | {"gap": 0.22, "interval": [0.1, 0.4], "among": 2, "p": 0.01}
    run.write_json("evaluate/slices.json", {"slices": [small, fair, light], "worst_gap": gap})
    accuracies = {"gaussian_noise": [0.9, 0.8, 0.7, 0.6, 0.5], "gaussian_blur": [1.0, 1.0, 0.9, 0.9, 0.9]}
    attacks = {"fgsm": {"1/255": 0.5, "4/255": 0.125}}
    run.write_json("evaluate/corruptions.json", {"images": 50, "accuracy_clean": 0.95, "accuracies": accuracies,
                                                 "attacks": attacks})  # fmt: skip
    difference = {"this": 0.6, "other": 0.5, "difference": 0.1, "interval": [0.01, 0.2]}
    run.write_json("evaluate/comparison.json", {
        "other": "other run", "split": "test", "images": 7, "differences": {"accuracy": difference},
        "mcnemar_p": 0.04, "verdict": "better", "sentence": "This run is better than other run.",
    })  # fmt: skip
    charts = [run.chart("evaluate/roc.png"), run.chart("evaluate/confusion_matrix.png"), "evaluate/metrics.json"]
    run.result(
        "evaluate", artifacts=charts, scored_on="test", model_id="0123456789abcdef", accuracy_interval=[0.2, 0.9]
    )


def _error_analysis(run: MadeUp) -> None:
    a, b = run.classes[:2]
    doubtful = {"file": "t1.jpg", "label": a, "suggested_label": b, "score": 0.01, "split": "train", "suspected": True}
    run.write_table("error_analysis/noisy_labels.csv", [doubtful | {"file": f"{n} {EVIL}.jpg"} for n in range(15)])
    near = {"neighbour_label": a, "similarity": 0.75}
    run.write_table("error_analysis/nearest.csv", [
        near | {"file": name, "rank": rank, "neighbour": neighbour}
        for name in ("b2.jpg", f"a<{EVIL}.jpg") for rank, neighbour in ((2, "t2.jpg"), (1, "t1.jpg"), (3, "lost.jpg"))
    ])  # fmt: skip
    result = {"images": 30, "faithful": False}
    run.write_json(
        "error_analysis/faithfulness.json", {"methods": {"gradcam": result, "occlusion": {"faithful": None}}}
    )
    (run.run_dir.path / "error_analysis" / "review.html").write_text("<p>review</p>", encoding="utf-8")
    run.result(
        "error_analysis", artifacts=[run.chart("error_analysis/misclassified.png")], errors=3, suspected_labels=9
    )


def make_labels(folder: Path) -> MadeUp:
    """As `make`, but of any number of three labels an image: 6 test images, of which two are wholly right."""
    names = ("cat", EVIL, "night")
    run = make(folder, names)
    counts = {"train": dict(zip(names, (5, 3, 8), strict=True)), "val": dict.fromkeys(names, 1),
              "test": dict(zip(names, (3, 2, 2), strict=True))}  # fmt: skip
    data = json.loads(run.run_dir.result("dataset").read_text(encoding="utf-8"))
    run.write_json("dataset/result.json", data | {
        "multi_label": True, "counts": counts, "images": {"train": 9, "val": 2, "test": 6},
        "label_column": "cat,x,night",
    })  # fmt: skip
    bundle = json.loads((run.run_dir.path / "train/bundle/bundle.json").read_text(encoding="utf-8"))
    run.write_json("train/bundle/bundle.json", bundle | {
        "multi_label": True, "threshold": None, "label_thresholds": [0.25, 0.5, 0.75],
    })  # fmt: skip
    run.rows.clear()
    for name, label, predicted, chances in (
        ("right 0.jpg", "cat|night", "cat|night", (0.9, 0.1, 0.9)),
        ("right 1.jpg", "none", "none", (0.1, 0.1, 0.1)),
        ("b2.jpg", "cat", "night", (0.2, 0.1, 0.8)),
        ("b3.jpg", "cat", "none", (0.05, 0.1, 0.1)),
        ("b4.jpg", EVIL, f"{EVIL}|night", (0.1, 0.9, 0.95)),
        (f"a<{EVIL}.jpg", f"{EVIL}|night", EVIL, (0.1, 0.9, 0.6)),
    ):
        run.predict(name, label, predicted, min(max(chance, 1 - chance) for chance in chances))
        run.rows[-1] |= {f"p_{each}": chance for each, chance in zip(names, chances, strict=True)}
    run.save_predictions()
    scores = {"accuracy": 2 / 6, "label_accuracy": 0.75, "micro_f1": 0.625, "mean_average_precision": 0.875,
              "images": 6, "rejected": 0, "accuracy_interval": [0.1, 0.7], "intervals": {"accuracy": [0.1, 0.7]},
              "low_confidence": 1, "out_of_distribution": 0,
              "answered": {"images": 5, "accuracy": 0.4, "interval": [0.1, 0.8]},
              "selective": {"coverage": [1.0], "accuracy": [2 / 6]}}  # fmt: skip
    own = {
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "average_precision": 0.8125,
        "support": 2,
        "missed": 1,
        "added": 2,
    }
    run.write_json("evaluate/metrics.json", {"test": scores | {"per_class": dict.fromkeys(names, own)}})
    return run
