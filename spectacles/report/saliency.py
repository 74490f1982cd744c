"""Saliency maps laid over a photo, for reports, predictions and the server, which has no matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KNOTS = """
30123b 3f3d9c 4666dd 448cfd 2fb1f3 19d3cf 22eba9 51f979 8bfe4b b6f735 dae236 f4c43a fea12f f8741c e84b0c ce2d04 a91501
7a0402
"""
"""Every 15th of the 256 colours of turbo (Mikhailov 2019), from blue to red; straight lines between them miss none of
the others by more than 6 of 255."""


def overlay_saliency(
    image: NDArray[np.uint8], saliency: NDArray[np.floating[Any]], opacity: float = 0.45
) -> NDArray[np.uint8]:
    """Blends a saliency map `(h, w)`, clipped to 0..1 (NaN counts as 0), over a photo `(H, W, 3)`; the result is uint8.

    The map is stretched to the photo, whatever its own resolution.
    """
    height, width = image.shape[:2]
    clipped = np.clip(np.nan_to_num(saliency, nan=0.0), 0.0, 1.0).astype(np.float32)
    stretched = np.asarray(Image.fromarray(clipped).resize((width, height), Image.Resampling.BILINEAR))
    colours = colour_table()[np.rint(stretched * 255).astype(np.uint8)]
    blended = (1 - opacity) * image.astype(np.float32) + opacity * colours
    result: NDArray[np.uint8] = np.rint(blended).astype(np.uint8)
    return result


def colour_table() -> NDArray[np.uint8]:
    """`(256, 3)`."""
    knots = np.array([list(bytes.fromhex(knot)) for knot in KNOTS.split()])
    places = np.linspace(0, 255, len(knots))
    channels = [np.interp(np.arange(256), places, knots[:, channel]) for channel in range(3)]
    table: NDArray[np.uint8] = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return table
