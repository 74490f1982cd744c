"""Charts of how far scores can be trusted: by confidence, threshold, group of images, and on corrupted photos.

Each is written atomically as a PNG to `path`; its numbers are in metrics.json, slices.json or corruptions.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectacles.core.wording import percent
from spectacles.metrics import curves
from spectacles.metrics.basics import Floats, Ints
from spectacles.report.style import (
    COLOURS,
    INK,
    MUTED,
    Panel,
    add_legend,
    draw_placeholder,
    new_figure,
    nth_colour,
    save,
    shorten,
)

MAX_SLICES = 40
DASHES = ("-", "--")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def coverage(selective: Mapping[str, Any], answered: Mapping[str, Any] | None, images: int, path: Path) -> Path:
    """Accuracy by coverage, the most confident images first (`selective.selective`), and the operating point of the
    bundle: the images that it answers (`answered` of `selective.by_abstention`)."""
    share, accuracy = np.array(selective["coverage"]), np.array(selective["accuracy"])
    figure, [axes] = new_figure(f"Accuracy by coverage (AURC {selective['aurc']:.4f})", 6.5, 4)
    axes.plot(100 * share, 100 * accuracy, color=COLOURS[0], linewidth=1.8, label="accuracy")
    axes.axhline(100 * accuracy[-1], color=MUTED, linewidth=0.9, linestyle="--", label=f"all: {percent(accuracy[-1])}")
    if answered is not None and answered["accuracy"] is not None:
        at = 100 * answered["images"] / images
        text = f"answered: {percent(answered['accuracy'])} of {answered['images']:,}"
        low, high = (100 * end for end in answered["interval"])
        axes.vlines(at, low, high, color=COLOURS[1], linewidth=1.4)
        axes.plot(at, 100 * answered["accuracy"], "o", color=COLOURS[1], markersize=6, label=text)
    axes.set_xlim(0, 101)
    axes.set_ylim(max(0.0, 100 * accuracy.min() - 3), 100.5)
    axes.set_xlabel("coverage (% of the images, most confident first)")
    axes.set_ylabel("% of them correct")
    add_legend(axes, loc="lower left")
    return save(figure, path)


def thresholds(labels: Ints, scores: Floats, threshold: float | None, positive: str, path: Path) -> Path:
    """Error rates, precision and recall of two classes by the threshold on the positive class's probability (N,).

    The bundle's own threshold (None: the most probable class wins) is marked.
    """
    figure, panels = new_figure(f"Errors by the threshold for {shorten(positive, 40)}", 7, 6, (1, 1))
    positives = np.asarray(labels) == 1
    if not positives.any() or positives.all():
        draw_placeholder(panels[0], "undefined: needs positive and negative images")
        panels[1].set_axis_off()
        return save(figure, path)
    fall_out, recall, starts = curves.roc_curve(positives, scores)
    called = fall_out * (~positives).sum() + recall * positives.sum()
    precision = np.divide(recall * positives.sum(), called, out=np.ones(len(called)), where=called > 0)
    # A row holds for thresholds from above the next lower score up to its own.
    x = np.append(np.append(0.0, starts[:0:-1]), 1.0)
    at = np.append(np.append(len(starts) - 1, np.arange(len(starts) - 1, 0, -1)), 0)
    current = 0.5 if threshold is None else threshold
    place = at[min(int(np.searchsorted(x, current, side="left")), len(at) - 1)]
    rows = (
        (panels[0], "false positives", fall_out), (panels[0], "false negatives", 1 - recall),
        (panels[1], "precision", precision), (panels[1], "recall", recall),
    )  # fmt: skip
    for index, (axes, name, values) in enumerate(rows):
        label = f"{name}: {percent(values[place])}"
        axes.step(x, 100 * values[at], where="pre", color=nth_colour(index), linewidth=1.6, label=label)
    middle = (x > 0.05) & (x < 0.95)
    # The extremes at both ends would flatten the rest.
    visible = [100 * values[np.append(at[middle], place)] for _, _, values in rows]
    panels[0].set_ylim(0, min(100.5, max(5.0, 1.3 * float(np.max(visible[:2])))))
    panels[1].set_ylim(max(0.0, min(95.0, float(np.min(visible[2:])) - 5)), 100.5)
    where = "the most probable class" if threshold is None else f"the bundle's threshold, {current:.3f}"
    for axes, unit in zip(panels, ("% of their class", "%"), strict=True):
        axes.axvline(current, color=INK, linewidth=1, linestyle="--", label=f"at {where}")
        axes.set_ylabel(unit)
        add_legend(axes)
    panels[1].set_xlim(-0.01, 1.01)
    panels[1].set_xlabel("threshold on the probability")
    return save(figure, path)


def slices(entries: Sequence[Mapping[str, Any]], overall: float, path: Path) -> Path:
    """Accuracy with its 95 % interval of each slice (slices.json), the worst on top; grey where images are too few."""
    order = sorted(entries, key=lambda entry: (not entry["sufficient"], entry["accuracy"]))
    title = f"Accuracy by group of images (dashed: all, {percent(overall)})"
    if len(order) > MAX_SLICES:
        title += f": the {MAX_SLICES} lowest of {len(order)}"
    order = order[:MAX_SLICES]
    figure, [axes] = new_figure(title, 9, 1.4 + 0.26 * max(3, len(order)))
    if not order:
        draw_placeholder(axes)
        return save(figure, path)
    for row, entry in enumerate(order):
        colour = COLOURS[0] if entry["sufficient"] else MUTED
        low, high = entry["interval"]
        axes.hlines(row, 100 * low, 100 * high, color=colour, linewidth=2, alpha=0.6)
        axes.plot(100 * entry["accuracy"], row, "o", color=colour, markersize=5)
    axes.axvline(100 * overall, color=INK, linewidth=0.9, linestyle="--")
    names = [f"{shorten(entry['column'], 20)}: {shorten(entry['value'], 44)}" for entry in order]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    lowest = 100 * min(entry["interval"][0] for entry in order if entry["sufficient"] or not order[0]["sufficient"])
    left = max(-1.0, lowest - 2)
    axes.set_xlim(left, 100.5 + 0.32 * (100.5 - left))
    axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= 100])
    for row, entry in enumerate(order):
        few = "" if entry["sufficient"] else ", too few"
        axes.text(100.5, row, f" {percent(entry['accuracy'])} of {entry['images']:,}{few}", fontsize=8, va="center")
    axes.set_xlabel("% correct, with 95 % interval")
    return save(figure, path)


def corruptions(measured: Mapping[str, Any], path: Path) -> Path:
    """Accuracy by severity of each corruption (corruptions.json); severity 0 is the clean photos."""
    title = f"Accuracy on corrupted photos ({measured['images']:,} images)"
    figure, [axes] = new_figure(title, 8.5, 4.6)
    accuracies: Mapping[str, Sequence[float]] = measured["accuracies"]
    if not accuracies:
        draw_placeholder(axes)
        return save(figure, path)
    clean = measured["accuracy_clean"]
    low, high = (100 * end for end in measured["interval_clean"])
    axes.axhspan(low, high, color=MUTED, alpha=0.15, label=f"clean: {percent(clean)}, 95 % interval")
    label = f"always the most frequent answer: {percent(measured['most_frequent'])}"
    axes.axhline(100 * measured["most_frequent"], color=MUTED, linewidth=0.9, linestyle=":", label=label)
    for index, (name, values) in enumerate(sorted(accuracies.items(), key=lambda item: -float(np.mean(item[1])))):
        _line(axes, index, [clean, *values], name.replace("_", " "))
    axes.set_xticks(range(6))
    axes.set_xlim(-0.1, 5.1)
    lowest = min(measured["most_frequent"], *(min(values) for values in accuracies.values()))
    axes.set_ylim(max(-1.0, 100 * lowest - 5), 101)
    axes.set_xlabel("severity")
    axes.set_ylabel("% correct")
    add_legend(axes, "mean over severities", "beside")
    return save(figure, path)


def _line(axes: Panel, index: int, values: Sequence[float], name: str) -> None:
    dash, marker = DASHES[index // len(COLOURS) % 2], MARKERS[index % len(MARKERS)]
    label = f"{shorten(name)}  {percent(float(np.mean(values[1:])))}"
    axes.plot(
        range(len(values)), 100 * np.array(values), linestyle=dash, marker=marker, markersize=4.5,
        color=nth_colour(index), linewidth=1.5, label=label,
    )  # fmt: skip
