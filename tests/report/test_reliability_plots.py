"""Reliability charts survive what usually breaks charts: no data, one class, long and odd names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spectacles.evaluation import corruptions
from spectacles.metrics import calibration, selective
from spectacles.report import evaluation_plots, reliability_plots

ODD = "$x$ a very long name of a slice, 日本語 😀\n that goes on and on and on"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plot.png"


def assert_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()
    assert picture.format == "PNG"
    assert 100 <= picture.width <= 2000 and 100 <= picture.height <= 4000
    assert np.asarray(picture.convert("L")).min() < 160, "an empty page"


@pytest.mark.parametrize("count", [1, 500])
def test_coverage(path: Path, count: int) -> None:
    correct = np.arange(count) % 9 > 0
    curve = selective.selective(correct, np.linspace(1, 0, count))
    reasons = np.where(np.arange(count) % 5, "", "low_confidence")
    abstention = selective.by_abstention(correct, reasons, np.arange(count), 0, 20)
    assert_picture(reliability_plots.coverage(curve, None, count, path))
    assert_picture(reliability_plots.coverage(curve, abstention["answered"], count, path))


@pytest.mark.parametrize("threshold", [None, 0.0, 0.93, 1.0])
@pytest.mark.parametrize("count", [1, 2, 300])
def test_thresholds(path: Path, threshold: float | None, count: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    scores = np.clip(0.6 * labels + 0.5 * rng.random(count), 0, 1).round(2)
    assert_picture(reliability_plots.thresholds(labels, scores, threshold, ODD, path))


def drawn_at(monkeypatch: pytest.MonkeyPatch, path: Path, threshold: float | None) -> list[str]:
    figures = []
    monkeypatch.setattr(reliability_plots, "save", lambda figure, path: figures.append(figure))
    labels, scores = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.4, 0.8, 0.4, 0.9])
    reliability_plots.thresholds(labels, scores, threshold, "dog", path)
    return [text for axes in figures[0].axes for text in axes.get_legend_handles_labels()[1]]


@pytest.mark.parametrize(
    ("threshold", "rates"),
    [
        (None, ("33.3 %", "50.0 %", "50.0 %", "50.0 %")),
        (0.4, ("66.7 %", "0.0 %", "50.0 %", "100.0 %")),  # what lies on the threshold counts as positive
        (0.41, ("33.3 %", "50.0 %", "50.0 %", "50.0 %")),
        (0.95, ("0.0 %", "100.0 %", "100.0 %", "0.0 %")),
        (0.0, ("100.0 %", "0.0 %", "40.0 %", "100.0 %")),
    ],
)
def test_the_rates_beside_the_names_are_those_at_the_threshold(
    monkeypatch: pytest.MonkeyPatch, path: Path, threshold: float | None, rates: tuple[str, ...]
) -> None:
    texts = drawn_at(monkeypatch, path, threshold)
    names = ("false positives", "false negatives", "precision", "recall")
    assert [text for text in texts if not text.startswith("at ")] == [
        f"{name}: {rate}" for name, rate in zip(names, rates, strict=True)
    ]


@pytest.mark.parametrize("count", [0, 1, 7, 60])
def test_slices(path: Path, count: int) -> None:
    entries = [
        {"column": ODD, "value": ODD, "images": 3**number if number < 9 else 9, "accuracy": 1 - number / 100,
         "interval": [0.9 - number / 80, 1.0], "sufficient": number % 3 > 0}
        for number in range(count)
    ]  # fmt: skip
    assert_picture(reliability_plots.slices(entries, 0.9, path))


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_corruptions(path: Path, accuracy: float) -> None:
    measured = {
        "images": 1234, "accuracy_clean": accuracy, "interval_clean": [accuracy / 2, accuracy], "most_frequent": 0.5,
        "accuracies": {name: [accuracy * share for share in (1, 0.9, 0.8, 0.6, 0.5)]
                        for name in corruptions.SEVERITIES},
    }  # fmt: skip
    assert_picture(reliability_plots.corruptions(measured, path))


@pytest.mark.parametrize("num_classes", [2, 7])
def test_reliability_before_and_after(path: Path, num_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(num_classes, size=200), rng.normal(size=(200, num_classes))
    before, after = calibration.softmax(3 * logits), calibration.softmax(logits)
    assert_picture(evaluation_plots.reliability(labels, after, path, before))
