"""Paints shapes given in face coordinates onto a canvas: the pen, its pose, outlines and colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Points = NDArray[np.float64]  # (N, 2): x, y


@dataclass(frozen=True)
class Pose:
    """Where a face stands on the canvas (x, y: pixels; scale: pixels a face unit) and how it is turned (radians)."""

    x: float
    y: float
    scale: float
    roll: float
    yaw: float
    pitch: float


class Pen:
    """Paints shapes given in face coordinates onto a canvas, with one pose.

    A face has its own coordinates: the origin lies between the eyes, x runs right, y runs down and 1 is half the width
    of the face, so the eyes stand at (-0.43, 0) and (0.43, 0), the chin near y = 1.6 and the crown near y = -1.15.
    """

    def __init__(self, canvas: Image.Image, pose: Pose) -> None:
        self.canvas = canvas
        self.pose = pose
        self.draw = ImageDraw.Draw(canvas)

    def to_pixels(self, points: Points, depth: float | Points) -> Points:
        """Face coordinates (N, 2) to pixels (N, 2); depth, one or (N,): 1 is the skin, 0 the plane of the ears."""
        pose = self.pose
        x, y = points[:, 0], points[:, 1]
        z = depth * np.sqrt(np.clip(1 - (x / 1.3) ** 2, 0, 1))  # a head is round: its sides lie further back
        x = x * math.cos(pose.yaw) + z * math.sin(pose.yaw)
        y = y * math.cos(pose.pitch) + z * math.sin(pose.pitch)
        cos, sin = math.cos(pose.roll), math.sin(pose.roll)
        return np.stack([x * cos - y * sin, x * sin + y * cos], axis=1) * pose.scale + (pose.x, pose.y)

    def fill(self, points: Points, colour: Colour, alpha: float = 1, depth: float = 1, blur: float = 0) -> None:
        """A filled polygon; blur is in face units."""
        self._paint(self.to_pixels(points, depth), colour, alpha, blur, line_width=0)

    def stroke(
        self, points: Points, colour: Colour, width: float, alpha: float = 1, depth: float | Points = 1, blur: float = 0
    ) -> None:
        """A line through the points; width and blur are in face units."""
        line_width = max(2, round(width * self.pose.scale))
        self._paint(self.to_pixels(points, depth), colour, alpha, blur, line_width)

    def _paint(self, pixels: Points, colour: Colour, alpha: float, blur: float, line_width: int) -> None:
        if alpha >= 1 and blur == 0:
            _ink(self.draw, pixels, colour, line_width)
            return
        # See-through or soft: through a mask, which need not be larger than the shape.
        radius = blur * self.pose.scale
        pad = line_width + round(3 * radius) + 1
        left, top = np.maximum(pixels.min(axis=0) - pad, -pad).astype(int).tolist()
        right, bottom = (np.minimum(pixels.max(axis=0), self.canvas.size) + pad).astype(int).tolist()
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (right - left, bottom - top))
        _ink(ImageDraw.Draw(mask), pixels - (left, top), round(255 * min(alpha, 1)), line_width)
        mask = mask.filter(ImageFilter.BoxBlur(radius))
        self.canvas.paste(colour, (left, top, right, bottom), mask)


def _ink(draw: ImageDraw.ImageDraw, pixels: Points, colour: Colour | int, line_width: int) -> None:
    """A line, or with line_width 0 a filled polygon."""
    xy = [(x, y) for x, y in pixels.tolist()]
    if line_width:
        draw.line(xy, fill=colour, width=line_width, joint="curve")
    else:
        draw.polygon(xy, fill=colour)


def palette(codes: str) -> list[Colour]:
    """The colours of hexadecimal codes: "ff0000 00ff00" is red and green."""
    return [(int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)) for code in codes.split()]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour that is `share` (0 to 1) of the way from a to b."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def darker(colour: Colour, share: float) -> Colour:
    """Towards a warm black."""
    return mix(colour, (10, 4, 8), share)


def lighter(colour: Colour, share: float) -> Colour:
    """Towards a warm white."""
    return mix(colour, (255, 250, 240), share)


def oval(x: float, y: float, rx: float, ry: float, power: float = 2, start: float = 0, end: float = 360) -> Points:
    """A superellipse (power 2: an ellipse, more: squarer) from start to end, in degrees clockwise from the right."""
    angle = np.radians(np.linspace(start, end, 41))
    cos, sin = np.cos(angle), np.sin(angle)
    across, down = np.sign(cos) * abs(cos) ** (2 / power), np.sign(sin) * abs(sin) ** (2 / power)
    return np.stack([x + rx * across, y + ry * down], axis=1)


def bow(x0: float, y0: float, x1: float, y1: float, bend: float) -> Points:
    """A parabola from (x0, y0) to (x1, y1) whose middle hangs `bend` below the straight line."""
    t = np.linspace(0, 1, 13)
    return np.stack([x0 + (x1 - x0) * t, y0 + (y1 - y0) * t + 4 * bend * t * (1 - t)], axis=1)


def mirrored(points: Points, side: int) -> Points:
    """The points for the right half (side 1) or their reflection (side -1)."""
    return points * (side, 1)
