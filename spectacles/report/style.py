"""The common look of all charts, and how they are written. The only module that imports matplotlib.

Figures are plain objects without pyplot, which keeps global state and is not safe in threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from spectacles.core.fileio import atomic_path

Panel = Axes  # for annotations in the modules that draw
DPI = 110
INK, MUTED = "#222222", "#7a7a7a"
MAX_NUMBERED = 20  # rows up to which the cells of a matrix hold numbers
# Okabe & Ito's palette, safe for common colour blindness, without its yellow, which is invisible on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7a7a7a")
_FALLBACK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "Arial Unicode MS")


def new_figure(
    title: str, width: float, height: float, height_ratios: Sequence[float] = (1,)
) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches with a panel for each height ratio; the panels share their x axis."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(shorten(title, 200), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    ratios = list(height_ratios)
    panels: list[Axes] = list(figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(colors=INK, labelsize=9, length=3, color=MUTED)
        axes.grid(alpha=0.25, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, panels


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, atomically, and returns the path."""
    for text in figure.findobj(lambda artist: isinstance(artist, Text)):
        text.set(parse_math=False, fontfamily=_font_families())  # class names and paths may hold $
    with atomic_path(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=DPI)
    return path


def shorten(text: str, length: int = 24) -> str:
    """User text fit for a chart: on one line, elided in the middle, a box for characters that no font has."""
    text = " ".join(str(text).split())
    if len(text) > length:
        head = length // 2
        text = f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"
    drawable = _drawable_characters()
    return "".join(character if ord(character) in drawable else "□" for character in text)


def nth_colour(index: int) -> str:
    """The colour of the index-th series; colours repeat."""
    return COLOURS[index % len(COLOURS)]


def draw_placeholder(axes: Axes, reason: str = "nothing to show") -> None:
    """Shows only the reason why the panel is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def add_legend(axes: Axes, title: str = "", loc: str = "best") -> None:
    """A small frameless legend, if anything is labelled; `loc` may also be "beside": outside, on the right."""
    options: dict[str, Any] = {"title": title, "loc": loc, "fontsize": 8, "title_fontsize": 8, "edgecolor": "none"}
    options["alignment"] = "left"
    if loc == "beside":
        options |= {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names down the y axis, the first on top."""
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def draw_matrix(
    title: str,
    shares: NDArray[np.floating[Any]],
    texts: NDArray[np.str_],
    row_names: Sequence[str],
    column_names: Sequence[str],
    of_what: str,
) -> tuple[Figure, Axes]:
    """A heat map of `shares` (K, K), 0..100 % `of_what`, with `texts` (K, K) in the cells up to 20 rows."""
    numbered = len(row_names) <= MAX_NUMBERED
    side = max(2.6, len(row_names) * (0.58 if numbered else 0.25))
    figure, [axes] = new_figure(title, side + 2.8, side + 1.7)
    # Coloured by square root, so that small shares differ visibly from none.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    axes.grid(visible=False)
    for (row, column), text in np.ndenumerate(texts) if numbered else ():
        colour = "white" if shares[row, column] > 30 else INK if shares[row, column] else MUTED
        size = 9 if len(row_names) <= 8 else 7.5
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
    axes.set_xticks(range(len(column_names)), column_names, rotation=90 if len(column_names) > 4 else 0, fontsize=8)
    axes.set_yticks(range(len(row_names)), row_names, fontsize=8)
    figure.colorbar(image, ax=axes, label=f"% {of_what}", shrink=0.8, aspect=30)
    return figure, axes


def tick_integers(axis: Axis) -> None:
    """Ticks on whole numbers only, for epochs and counts."""
    axis.set_major_locator(MaxNLocator("auto", integer=True))


def tick_plain_log(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis that is already drawn on: the default powers of ten need mathtext."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter("{x:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def colour_table(name: str) -> NDArray[np.uint8]:
    """A matplotlib colour map as a `(256, 3)` uint8 lookup table."""
    table: NDArray[np.uint8] = colormaps[name](np.arange(256), bytes=True)[:, :3]
    return table


@cache
def _font_families() -> list[str]:
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)]


@cache
def _drawable_characters() -> frozenset[int]:
    return frozenset().union(*(get_font(findfont(name)).get_charmap() for name in _font_families()))
