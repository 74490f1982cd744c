"""Draws one face, with or without spectacles, for the sample data set."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from spectacles.sample_data.drawing import Colour, Pen, Pose, bow, darker, lighter, mirrored, mix, oval, palette
from spectacles.sample_data.glasses import draw_spectacles

SIZE = 160  # pixels a side of a finished picture
SUPERSAMPLING = 3  # drawn this many times too large and scaled down, which smooths the edges
CANVAS = SIZE * SUPERSAMPLING

SKINS = palette("fadec8 f1c8aa e2b28e c8926c a06c4a 704832 523628")
HAIRS = palette("1c1818 3a281e 624228 96683a d0ac6c a04a24 969696 dedcd6")
IRISES = palette("462c1a 644624 466e46 5078a0 6e787d")
HAIR_STYLES = ["bald", "buzz", "short", "short", "parted", "parted", "fringe", "long", "long", "curly", "curly", "bun"]
# What hides the eyes, or makes a bare face look as if it wore spectacles.
DISTRACTORS = ["sockets", "make-up", "strands", "shade", "brows"]
DISTRACTORS_OF_BARE_FACES = [*DISTRACTORS, "on the head", "at the collar"]


def draw_face(rng: Random, glasses: bool) -> Image.Image:
    """A face as an RGB image of SIZE x SIZE pixels. Every choice comes from rng: the same state draws the same face."""
    distractor = rng.choice(DISTRACTORS if glasses else DISTRACTORS_OF_BARE_FACES) if rng.random() < 0.6 else "none"
    skin = mix(rng.choice(SKINS), rng.choice(SKINS), 0.35 * rng.random())
    hair = mix(rng.choice(HAIRS), (90, 70, 60), 0.2 * rng.random())
    hat = rng.choice(["beanie", "cap", "brim"]) if distractor == "shade" or rng.random() < 0.1 else "none"
    style = rng.choice(HAIR_STYLES)
    jaw = rng.uniform(2.0, 2.7)
    pose = _pose(rng, roomy=distractor == "at the collar")
    canvas = _background(rng)
    pen = Pen(canvas, pose)

    if style in ("long", "bun"):
        _back_hair(rng, pen, style, hair)
    _body(rng, Pen(canvas, replace(pose, roll=0.3 * pose.roll, yaw=0, pitch=0)), skin, distractor == "at the collar")
    _head(rng, pen, skin, jaw)
    _sockets(rng, pen, skin, distractor)
    _eyes(rng, pen, skin, hair, heavy_brows=distractor == "brows")
    _beard(rng, pen, hair, jaw)
    _mouth(rng, pen, skin)
    _nose(rng, pen, skin)
    _lines(rng, pen, skin)
    if glasses:
        draw_spectacles(rng, pen, skin, eyes_at=(0, 0.04))
    _hair(rng, pen, style if hat == "none" else rng.choice(["buzz", "short"]), hair)
    if distractor == "strands":
        _strands(rng, pen, hair)
    if hat != "none":
        _hat(rng, pen, hat)
    if distractor == "on the head":
        draw_spectacles(rng, pen, hair if style != "bald" else skin, eyes_at=(0, rng.uniform(-1.0, -0.8)))
    return _photograph(rng, canvas)


def _pose(rng: Random, roomy: bool) -> Pose:
    # Wide on purpose: a classifier that looks at fixed pixels must not be able to find the rims.
    scale = rng.uniform(0.19, 0.22) if roomy else rng.uniform(0.2, 0.33)
    return Pose(
        x=CANVAS * rng.uniform(0.36, 0.64),
        y=CANVAS * (rng.uniform(0.36, 0.44) if roomy else rng.uniform(0.34, 0.58)),
        scale=CANVAS * scale,
        roll=math.radians(max(-32, min(32, rng.gauss(0, 14)))),
        yaw=math.radians(rng.uniform(-20, 20)),
        pitch=math.radians(rng.uniform(-9, 9)),
    )


def _random_colour(rng: Random) -> Colour:
    grey = rng.randrange(30, 230)
    return mix((grey, grey, grey), (rng.randrange(256), rng.randrange(256), rng.randrange(256)), rng.uniform(0.2, 0.7))


def _background(rng: Random) -> Image.Image:
    base, other = _random_colour(rng), _random_colour(rng)
    kind = rng.choice(["plain", "gradient", "stripes", "blobs", "bokeh", "shelves"])
    canvas = Image.new("RGB", (CANVAS, CANVAS), base)
    draw = ImageDraw.Draw(canvas, "RGBA")
    if kind == "gradient":
        mask = Image.linear_gradient("L").resize((CANVAS, CANVAS)).rotate(rng.choice([0, 90, 180, 270]))
        canvas.paste(other, (0, 0), mask)
    elif kind == "stripes":
        step, slant = rng.randrange(24, 90), rng.uniform(-1, 1) * CANVAS
        for left in range(-CANVAS, 2 * CANVAS, 2 * step):
            foot = left + slant
            draw.polygon([(left, 0), (left + step, 0), (foot + step, CANVAS), (foot, CANVAS)], fill=(*other, 150))
    elif kind in ("blobs", "bokeh"):
        for _ in range(rng.randrange(6, 18)):
            x, y, r = rng.uniform(0, CANVAS), rng.uniform(0, CANVAS), rng.uniform(15, 75)
            colour = mix(other, _random_colour(rng), 0.4)
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(*colour, rng.randrange(50, 170)))
    elif kind == "shelves":
        for shelf in range(0, CANVAS, rng.randrange(80, 150)):
            for book in range(0, CANVAS, rng.randrange(14, 32)):
                head, thickness = shelf + rng.randrange(8, 40), rng.randrange(9, 28)
                draw.rectangle([book, head, book + thickness, shelf + 80], fill=_random_colour(rng))
    # The lens keeps the face sharp and the room soft; a small copy blurs as well for far less time.
    small = canvas.resize((SIZE, SIZE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 4)))
    return small.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)


def _body(rng: Random, pen: Pen, skin: Colour, hanging: bool) -> None:
    cloth, trim = _random_colour(rng), _random_colour(rng)
    slope = rng.uniform(0.2, 0.5)
    pen.fill(np.array([[-2.6, 6], [-2.5, 2.3 + slope], [-0.6, 2.0], [0.6, 2.0], [2.5, 2.3 + slope], [2.6, 6]]), cloth)
    pen.fill(np.array([[-0.55, 0.9], [0.55, 0.9], [0.6, 2.0], [0, 2.25], [-0.6, 2.0]]), darker(skin, 0.22))
    pattern = rng.choice(["plain", "plain", "stripes", "collar"])
    if pattern == "stripes":
        for y in np.arange(2.5, 6, 0.45):
            pen.stroke(bow(-2.5, y, 2.5, y, 0.1), trim, 0.14, alpha=0.8)
    elif pattern == "collar":
        flap = np.array([[0.62, 1.9], [0.05, 2.35], [0.5, 2.75], [0.95, 2.15]])
        for side in (-1, 1):
            pen.fill(mirrored(flap, side), lighter(cloth, 0.3))
    if hanging:
        draw_spectacles(rng, pen, cloth, eyes_at=(rng.uniform(-0.2, 0.2), rng.uniform(2.25, 2.45)))


def _head(rng: Random, pen: Pen, skin: Colour, jaw: float) -> None:
    for side in (-1, 1):
        pen.fill(oval(side * 1.02, 0.2, 0.15, 0.28), darker(skin, 0.1), depth=0)
        pen.fill(oval(side * 1.03, 0.2, 0.07, 0.16), darker(skin, 0.3), depth=0)
    pen.fill(np.concatenate([oval(0, 0.15, 1, 1.25, 2.2, 180, 360), oval(0, 0.15, 1, 1.48, jaw, 0, 180)]), skin)
    shadow_side = rng.choice([-1, 1])
    pen.fill(oval(shadow_side * 0.68, 0.4, 0.2, 0.85), darker(skin, 0.7), rng.uniform(0.05, 0.4), blur=0.2)
    pen.fill(oval(-shadow_side * 0.4, -0.45, 0.5, 0.3), lighter(skin, 0.6), rng.uniform(0.05, 0.35), blur=0.2)
    blush = mix(skin, (220, 60, 60), 0.5)
    for side in (-1, 1):
        pen.fill(oval(side * 0.58, 0.55, 0.22, 0.16), blush, rng.uniform(0.05, 0.3), blur=0.12)


def _sockets(rng: Random, pen: Pen, skin: Colour, distractor: str) -> None:
    depth = rng.uniform(0.35, 0.7) if distractor == "sockets" else rng.uniform(0.02, 0.25)
    for side in (-1, 1):
        pen.fill(oval(side * 0.43, -0.02, 0.3, 0.22), darker(skin, 0.75), depth, blur=0.08)
    if distractor == "make-up":
        colour = mix(rng.choice([(30, 20, 30), (40, 60, 140), (120, 40, 120), (30, 110, 100)]), skin, 0.2)
        for side in (-1, 1):
            pen.fill(oval(side * 0.45, -0.08, 0.3, 0.17), colour, rng.uniform(0.5, 0.9), blur=0.05)


def _eyes(rng: Random, pen: Pen, skin: Colour, hair: Colour, heavy_brows: bool) -> None:
    iris, height, gaze = rng.choice(IRISES), rng.uniform(0.07, 0.125), rng.uniform(-0.05, 0.05)
    lid, closed, lashes = darker(skin, rng.uniform(0.5, 0.85)), rng.random() < 0.05, rng.uniform(0.025, 0.06)
    lift, tilt, thick = rng.uniform(-0.04, 0.06), rng.uniform(-0.07, 0.07), rng.uniform(0.05, 0.1) + 0.07 * heavy_brows
    brow = darker(hair, 0.6) if heavy_brows else mix(darker(hair, 0.25), skin, rng.uniform(0, 0.35))
    for side in (-1, 1):
        x = side * 0.43
        if not closed:
            almond = np.concatenate([bow(x - 0.2, 0, x + 0.2, 0, -height), bow(x + 0.2, 0, x - 0.2, 0, height)])
            pen.fill(almond, (238, 234, 230))
            pen.fill(oval(x + gaze, -0.01, 0.085, min(height, 0.1)), iris)
            pen.fill(oval(x + gaze, -0.01, 0.04, 0.045), (12, 10, 12))
            pen.fill(oval(x + gaze + 0.03, -0.035, 0.018, 0.018), (255, 255, 255))
        pen.stroke(bow(x - 0.21, 0.01, x + 0.21, 0.01, height if closed else -height), lid, lashes)
        bag = bow(x - 0.19, 0.16, x + 0.19, 0.16, 0.05)
        pen.stroke(bag, darker(skin, 0.5), 0.03, rng.uniform(0.05, 0.5), blur=0.02)
        high = -0.26 - lift + 0.06 * heavy_brows
        arch = bow(0.17, high + tilt, 0.7, high - tilt + 0.03, -0.07)
        pen.stroke(mirrored(arch, side), brow, thick, 0.95)


def _nose(rng: Random, pen: Pen, skin: Colour) -> None:
    width, tip, dark = rng.uniform(0.13, 0.22), rng.uniform(0.5, 0.66), darker(skin, 0.5)
    side = rng.choice([-1, 1])
    pen.fill(np.array([[side * 0.08, 0], [side * 0.16, tip], [0, tip], [side * 0.02, 0]]), dark, 0.3, 1.1, blur=0.04)
    pen.fill(oval(0, tip - 0.05, width * 0.7, 0.1), lighter(skin, 0.5), 0.3, 1.2, blur=0.05)
    pen.stroke(bow(-width, tip, width, tip, 0.06), dark, 0.035, 0.6, depth=1.15)
    for nostril in (-0.5, 0.5):
        pen.fill(oval(nostril * width, tip + 0.01, 0.05, 0.03), darker(skin, 0.8), 0.8, 1.15)


def _mouth(rng: Random, pen: Pen, skin: Colour) -> None:
    y, half, smile = rng.uniform(0.93, 1.05), rng.uniform(0.26, 0.42), rng.uniform(-0.05, 0.13)
    lips = mix(darker(skin, 0.15), rng.choice([(190, 60, 70), (150, 40, 60), (200, 90, 90)]), rng.uniform(0.25, 0.8))
    full, opening = rng.uniform(0.05, 0.11), max(0.0, rng.uniform(-0.12, 0.15))
    corner = y - smile / 2
    upper, lower = bow(-half, corner, half, corner, smile), bow(half, corner, -half, corner, smile + opening)
    pen.fill(np.concatenate([upper - (0, 0.02), np.add(lower, (0, full))]), lips)
    pen.fill(np.concatenate([upper, bow(half, corner, -half, corner, smile - full)]), darker(lips, 0.15))
    if opening > 0.03:
        pen.fill(np.concatenate([upper, lower]), (60, 18, 24))
        pen.fill(np.concatenate([upper, lower - (0, 0.3 * opening)]) * (0.8, 1), (240, 236, 226))
    pen.stroke(upper, darker(lips, 0.55), 0.03)


def _beard(rng: Random, pen: Pen, hair: Colour, jaw: float) -> None:
    kind = rng.choice(["none", "none", "none", "none", "stubble", "beard", "moustache", "goatee"])
    colour = darker(hair, 0.2)
    if kind in ("stubble", "beard"):
        alpha, blur = (0.35, 0.08) if kind == "stubble" else (0.93, 0.025)
        outer = oval(0, 0.15, 1.0, 1.52, jaw, 8, 172)
        inner = oval(0, 0.55, 0.75, rng.uniform(0.12, 0.3), 2.5, 172, 8)
        pen.fill(np.concatenate([outer, inner]), colour, alpha, blur=blur)
    if kind in ("moustache", "goatee") or (kind == "beard" and rng.random() < 0.6):
        for side in (-1, 1):
            pen.stroke(mirrored(bow(0.02, 0.83, 0.4, 0.95, -0.05), side), colour, rng.uniform(0.08, 0.14), 0.95)
    if kind == "goatee":
        pen.fill(oval(0, 1.42, 0.26, 0.22, 2.5), colour, 0.92, blur=0.02)


def _lines(rng: Random, pen: Pen, skin: Colour) -> None:
    age, furrow = max(0.0, rng.uniform(-0.4, 0.6)), darker(skin, 0.5)
    for side in (-1, 1):
        pen.stroke(mirrored(bow(0.25, 0.62, 0.45, 1.0, -0.03), side), furrow, 0.03, age + 0.05, blur=0.015)
        for dy in (-0.06, 0.02, 0.1):
            foot = mirrored(bow(0.7, dy * 0.4, 0.86, dy, 0.01), side)
            pen.stroke(foot, furrow, 0.02, age * 0.7, blur=0.01)
    for y in (-0.62, -0.5):
        pen.stroke(bow(-0.45, y, 0.45, y, -0.04), furrow, 0.025, age * 0.8, blur=0.015)


def _back_hair(rng: Random, pen: Pen, style: str, hair: Colour) -> None:
    if style == "long":
        pen.fill(oval(0, 0.55, rng.uniform(1.2, 1.4), rng.uniform(1.5, 2.2), 2.8), darker(hair, 0.25), depth=0)
    else:
        pen.fill(oval(rng.uniform(-0.3, 0.3), -1.35, 0.42, 0.38), darker(hair, 0.15), depth=0)


def _hair(rng: Random, pen: Pen, style: str, hair: Colour) -> None:
    if style == "bald":
        return
    volume = {"buzz": 1.03, "short": 1.1, "curly": 1.16}.get(style, 1.12)
    reach = rng.uniform(0.3, 0.45) if style == "fringe" else rng.uniform(0.72, 0.98)  # how far up the hairline stands
    slant = rng.uniform(-0.3, 0.3) if style in ("parted", "long") else 0
    outer = oval(0, 0.1, volume, 1.22 * volume, 2.2, 172, 368)
    hairline = oval(0, 0.1, 0.93, reach, 3, 368, 172)
    hairline[:, 1] += slant * hairline[:, 0] * (1 - abs(hairline[:, 0]))
    if style == "fringe":
        hairline[:, 1] += [rng.uniform(-0.06, 0.06) for _ in hairline]
    cap = np.concatenate([outer, hairline])
    pen.fill(cap, hair, 0.75 if style == "buzz" else 1, depth=0.6, blur=0.03 if style == "buzz" else 0)
    if style == "curly":
        for x, y in np.concatenate([outer[::2], (outer[::2] * 0.6 + hairline[::-1][::2] * 0.4)]).tolist():
            r = rng.uniform(0.14, 0.26)
            pen.fill(oval(x, y, r, r), mix(hair, darker(hair, 0.5), rng.random()), depth=0.6)
    elif style != "buzz":
        for _ in range(9):
            at, shine = rng.randrange(4, 37), rng.choice([darker(hair, 0.4), lighter(hair, 0.25)])
            (x0, y0), (x1, y1) = outer[at] * 0.97, hairline[40 - at]
            pen.stroke(bow(x0, y0, x1, y1, 0), shine, 0.03, 0.4, depth=0.6)
    if style == "long":
        for side in (-1, 1):
            lock = np.concatenate([bow(0.95, -0.5, 1.1, 1.9, 0), bow(1.35, 1.9, 1.1, -0.5, 0)])
            pen.fill(mirrored(lock, side), hair, depth=0.2)


def _strands(rng: Random, pen: Pen, hair: Colour) -> None:
    side = rng.choice([-1, 1])
    for _ in range(rng.randrange(4, 9)):
        x = rng.uniform(-0.5, 0.6)
        lock = bow(x * 0.5, -0.95, x + rng.uniform(0, 0.5), rng.uniform(0.05, 0.45), rng.uniform(-0.15, 0.1))
        pen.stroke(mirrored(lock, side), mix(hair, darker(hair, 0.4), rng.random()), rng.uniform(0.04, 0.1), 0.95)


def _hat(rng: Random, pen: Pen, kind: str) -> None:
    colour, trim, edge = _random_colour(rng), _random_colour(rng), rng.uniform(-0.5, -0.38)
    pen.fill(oval(0, edge + 0.28, 0.82, 0.36), (12, 8, 12), rng.uniform(0.25, 0.6), blur=0.1)  # its shadow on the eyes
    crown = oval(0, edge, 1.12, rng.uniform(0.85, 1.1), 2.4, 180, 360)
    pen.fill(crown, colour, depth=0.6)
    if kind == "beanie":
        pen.stroke(bow(-1.08, edge, 1.08, edge, -0.06), mix(colour, trim, 0.5), 0.26, depth=0.8)
    elif kind == "cap":
        visor = np.concatenate([bow(-0.95, edge, 0.95, edge, -0.2), bow(0.95, edge, -0.95, edge, 0.16)])
        pen.fill(visor, darker(trim, 0.2), depth=1.4)
    else:
        pen.fill(oval(0, edge, 1.75, 0.2), darker(colour, 0.15), depth=0.6)
        pen.stroke(bow(-1.05, edge - 0.16, 1.05, edge - 0.16, 0.06), trim, 0.16, depth=0.6)


def _photograph(rng: Random, canvas: Image.Image) -> Image.Image:
    """Scale down to SIZE and add what a camera adds: falling light, a colour cast, exposure, softness and noise."""
    small = canvas.resize((SIZE, SIZE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.5)))
    direction, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.45)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    light = 1 + strength * (x * math.cos(direction) + y * math.sin(direction))
    warmth, exposure = rng.uniform(-0.08, 0.08), rng.uniform(0.72, 1.15)
    cast = exposure * np.array([1 + warmth, 1.0, 1 - warmth])
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, rng.uniform(2, 6), (SIZE, SIZE, 3))
    pixels = np.asarray(small, dtype=np.float64) * light[:, :, None] * cast + noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
