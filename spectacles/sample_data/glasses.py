"""Draws one pair of spectacles: lenses, frame, tint and glare."""

from __future__ import annotations

from random import Random

import numpy as np

from spectacles.sample_data.drawing import Colour, Pen, Points, bow, darker, lighter, mirrored, oval, palette

ACETATES = palette("181618 3c2418 781822 1c2c60 22543e ece8e0 b4286e c47828")
METALS = palette("28282e 707278 ba9646 ced0d4 966050")
LENS_SHAPES = ["round", "rectangular", "aviator", "cat-eye", "half-rim", "square"]


def draw_spectacles(rng: Random, pen: Pen, behind: Colour, eyes_at: tuple[float, float]) -> None:
    """A pair of spectacles around `eyes_at`, the point between the lenses, over something coloured `behind`."""
    shape, rx = rng.choice(LENS_SHAPES), rng.uniform(0.33, 0.42)
    metal = shape in ("aviator", "half-rim") or rng.random() < 0.3
    colour = _standing_out(rng.choice(METALS if metal else ACETATES), behind)
    clear = not metal and rng.random() < 0.12  # see-through plastic: thick, pale, with a darker edge
    width = rng.uniform(0.04, 0.06) if metal else rng.uniform(0.06, 0.12)
    tint, tint_alpha = _tint(rng)
    x, y = eyes_at
    for side in (-1, 1):
        lens = mirrored(_lens(shape, rx, centre=rx + 0.075), side) + np.array(eyes_at)
        pen.stroke(lens + np.array([0, 0.05]), darker(behind, 0.8), width, 0.3, depth=1.05, blur=0.03)
        pen.fill(lens, tint, tint_alpha, depth=1.1)
        _glare(rng, pen, lens.mean(axis=0), rx)
        if clear:
            pen.stroke(lens, (110, 100, 100), 0.13, depth=1.1)
            pen.stroke(lens, (226, 220, 216), 0.08, 0.8, depth=1.1)
        else:
            pen.stroke(lens, colour, 0.02 if shape == "half-rim" else width, depth=1.1)
            if shape == "half-rim":  # the bar is the upper half of the outline
                pen.stroke(lens[:21], colour, 1.6 * width, depth=1.1)
        hinge = lens[np.argmax(side * lens[:, 0] - 0.3 * lens[:, 1])]
        ear = (x + side * 1.06, y + 0.02)
        pen.stroke(np.array([hinge, ear]), colour, max(width, 0.05), depth=np.array([1.1, 0.6]))
    pen.stroke(bow(x - 0.09, y - 0.06, x + 0.09, y - 0.06, -0.05), colour, max(0.9 * width, 0.05), depth=1.15)


def _lens(shape: str, rx: float, centre: float) -> Points:
    """The outline of the right lens, `centre` to the right of the bridge."""
    flat = {"round": 0.97, "rectangular": 0.58, "aviator": 0.8, "cat-eye": 0.68, "half-rim": 0.6, "square": 0.8}[shape]
    power = {"round": 2.0, "rectangular": 5.0, "aviator": 2.5, "cat-eye": 2.8, "half-rim": 3.6, "square": 4.0}[shape]
    lens = oval(0, 0, rx, rx * flat, power, 180, 540)
    if shape == "aviator":  # a drop that hangs outwards
        lens *= 1 + 0.16 * np.clip(lens[:, 1:] / rx, 0, 1)
        lens[:, 0] += 0.16 * lens[:, 1]
    if shape == "cat-eye":  # the outer upper corner is swept up
        outer, upper = np.clip(lens[:, 0] / rx, 0, 1), np.clip(-lens[:, 1] / rx, 0, 1)
        lens += np.stack([0.25 * outer * upper, -0.55 * outer * upper], axis=1) * rx
    return np.add(lens, (centre, 0))


def _tint(rng: Random) -> tuple[Colour, float]:
    kind = rng.choice(["none", "none", "none", "clear", "clear", "tinted", "sunglasses"])
    if kind == "sunglasses":
        return rng.choice([(16, 16, 20), (40, 24, 16), (20, 34, 30)]), rng.uniform(0.75, 0.97)
    if kind == "tinted":
        return rng.choice([(200, 150, 60), (90, 120, 170), (170, 90, 110)]), rng.uniform(0.2, 0.4)
    return (225, 235, 245), 0 if kind == "none" else rng.uniform(0.05, 0.2)


def _glare(rng: Random, pen: Pen, centre: Points, rx: float) -> None:
    if rng.random() < 0.45:
        streak = np.array([[-0.35, 0.4], [-0.1, 0.4], [0.4, -0.4], [0.15, -0.4]]) * rx * (1.3, 0.9)
        pen.fill(centre + streak, (255, 255, 255), rng.uniform(0.2, 0.65), depth=1.1, blur=0.015)


def _standing_out(colour: Colour, behind: Colour) -> Colour:
    """The frame's colour, pushed away from what lies behind it until a person can see it."""
    if abs(sum(colour) - sum(behind)) >= 3 * 70:  # of 255, averaged over the three channels
        return colour
    return lighter(colour, 0.65) if sum(behind) < 3 * 100 else darker(colour, 0.6)
