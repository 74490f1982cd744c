"""report.html: all results of a run on one page, self-contained and without scripts."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from spectacles.core import wording
from spectacles.core.fileio import atomic_write
from spectacles.core.results import EvaluateReport
from spectacles.core.run_dir import RunDir
from spectacles.metrics.basics import LOWER_IS_BETTER, over_classes
from spectacles.report import confusion_browser, key_findings, run_summary, thumbnails
from spectacles.report.confusion_browser import Browser
from spectacles.report.run_summary import Json, RunSummary

TITLES = {
    "evaluate": "Evaluation",
    "error_analysis": "Error analysis",
    "dataset": "Data set",
    "explore": "Exploration",
    "train": "Training",
    "predict": "Predictions",
    "export": "Exported files",
}
"""In reading order: results first, then data and training."""
CALIBRATION = ("log_loss", "brier", "ece", "classwise_ece")
SHOWN_ELSEWHERE = r"next: |warning: |suggestion: |rejected \d+: |\d+ rows = \d+ used"
"""Summary lines that the page shows in another form."""
FEW_CLASSES = 6
"""Up to this many, the confusion matrix stands beside the metrics, otherwise below them."""
MAX_CLASS_ROWS = 100
MAX_NOISY_ROWS = 12
MAX_OUTLIERS_OF_A_KIND = 5
MAX_CROSSING_PAIRS = 12
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.5)
OPERATING_RATES = {
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "false positives",
    "hter": "HTER",
}
WIDE = 900
"""Pixels; only galleries are wider."""
CHARTS_ONLY = ("train", "evaluate", "export")
"""Stages whose pictures never contain photos."""
ON_CARDS = ("comparison", "baseline")
"""Key findings that are already on the cards at the top."""
PLACED = ("coverage", "threshold", "reliability", "slices", "corruptions")
"""Charts shown beside the numbers they are made from."""
IN_BROWSER = ("confusion_matrix.png", "label_errors.png", "misclassified.png", "nearest.png")
"""Pictures whose content the confusion browser shows; they are made for MLflow and the run folder."""


@dataclass(frozen=True)
class Picture:
    name: str
    uri: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        return self.width > WIDE


@dataclass(frozen=True)
class Section:
    stage: str
    title: str
    summary: list[str]
    warnings: list[str]
    suggestions: list[str]
    pictures: list[Picture]
    files: list[str]


def write(run_dir: RunDir) -> Path:
    """From the files of the finished stages; stages that have not been run are left out."""
    run = run_summary.read(run_dir)
    galleries = bool(run.config.get("galleries", True))
    data = run.results.get("dataset")
    browser = Browser([], [])
    if data is not None and run.scored:
        browser = confusion_browser.build(run_dir, run.split, data["classes"], run.multi_label)
    duplicates = _duplicates(run.duplicates)
    paths = [*browser.paths(), *(pair[f"path_{side}"] for pair in duplicates["crossing"] for side in "ab")]
    sections = [_section(stage, run.results[stage], run_dir, galleries) for stage in TITLES if stage in run.results]
    photos = thumbnails.make(list(dict.fromkeys(paths)), run.value_ranges) if galleries else {}
    template = _environment().get_template("report.html")
    page = template.render(
        name=run_dir.name,
        run=run,
        config=run.config,
        environment=run.environment,
        data=data,
        scored=run.scored,
        sections=sections,
        key_findings=[item for item in key_findings.collect(run) if item.section not in ON_CARDS],
        browser=browser,
        noun=wording.noun_of(run.multi_label),
        nouns=wording.plural(wording.noun_of(run.multi_label)),
        accuracy_name=run_summary.metric_names(run)["accuracy"],
        photos=photos,
        with_photos=bool(photos) or (galleries and any(s.pictures for s in sections if s.stage not in CHARTS_ONLY)),
        duplicates=duplicates,
        outliers=_outliers(run.outliers),
        noisy=run.noisy_labels.head(MAX_NOISY_ROWS).to_dict("records"),
        predicted=_account_for_predictions(run_dir, run),
        has_card=run_dir.model_card.is_file(),
        has_review=(run_dir.path / "error_analysis" / "review.html").is_file(),
        **_scores(run),
    )
    atomic_write(run_dir.report, page)
    return run_dir.report


def headline_metrics(run_dir: RunDir) -> dict[str, float | None]:
    """`<split>_<metric>` of the main metrics; empty before evaluation."""
    if not run_dir.done("evaluate"):
        return {}
    scored = run_dir.load_result("evaluate", EvaluateReport).metrics
    keys = [f"{split}_{key}" for split in ("val", "test") for key in run_summary.METRIC_NAMES]
    return {key: scored[key] for key in keys if key in scored}


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spectacles.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (wording.percent, wording.percents, wording.number, wording.numbers, wording.duration)
    environment.filters |= {function.__name__: function for function in formats} | {"basename": os.path.basename}
    environment.globals |= {
        "interval_of": run_summary.interval_of,
        "slice_name": key_findings.slice_name,
        "random_split_overstates": key_findings.random_split_overstates,
        "FEW_CLASSES": FEW_CLASSES,
        "PLACED": PLACED,
    }
    return environment


def _section(stage: str, result: Json, run_dir: RunDir, galleries: bool) -> Section:
    shown = [name for name in result["artifacts"] if name.endswith(".png") and Path(name).name not in IN_BROWSER]
    allowed = galleries or stage in CHARTS_ONLY or not run_summary.shows_photos(run_dir, stage)
    pictures = [_picture(run_dir.path / name) for name in shown if allowed and (run_dir.path / name).is_file()]
    return Section(
        stage=stage,
        title=TITLES[stage],
        summary=[line for line in result["summary"] if not re.match(SHOWN_ELSEWHERE, line)],
        warnings=list(result.get("warnings", [])),
        suggestions=list(result.get("suggestions", [])),
        pictures=pictures,
        files=[name for name in result["artifacts"] if not name.endswith(".png")],
    )


def _picture(path: Path) -> Picture:
    """A chart or gallery as WebP: a fifth of the PNG's size."""
    with Image.open(path) as picture:
        return Picture(path.stem, thumbnails.to_uri(picture, 85), picture.width, picture.height)


def _scores(run: RunSummary) -> dict[str, Any]:
    """Template variables of the evaluation section."""
    names = run_summary.metric_names(run)
    return {
        "metrics": [
            (key, name) for key, name in names.items() if any(s.get(key) is not None for s in run.scores.values())
        ],
        "metric_names": names,
        "calibration_metrics": [(key, names[key]) for key in CALIBRATION],
        "lower_is_better": LOWER_IS_BETTER,
        "over_classes": over_classes,
        "per_class": run_summary.weakest_first(run.scored)[:MAX_CLASS_ROWS],
        "per_class_columns": run_summary.per_class_columns(run.multi_label),
        "abstentions": [
            key_findings.abstention(run.scored) or "The model abstains on no image.",
            *key_findings.limits(run.bundle),
        ],
        "selective": _selective(run.scored.get("selective")),
        "corruptions": [
            (name.replace("_", " "), values) for name, values in run.corruptions.get("accuracies", {}).items()
        ],
        "operating_rates": OPERATING_RATES,
        "attacks": list((run.corruptions.get("attacks") or {}).items()),
    }


def _selective(measured: Json | None) -> list[tuple[float, float]]:
    """(coverage, accuracy) at the measured coverages nearest to COVERAGES."""
    points = list(zip(measured["coverage"], measured["accuracy"], strict=True)) if measured else []
    nearest = [min(points, key=lambda point: abs(point[0] - wanted)) for wanted in COVERAGES if points]
    return list(dict.fromkeys(nearest))


def _duplicates(pairs: pd.DataFrame) -> dict[str, Any]:
    """Counts by kind, and the pairs whose images are in different splits."""
    if pairs.empty:
        return {"kinds": [], "crossing": [], "more": 0}
    crosses = pairs["crosses_split"] == "True"
    flags = pd.DataFrame({"kind": pairs["kind"], "conflicts": pairs["conflict"] == "True", "crossing": crosses})
    kinds = flags.groupby("kind", sort=False).agg(
        pairs=("crossing", "size"), conflicts=("conflicts", "sum"), crossing=("crossing", "sum")
    )
    listed = pairs[crosses].head(MAX_CROSSING_PAIRS).to_dict("records")
    return {
        "kinds": kinds.reset_index().to_dict("records"),
        "crossing": listed,
        "more": int(crosses.sum()) - len(listed),
    }


def _outliers(outliers: pd.DataFrame) -> dict[str, Any]:
    if outliers.empty:
        return {"kinds": {}, "rows": []}
    kinds = {str(kind): int(count) for kind, count in outliers["what"].value_counts(sort=False).items()}
    return {
        "kinds": kinds,
        "rows": outliers.groupby("what", sort=False).head(MAX_OUTLIERS_OF_A_KIND).to_dict("records"),
    }


def _account_for_predictions(run_dir: RunDir, run: RunSummary) -> Json | None:
    """The row accounting of the predictions, in the form of the dataset stage's; None before prediction."""
    path = run_dir.path / "predict" / "predictions.csv"
    if "predict" not in run.results or not path.is_file():
        return None
    status = run_summary.read_csv(path, ("status",))["status"]
    reasons = {
        kind: Counter(status[status.str.startswith(f"{kind}: ")].str.removeprefix(f"{kind}: "))
        for kind in ("converted", "rejected")
    }
    counts = {kind: sum(each.values()) for kind, each in reasons.items()}
    return {
        "rows": len(status),
        "used": len(status) - sum(counts.values()),
        **counts,
        "conversions": dict(reasons["converted"].most_common()),
        "rejections": dict(reasons["rejected"].most_common()),
    }
