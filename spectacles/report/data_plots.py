"""Charts of the data and of training, each written atomically as a PNG to `path`.

Class names are drawn literally, elided where they are long. What does not fit legibly is left out, and the title says
so. Charts of an evaluation are in `evaluation_plots`, contact sheets in `image_grid`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectacles.metrics.basics import LOWER_IS_BETTER, Float64s
from spectacles.report.style import (
    COLOURS,
    INK,
    MUTED,
    Panel,
    add_legend,
    draw_matrix,
    draw_placeholder,
    label_rows,
    new_figure,
    nth_colour,
    save,
    shorten,
    tick_integers,
    tick_plain_log,
)

MAX_CLASSES = 40  # nobody reads more rows than this
MAX_OVERLAYS = 6
BACKING = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}  # keeps a text legible over points


def class_distribution(
    counts: Mapping[str, Mapping[str, int]], images: Mapping[str, int], path: Path, noun: str = "class"
) -> Path:
    """Images per class or label, one bar per split: `counts` maps split -> class -> n, `images` split -> n."""
    totals: dict[str, int] = {}
    for per_class in counts.values():
        for name, count in per_class.items():
            totals[name] = totals.get(name, 0) + count
    names = list(totals)
    title = f"Images per {noun} ({sum(images[split] for split in counts):,} in all)"
    if len(names) > MAX_CLASSES:
        by_size = sorted(names, key=lambda name: -totals[name])
        names = by_size[: MAX_CLASSES // 2] + by_size[-MAX_CLASSES // 2 :]
        title += f": the {MAX_CLASSES // 2} largest and {MAX_CLASSES // 2} smallest of {len(totals)}"
    row = 0.1 + 0.16 * len(counts)
    figure, [axes] = new_figure(title, 8, 1.2 + row * max(2, len(names)))
    if not names:
        draw_placeholder(axes)
        return save(figure, path)
    thickness = 0.8 / len(counts)
    for index, (split, per_class) in enumerate(counts.items()):
        values = [per_class.get(name, 0) for name in names]
        offset = (index - (len(counts) - 1) / 2) * thickness
        bars = axes.barh(np.arange(len(names)) + offset, values, thickness * 0.92, color=nth_colour(index))
        bars.set_label(f"{shorten(split)} ({images[split]:,})")
        axes.bar_label(bars, labels=[f"{value:,}" for value in values], padding=3, fontsize=8, color=INK)
    label_rows(axes, names)
    tick_integers(axes.xaxis)
    axes.margins(x=0.1)
    axes.set_xlabel("images")
    add_legend(axes)
    return save(figure, path)


def histogram(
    groups: Mapping[str, NDArray[Any]],
    title: str,
    xlabel: str,
    path: Path,
    log: bool = False,
    of_what: str = "class",
) -> Path:
    """Distributions of the values in `groups` (class -> (N,)), as % `of_what`; of a single group called "", counts.

    `log` makes the x axis logarithmic, for values that span orders of magnitude such as file sizes. Values that cannot
    be drawn (not finite; not positive on a logarithmic axis) are left out and counted in the title.
    """
    as_counts = list(groups) == [""]
    values = {name: np.asarray(group, dtype=np.float64) for name, group in groups.items()}
    drawable = {name: group[np.isfinite(group) & ((group > 0) | (not log))] for name, group in values.items()}
    left_out = sum(map(len, values.values())) - sum(map(len, drawable.values()))
    shown = sorted(((name, group) for name, group in drawable.items() if len(group)), key=lambda item: -len(item[1]))
    if left_out:
        title += f" ({left_out:,} values left out)"
    if len(shown) > MAX_OVERLAYS:
        title += f": the {MAX_OVERLAYS} largest of {len(shown)} classes"
    figure, [axes] = new_figure(title, 7, 4)
    if not shown:
        draw_placeholder(axes)
        return save(figure, path)
    edges = _bin_edges(np.concatenate([group for _, group in shown]), log)
    for index, (name, group) in enumerate(shown[:MAX_OVERLAYS]):
        heights = np.histogram(group, edges)[0]
        if as_counts:
            axes.stairs(heights, edges, fill=True, color=nth_colour(index), alpha=0.85)
            continue
        shares = 100 * heights / len(group)
        axes.stairs(shares, edges, fill=True, color=nth_colour(index), alpha=0.2)
        axes.stairs(shares, edges, color=nth_colour(index), linewidth=1.6, label=f"{shorten(name)} ({len(group):,})")
    if log:
        axes.set_xscale("log")
        tick_plain_log(axes.xaxis)
    axes.set_xlabel(shorten(xlabel, 80))
    axes.set_ylabel("images" if as_counts else f"% of the {of_what}")
    add_legend(axes)
    return save(figure, path)


def scatter_sizes(widths: NDArray[Any], heights: NDArray[Any], path: Path) -> Path:
    """Width against height in pixels, one point per distinct size, coloured by the number of images."""
    sizes, counts = np.unique(np.column_stack([widths, heights]), axis=0, return_counts=True)
    figure, [axes] = new_figure(f"Image sizes ({counts.sum():,} images, distinct sizes: {len(sizes):,})", 7, 5.5)
    if not len(sizes):
        draw_placeholder(axes)
        return save(figure, path)
    order = np.argsort(counts, kind="stable")  # the most frequent sizes are drawn on top
    sizes, counts = sizes[order], counts[order]
    points = axes.scatter(
        sizes[:, 0], sizes[:, 1], s=28, c=counts, norm="log", vmin=1, vmax=max(2, counts[-1]), ec=INK, linewidths=0.3
    )
    low, high = sizes.min() * 0.9, sizes.max() * 1.1
    axes.plot([low, high], [low, high], color=MUTED, linewidth=0.8, linestyle="--", zorder=0)
    axes.annotate("square", (high, high), color=MUTED, fontsize=8, ha="right", va="bottom")
    if sizes.min() > 0 and sizes.max() > 10 * sizes.min():
        axes.set(xscale="log", yscale="log")
        tick_plain_log(axes.xaxis)
        tick_plain_log(axes.yaxis)
    for (width, height), count in list(zip(sizes, counts, strict=True))[-3:]:
        if count > 1:
            text = f"{width} × {height}: {count:,}"
            axes.annotate(text, (width, height), (6, 4), textcoords="offset points", fontsize=8, bbox=BACKING)
    bar = figure.colorbar(points, ax=axes, label="images of this size")
    tick_plain_log(bar.ax.yaxis)
    axes.set_xlabel("width (pixels)")
    axes.set_ylabel("height (pixels)")
    return save(figure, path)


def label_pairs(together: NDArray[np.integer[Any]], names: Sequence[str], path: Path) -> Path:
    """Of the images with a row's label, the share that also have a column's label; at most the 40 most frequent.

    `together` (K, K): images that have both labels; on its diagonal, images that have the label.
    """
    totals = np.asarray(together).diagonal()
    chosen = np.sort(np.argsort(-totals, kind="stable")[:MAX_CLASSES])
    title = "Which labels go together, in %"
    if len(chosen) < len(totals):
        title += f": the {len(chosen)} most frequent of {len(totals)}"
    shares = 100 * together[np.ix_(chosen, chosen)] / np.maximum(totals[chosen, None], 1)
    texts = np.char.mod("%.0f", shares)
    np.fill_diagonal(texts, "")  # always 100
    labels = [shorten(names[index], 18) for index in chosen]
    row_names = [f"{label} ({totals[index]:,})" for label, index in zip(labels, chosen, strict=True)]
    figure, axes = draw_matrix(title, shares, texts, row_names, labels, "of the images with the row's label")
    axes.set_ylabel("images with this label ...")
    axes.set_xlabel("... that also have this one")
    return save(figure, path)


def training_curves(history: Sequence[Mapping[str, Any]], path: Path, metric: str) -> Path:
    """Loss and `metric` by epoch, with the change of phase and the epoch of the best `val_<metric>`.

    Rows hold `epoch`, `phase` and any of `train_loss`, `val_loss`, `train_<metric>`, `val_<metric>`; a missing or None
    value leaves a gap. If `epoch` restarts with a phase, rows are numbered consecutively from 1.
    """
    figure, panels = new_figure("Training", 7.5, 6, (1, 1))
    if not history:
        draw_placeholder(panels[0])
        panels[1].set_axis_off()
        return save(figure, path)
    epochs = np.array([float(row["epoch"]) for row in history])
    if (np.diff(epochs) <= 0).any():
        epochs = np.arange(1.0, len(history) + 1)
    for axes, name in zip(panels, ("loss", metric), strict=True):
        for split, colour in (("train", COLOURS[1]), ("val", COLOURS[0])):
            values = _column(history, f"{split}_{name}")
            if np.isfinite(values).any():
                axes.plot(epochs, values, color=colour, marker="o", markersize=3.5, label=split)
        axes.set_ylabel(name.replace("_", " "))
    _mark_best(panels[1], epochs, _column(history, f"val_{metric}"), metric)
    _mark_phases(panels, epochs, [str(row.get("phase", "")) for row in history])
    for axes in panels:
        add_legend(axes)
    panels[-1].set_xlabel("epoch")
    tick_integers(panels[-1].xaxis)
    return save(figure, path)


def _bin_edges(values: Float64s, log: bool) -> Float64s:
    """Square-root rule, at most 50 bins."""
    scaled = np.log10(values) if log else values
    low, high = scaled.min(), scaled.max()
    if low == high:
        low -= 0.5
        high += 0.5
    edges: Float64s = np.linspace(low, high, int(np.clip(np.sqrt(len(values)), 10, 50)) + 1)
    if log:
        edges = 10**edges
        edges[0], edges[-1] = min(edges[0], values.min()), max(edges[-1], values.max())  # otherwise lost to rounding
    return edges


def _column(history: Sequence[Mapping[str, Any]], name: str) -> Float64s:
    return np.array([np.nan if row.get(name) is None else float(row[name]) for row in history])


def _mark_best(axes: Panel, epochs: Float64s, values: Float64s, metric: str) -> None:
    if np.isfinite(values).any():
        best = int(np.nanargmin(values) if metric in LOWER_IS_BETTER else np.nanargmax(values))
        text = f"best: {values[best]:.4f} (epoch {epochs[best]:g})"
        axes.plot(epochs[best], values[best], "*", color=COLOURS[2], markersize=13, label=text, zorder=5)


def _mark_phases(panels: Sequence[Panel], epochs: Float64s, phases: Sequence[str]) -> None:
    """A line between phases in every panel, and the name of each phase above the first panel."""
    for index, phase in enumerate(phases):
        if index and phase == phases[index - 1]:
            continue
        x = (epochs[index - 1] + epochs[index]) / 2 if index else epochs[0]
        for axes in panels if index else ():
            axes.axvline(x, color=MUTED, linewidth=1, linestyle="--")
        top = panels[0].get_xaxis_transform()
        panels[0].annotate(
            shorten(phase), (x, 1.0), (3, 2), xycoords=top, textcoords="offset points", fontsize=8, color=MUTED
        )
