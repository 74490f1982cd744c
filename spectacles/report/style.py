"""The look every picture of the project shares, and how one reaches the disk. The only importer of matplotlib.

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
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from spectacles.core.fileio import atomic_path

Panel = Axes  # for annotations in the modules that draw
DPI = 110
INK, MUTED = "#222222", "#7a7a7a"
# Okabe & Ito's palette, which people with any common colour blindness can tell apart; its yellow is lost on white.
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
    """Writes the figure as PNG to `path`, all of it or nothing, and returns the path."""
    for text in figure.findobj(lambda artist: isinstance(artist, Text)):
        text.set(parse_math=False, fontfamily=_font_families())  # class names and paths may hold $
    with atomic_path(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=DPI)
    return path


def shorten(text: str, length: int = 24) -> str:
    """User text that can be drawn: on one line, elided in the middle, a box for what the fonts lack."""
    text = " ".join(str(text).split())
    if len(text) > length:
        head = length // 2
        text = f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"
    drawable = _drawable_characters()
    return "".join(character if ord(character) in drawable else "□" for character in text)


def nth_colour(index: int) -> str:
    """The colour of the index-th thing in a chart; they repeat."""
    return COLOURS[index % len(COLOURS)]


def say_nothing(axes: Axes, reason: str = "nothing to show") -> None:
    """Empties the panel but for the reason why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def add_legend(axes: Axes, title: str = "", loc: str = "best") -> None:
    """A small legend without a frame, if anything is labelled; `loc` may be "beside", outside on the right."""
    options: dict[str, Any] = {"title": title, "loc": loc, "fontsize": 8, "title_fontsize": 8, "edgecolor": "none"}
    options["alignment"] = "left"
    if loc == "beside":
        options |= {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Class names down the y axis, the first on top."""
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def tick_integers(axis: Axis) -> None:
    """Ticks on whole numbers only, for epochs and counts."""
    axis.set_major_locator(MaxNLocator("auto", integer=True))


def tick_plain_log(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis that is already drawn on: the default powers of ten need mathtext."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter("{x:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def square_root_norm(high: float) -> Normalize:
    """Colours 0..high by square root, so that small values can be told from none."""
    return PowerNorm(0.5, 0, high)


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
