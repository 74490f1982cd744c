"""report.html: the whole story of a run on one page that needs no other file."""

import base64
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from spectacles.records import EvaluateReport
from spectacles.run_dir import STAGES, RunDir, atomic_write

TITLES = {
    "dataset": "Data",
    "explore": "What the data look like",
    "train": "Training",
    "evaluate": "How good it is",
    "error_analysis": "Where it goes wrong",
    "predict": "Predictions",
}
HEADLINES = (
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("macro_f1", "macro F1"),
    ("macro_precision", "macro precision"),
    ("macro_recall", "macro recall"),
    ("hter", "HTER"),
    ("roc_auc", "ROC-AUC"),
    ("pr_auc", "PR-AUC"),
    ("log_loss", "log loss"),
    ("brier", "Brier score"),
    ("ece", "ECE"),
    ("top_3_accuracy", "top-3 accuracy"),
    ("top_5_accuracy", "top-5 accuracy"),
)
MAX_CLASS_ROWS = 100
WIDE = 900
"""Pixels: galleries are wider, charts are not."""


@dataclass(frozen=True)
class Section:
    stage: str
    title: str
    summary: list[str]
    warnings: list[str]
    pictures: list[tuple[str, str, bool]]
    """(caption, data URI, is it a gallery that wants the page's whole width?)."""
    files: list[str]


def write(run_dir: RunDir) -> Path:
    """From the finished stages' results; what has not been run yet is left out."""
    results = {stage: _read(run_dir.result(stage)) for stage in STAGES if run_dir.done(stage)}
    scores = _read(run_dir.path / "evaluate" / "metrics.json") if "evaluate" in results else {}
    environment = Environment(
        loader=PackageLoader("spectacles", "."), autoescape=select_autoescape(["html"]), undefined=StrictUndefined
    )
    page = environment.get_template("report.html").render(
        name=run_dir.name,
        data=results.get("dataset"),
        headline=_headline(results.get("evaluate"), scores),
        splits=list(scores),
        scores=_score_table(scores),
        per_class=_per_class(scores),
        sections=[_section(stage, result, run_dir) for stage, result in results.items()],
        config=run_dir.load_config(),
        environment=_read(run_dir.environment) if run_dir.environment.is_file() else {},
    )
    atomic_write(run_dir.report, page)
    return run_dir.report


def headline_metrics(run_dir: RunDir) -> dict[str, float | None]:
    """The main scores of each split that has been scored; empty before evaluation."""
    if not run_dir.done("evaluate"):
        return {}
    scored = run_dir.load_result("evaluate", EvaluateReport).metrics
    keys = [f"{split}_{key}" for split in ("val", "test") for key, _ in HEADLINES]
    return {key: scored[key] for key in keys if key in scored}


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _section(stage: str, result: dict[str, Any], run_dir: RunDir) -> Section:
    pictures = [name for name in result["artifacts"] if name.endswith(".png")]
    warnings = list(result.get("warnings", []))
    return Section(
        stage=stage,
        title=TITLES[stage],
        summary=[line for line in result["summary"] if not line.startswith("warning: ")],
        warnings=warnings,
        pictures=[_picture(run_dir.path / name) for name in pictures],
        files=[name for name in result["artifacts"] if not name.endswith(".png")],
    )


def _picture(path: Path) -> tuple[str, str, bool]:
    """One of our own pictures, as WebP: a fifth of the PNG's size, because a report should fit into a mail."""
    buffer = BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(buffer, "WEBP", quality=85)
        wide = picture.width > WIDE
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return path.stem.replace("_", " "), uri, wide


def _headline(result: dict[str, Any] | None, scores: dict[str, Any]) -> dict[str, Any] | None:
    if result is None:
        return None
    split = result["scored_on"]
    low, high = result["accuracy_interval"]
    return {"split": split, "accuracy": scores[split]["accuracy"], "low": low, "high": high,
            "images": scores[split]["images"], "model_id": result["model_id"]}  # fmt: skip


def _score_table(scores: dict[str, Any]) -> list[tuple[str, list[float | None]]]:
    """(name, a value a split) of the metrics that any split has."""
    return [
        (name, [scores[split].get(key) for split in scores])
        for key, name in HEADLINES
        if any(scores[split].get(key) is not None for split in scores)
    ]


def _per_class(scores: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Of the split that counts (test before validation), the weakest classes first."""
    if not scores:
        return []
    rows = (scores.get("test") or scores["val"])["per_class"].items()
    ranked = sorted(rows, key=lambda row: (row[1]["f1"] is None, row[1]["f1"]))
    return list(ranked)[:MAX_CLASS_ROWS]
