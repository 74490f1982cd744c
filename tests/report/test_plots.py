"""Every plot writes a complete PNG of a sensible size, also for what usually breaks plots: no, too much, odd input."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spectacles.metrics import calibration
from spectacles.report import data_plots, evaluation_plots, image_grid, style

ROOT = Path(__file__).parents[2]
AWKWARD = [
    "$x$",
    "a_b",
    r"\frac{1}{$",
    "日本語 😀 \ud800",
    "line\nbreak\ttab",
    "",
    "a class name that is far too long to be drawn",
]


def names(count: int) -> list[str]:
    return [f"{AWKWARD[index % len(AWKWARD)]}{index // len(AWKWARD) or ''}" for index in range(count)]


def evaluation(num_classes: int, size: int = 300):
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=size)
    logits = rng.normal(size=(size, num_classes))
    logits[np.arange(size), labels] += 1.5
    return labels, calibration.softmax(logits)


def assert_picture(path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
    assert picture.format == "PNG"
    assert 100 <= picture.width <= 2000 and 100 <= picture.height <= 4000
    assert np.asarray(picture.convert("L")).min() < 160, "an empty page"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "left something unfinished behind"
    return picture


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "plot.png"


@pytest.mark.parametrize("num_classes", [0, 1, 2, 60])
def test_class_distribution(path, num_classes):
    counts = {
        split: {name: i * size for i, name in enumerate(names(num_classes))} for split, size in (("train", 9), ("$", 1))
    }
    images = {split: sum(each.values()) for split, each in counts.items()}
    assert_picture(data_plots.class_distribution(counts, images, path))


@pytest.mark.parametrize("num_labels", [2, 60])
def test_label_pairs(path, num_labels):
    together = np.full((num_labels, num_labels), 3) + np.diag(np.arange(num_labels))
    assert_picture(data_plots.label_pairs(together, names(num_labels), path))
    assert_picture(data_plots.label_pairs(np.zeros_like(together), names(num_labels), path))


@pytest.mark.parametrize(
    "values",
    [[], [5], [7, 7, 7], [np.nan, 0, -1, 10], np.geomspace(1, 1e7, 200)],
    ids=["none", "one", "equal", "undrawable", "wide"],
)
@pytest.mark.parametrize("log", [False, True])
def test_histogram(path, values, log):
    assert_picture(data_plots.histogram({"": np.array(values, dtype=float)}, "A $title$", "x_$label$", path, log=log))


def test_histogram_by_class(path):
    by = {name: np.arange(float(i)) for i, name in enumerate(names(9))}
    assert_picture(data_plots.histogram(by, "Nine classes", "x", path))


@pytest.mark.parametrize("sizes", [[], [(640, 480)], [(1, 5000), (5000, 1), (640, 480), (640, 480)]])
def test_scatter_sizes(path, sizes):
    widths, heights = np.array(sizes, dtype=int).reshape(-1, 2).T
    assert_picture(data_plots.scatter_sizes(widths, heights, path))


def test_training_curves(path):
    history = [
        {
            "epoch": epoch,
            "phase": phase,
            "train_loss": 1 / epoch,
            "val_loss": None,
            "val_f1": epoch / 9,
            "learning_rate": 1,
        }
        for phase in ("head", "fine_tune $")
        for epoch in (1, 2, 3)
    ]
    assert_picture(data_plots.training_curves(history, path, "f1"))
    assert_picture(data_plots.training_curves(history[:1], path, "unknown_metric"))
    assert_picture(data_plots.training_curves([], path, "f1"))


@pytest.mark.parametrize(("metric", "best"), [("log_loss", 2), ("accuracy", 1)])
def test_the_best_epoch_is_the_lowest_loss_or_the_highest_score(path, monkeypatch, metric, best):
    drawn = []
    monkeypatch.setattr(data_plots, "save", lambda figure, path: drawn.append(figure))
    history = [
        {"epoch": i, "phase": "head", f"val_{metric}": value} for i, value in ((1, 0.9), (2, 0.1), (3, None), (4, 0.5))
    ]
    data_plots.training_curves(history, path, metric)
    legend = drawn[0].axes[1].get_legend_handles_labels()[1]
    assert legend[-1].endswith(f"(epoch {best})")


@pytest.mark.parametrize("num_classes", [0, 1, 2, 7, 60])
def test_confusion_matrix(path, num_classes):
    matrix = np.arange(num_classes**2).reshape(num_classes, num_classes) * 1000
    assert_picture(evaluation_plots.confusion_matrix(matrix, names(num_classes), path))


def test_the_most_confused_classes_are_shown():
    matrix = np.diag(np.full(60, 100))
    matrix[50, 3] = matrix[7, 59] = 5
    chosen = evaluation_plots._most_confused(matrix)
    assert {3, 7, 50, 59} <= set(chosen) and len(chosen) == 40 and (np.diff(chosen) > 0).all()


@pytest.mark.parametrize("draw", [evaluation_plots.roc_curves, evaluation_plots.precision_recall_curves])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 60])
def test_curves(path, draw, num_classes):
    labels, probabilities = evaluation(num_classes)
    assert_picture(draw(labels, probabilities, names(num_classes), path))
    assert_picture(draw(labels[:0], probabilities[:0], names(num_classes), path))


@pytest.mark.parametrize("size", [0, 1, 300])
def test_reliability_and_confidence(path, size):
    labels, probabilities = evaluation(3, size)
    assert_picture(evaluation_plots.reliability(labels, probabilities, path))
    correct = probabilities.argmax(axis=1) == labels
    assert_picture(evaluation_plots.confidence_histograms(probabilities.max(axis=1), correct, path))


@pytest.mark.parametrize("num_classes", [0, 1, 60])
def test_per_class_accuracy(path, num_classes):
    recall = [None if index == 3 else index / 60 for index in range(num_classes)]
    support = [0 if value is None else 10_000 for value in recall]
    assert_picture(evaluation_plots.per_class_accuracy(names(num_classes), recall, support, path))


@pytest.mark.parametrize("count", [0, 1, 48])
def test_image_grid(path, count):
    shapes = [(40, 30, 3), (1, 1, 3), (2, 3000, 3), (3000, 2, 3), (16, 16)]
    images = [np.full(shapes[i % len(shapes)], i, dtype=np.uint8) for i in range(count)]
    captions = [f"{name}\nand a good deal more than fits on the lines there are " * 3 for name in names(count)]
    assert_picture(image_grid.image_grid(images, captions, path, title="Errors of $class$"))


def test_image_grid_takes_pil_images_of_any_mode_and_letterboxes_them(path):
    images = [
        Image.new(mode, (200, 100), colour) for mode, colour in (("RGB", (255, 0, 0)), ("L", 0), ("RGBA", 0), ("P", 0))
    ]
    page = np.asarray(assert_picture(image_grid.image_grid(images, [""] * 4, path, columns=2)).convert("RGB"))
    red = np.argwhere((page == (255, 0, 0)).all(axis=2))
    height, width = np.ptp(red, axis=0) + 1
    assert (height, width) == (image_grid.THUMBNAIL // 2, image_grid.THUMBNAIL)


def test_image_grid_wants_a_caption_for_each_image(path):
    with pytest.raises(ValueError, match="1 images but 0 captions"):
        image_grid.image_grid([Image.new("RGB", (2, 2))], [], path)


def test_user_text_is_drawn_literally(path):
    figure, _ = style.new_figure("$x$", 3, 3)
    style.save(figure, path)
    assert figure.get_suptitle() == "$x$"
    assert not any(text.get_parse_math() for text in figure.findobj(lambda artist: hasattr(artist, "get_parse_math")))


def test_shorten():
    assert style.shorten("short") == "short"
    assert style.shorten("0123456789" * 3, 11) == "01234…56789"
    assert all(len(style.shorten("0123456789", length)) == length for length in range(2, 10))
    assert style.shorten("two\n lines") == "two lines"
    assert style.shorten("\ud800\x00") == "□□"


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    figure, _ = style.new_figure("old", 3, 3)
    before = style.save(figure, path).read_bytes()
    monkeypatch.setattr(type(figure), "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        style.save(figure, path)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


@pytest.mark.process
def test_plots_are_drawn_in_threads_without_pyplot(tmp_path):
    labels, probabilities = evaluation(3)
    targets = [tmp_path / str(i) / "plot.png" for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda target: evaluation_plots.reliability(labels, probabilities, target), targets))
    assert len({target.read_bytes() for target in targets}) == 1
    imported = (
        "import sys, spectacles.report.data_plots, spectacles.report.evaluation_plots, spectacles.report.image_grid; "
    )
    subprocess.run(
        [sys.executable, "-c", imported + "assert 'matplotlib.pyplot' not in sys.modules"], check=True, cwd=ROOT
    )
