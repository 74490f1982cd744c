"""Contact sheets of photos."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from spectacles.report.style import DPI, INK, draw_placeholder, new_figure, save, shorten

THUMBNAIL = 150  # pixels, like the next three
GAP = 12
HEADER = 44
LINE = 13  # one line of caption
CAPTION_LINES = 4
CAPTION_COLUMNS = 25  # characters that fit the width of a thumbnail
MARGIN = (240, 240, 240)

Picture = NDArray[np.uint8] | Image.Image


def image_grid(
    images: Sequence[Picture], captions: Sequence[str], path: Path, columns: int = 6, title: str = ""
) -> Path:
    """A contact sheet of `(H, W, 3)` uint8 arrays or PIL images, each letterboxed above its caption.

    Captions keep their line breaks, are wrapped, and cut after four lines. The sheet is composed in memory: for up to
    a few hundred images.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    if not images:
        figure, [axes] = new_figure(title, 5, 1.6)
        draw_placeholder(axes)
        return save(figure, path)
    wrapped = [_wrap(caption) for caption in captions]
    cell_width = THUMBNAIL + GAP
    cell_height = THUMBNAIL + GAP + LINE * max(len(lines) for lines in wrapped)
    columns = min(columns, len(images))
    header = HEADER if title else GAP
    # Wide enough for the title, also with a single column.
    width = max(GAP + columns * cell_width, 400 if title else 0)
    height = header + -(-len(images) // columns) * cell_height
    page = np.full((height, width, 3), 255, dtype=np.uint8)
    figure, [axes] = new_figure("", width / DPI, height / DPI)
    figure.set_layout_engine("none")
    axes.remove()
    figure.suptitle(
        shorten(title, width // 12), x=GAP / width, y=1 - GAP / height, ha="left", fontsize=12, weight="bold"
    )
    for index, (image, lines) in enumerate(zip(images, wrapped, strict=True)):
        row, column = divmod(index, columns)
        top, left = header + row * cell_height, GAP + column * cell_width
        page[top : top + THUMBNAIL, left : left + THUMBNAIL] = _letterboxed(image)
        figure.text(
            left / width, 1 - (top + THUMBNAIL + 4) / height, "\n".join(lines), va="top", fontsize=6.5, color=INK
        )
    # One picture instead of one Axes per thumbnail: as fast as pasting.
    figure.figimage(page)
    return save(figure, path)


def _wrap(caption: str) -> list[str]:
    lines = [part for line in caption.splitlines() for part in textwrap.wrap(line, CAPTION_COLUMNS)]
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], lines[CAPTION_LINES - 1][: CAPTION_COLUMNS - 1] + "…"]
    return [shorten(line, CAPTION_COLUMNS) for line in lines]


def _letterboxed(image: Picture) -> NDArray[np.uint8]:
    """`(THUMBNAIL, THUMBNAIL, 3)` uint8: the whole picture, with grey margins."""
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    return np.asarray(ImageOps.pad(picture, (THUMBNAIL, THUMBNAIL), color=MARGIN))
