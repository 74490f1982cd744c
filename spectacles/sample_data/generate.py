"""Draws the sample data set: faces with and without spectacles, and the faults that a real data set has.

    python -m spectacles.sample_data --output_dir sample --images 600

    sample/dataset/face-0001.jpg ...   the pictures; neither name nor number gives away the label
    sample/train.csv                   id, file (its name in dataset), glasses (0 or 1, some of them wrong)
    sample/test.csv                    id, file
    sample/test_labels.csv             id, glasses
    sample/planted.csv                 the key: every fault, which nothing that learns may read
    sample/drawn.json                  what the folder was drawn with

Every picture has a random generator of its own, so it does not depend on the pictures before it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from tqdm import tqdm

from spectacles.sample_data.faces import SIZE, draw_face

SMALLEST = 40  # every fault comes at least once: with fewer pictures hardly a clean one would be left
GLASSES_SHARE = 0.4
TEST_SHARE = 0.15  # of the clean pictures
CLEAN = "clean"
EXIF_ORIENTATION, EXIF_TURN_RIGHT = 0x0112, 6  # EXIF 2.3, tag 274: turn by 90 degrees clockwise to see it upright


@dataclass(frozen=True)
class Fault:
    """A kind of planted fault: its share of all pictures, and its variants, each of which occurs at least once."""

    share: float
    details: tuple[str, ...]


FAULTS = {
    "wrong_label": Fault(0.04, ("flipped",)),
    "exact_duplicate": Fault(0.02, ("same_label", "conflicting_label")),
    "near_duplicate": Fault(0.03, ("recompressed", "resized", "cropped", "brightness")),
    "dark": Fault(0.015, ("underexposed",)),
    "blurred": Fault(0.015, ("out_of_focus",)),
    "odd_aspect": Fault(0.01, ("wide", "tall")),
    "corrupt": Fault(0.01, ("truncated", "empty", "text")),
    "odd_mode": Fault(0.01, ("cmyk", "grey", "palette", "alpha", "grey16", "exif_rotated", "animated")),
}
DUPLICATES = ("exact_duplicate", "near_duplicate")
SUFFIXES = {"palette": ".png", "alpha": ".png", "grey16": ".png", "animated": ".gif"}


@dataclass(frozen=True)
class Picture:
    """One file to be: what it shows (true_label), what the CSV says of it (label) and what is wrong with it."""

    number: int
    kind: str = CLEAN
    detail: str = ""
    true_label: int = 0
    label: int = 0
    of: int | None = None  # a duplicate: the number of its original
    conflicting: bool = False  # a duplicate whose label is wrong and its original's right
    test: bool = False

    @property
    def file(self) -> str:
        """The file's name in the folder dataset."""
        return f"face-{self.number:04d}{SUFFIXES.get(self.detail, '.jpg')}"


def draw(output_dir: Path, images: int = 600, seed: int = 0, show_progress: bool = False) -> Path:
    """Draw the data set into output_dir and return output_dir; a folder drawn with the same images and seed is kept.

    The folder appears whole or not at all. ValueError: fewer than SMALLEST images. FileExistsError: output_dir holds
    something else.
    """
    if images < SMALLEST:
        raise ValueError(f"images={images} is too few: at least {SMALLEST} are needed to hold every planted fault.")
    output_dir = Path(output_dir)
    wanted = {"images": images, "seed": seed}
    if output_dir.exists():
        if _drawn_with(output_dir) == wanted:
            return output_dir
        raise FileExistsError(
            f"{output_dir} exists, but was not drawn with images={images}, seed={seed}: remove it or name another."
        )
    partial = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.partial")
    try:
        (partial / "dataset").mkdir(parents=True)
        pictures = plan(images, seed)
        _draw_pictures(pictures, seed, partial, show_progress)
        _write_tables(pictures, partial)
        (partial / "drawn.json").write_text(json.dumps(wanted) + "\n", encoding="utf-8")
        partial.rename(output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output_dir


def _drawn_with(folder: Path) -> object:
    try:
        return json.loads((folder / "drawn.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def planted_counts(images: int) -> dict[str, int]:
    """How many pictures of each kind of fault a data set of `images` pictures holds."""
    return {kind: max(round(fault.share * images), len(fault.details)) for kind, fault in FAULTS.items()}


def plan(images: int, seed: int) -> list[Picture]:
    """Decide, for every picture, its number, label, fault and split; in the order of the numbers."""
    rng = Random(f"plan-{seed}")
    faults = [
        (kind, FAULTS[kind].details[i % len(FAULTS[kind].details)])
        for kind, count in planted_counts(images).items()
        for i in range(count)
    ]
    kinds = [(CLEAN, "")] * (images - len(faults)) + faults
    # Spread evenly before shuffling, so that every kind has its share of spectacles, whatever the seed.
    labels = [int(GLASSES_SHARE * (i + 1)) - int(GLASSES_SHARE * i) for i in range(images)]
    shuffled = rng.sample(list(zip(kinds, labels, strict=True)), images)
    pictures = [
        Picture(number, kind, detail, true_label=label, label=label ^ (kind == "wrong_label"))
        for number, ((kind, detail), label) in enumerate(shuffled, start=1)
    ]
    return _hold_out_test(rng, _pair_duplicates(rng, pictures))


def _pair_duplicates(rng: Random, pictures: list[Picture]) -> list[Picture]:
    """Give every duplicate a clean original of its own; in some pairs the duplicate's label is the wrong one."""
    originals = {label: [p.number for p in pictures if p.kind == CLEAN and p.true_label == label] for label in (0, 1)}
    for numbers in originals.values():
        rng.shuffle(numbers)
    paired, near_duplicates = [], 0
    for picture in pictures:
        if picture.kind in DUPLICATES:
            near_duplicates += picture.kind == "near_duplicate"
            every_third = picture.kind == "near_duplicate" and near_duplicates % 3 == 1
            conflicting = picture.detail == "conflicting_label" or every_third
            of, label = originals[picture.true_label].pop(), picture.true_label ^ conflicting
            picture = replace(picture, of=of, label=label, conflicting=conflicting)
        paired.append(picture)
    return paired


def _hold_out_test(rng: Random, pictures: list[Picture]) -> list[Picture]:
    """Move TEST_SHARE of the clean pictures of each label to the test set; both halves of a pair stay in training."""
    originals = {p.of for p in pictures}
    held_out: set[int] = set()
    for label in (0, 1):
        clean = [p.number for p in pictures if p.kind == CLEAN and p.true_label == label]
        unpaired = [number for number in clean if number not in originals]
        held_out.update(rng.sample(unpaired, min(len(unpaired), round(TEST_SHARE * len(clean)))))
    return [replace(p, test=p.number in held_out) for p in pictures]


def _draw_pictures(pictures: list[Picture], seed: int, folder: Path, show_progress: bool) -> None:
    files = {p.number: folder / "dataset" / p.file for p in pictures}
    originals_first = sorted(pictures, key=lambda p: p.kind in DUPLICATES)
    for picture in tqdm(originals_first, desc="drawing faces", unit="face", disable=not show_progress):
        rng = Random(f"face-{seed}-{picture.number}")
        if picture.of is None:
            content = _with_fault(rng, draw_face(rng, glasses=picture.true_label == 1), picture.kind, picture.detail)
        else:
            content = _duplicate(rng, files[picture.of].read_bytes(), picture.detail)
        files[picture.number].write_bytes(content)


def _with_fault(rng: Random, face: Image.Image, kind: str, detail: str) -> bytes:
    if kind == "dark":
        return _jpeg(rng, _underexposed(rng, face))
    if kind == "blurred":
        return _jpeg(rng, face.filter(ImageFilter.GaussianBlur(rng.uniform(3.0, 4.5))))
    if kind == "odd_aspect":
        return _jpeg(rng, _on_odd_canvas(rng, face, wide=detail == "wide"))
    if kind == "odd_mode":
        return _odd_mode(rng, face, detail)
    if detail == "empty":
        return b""
    if detail == "text":
        return b"This is a text file whose name ends in .jpg.\n"
    content = _jpeg(rng, face)
    return content[: len(content) // 2] if detail == "truncated" else content


def _duplicate(rng: Random, original: bytes, detail: str) -> bytes:
    if detail in ("same_label", "conflicting_label"):
        return original
    image: Image.Image = Image.open(io.BytesIO(original))
    if detail == "resized":
        side = round(SIZE * rng.choice([0.75, 0.85, 1.25]))
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    elif detail == "cropped":
        image = ImageOps.crop(image, border=round(0.025 * SIZE))
    elif detail == "brightness":
        image = ImageEnhance.Brightness(image).enhance(rng.choice([0.9, 1.08]))
    return _encoded(image, "JPEG", quality=rng.randint(65, 80))


def _underexposed(rng: Random, face: Image.Image) -> Image.Image:
    """A tenth of the light. The sensor's noise stays, so that a dark picture does not pass for a blurred one."""
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, 5, (SIZE, SIZE, 3))
    pixels = np.asarray(face, dtype=np.float64) * rng.uniform(0.08, 0.14) + noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _on_odd_canvas(rng: Random, face: Image.Image, wide: bool) -> Image.Image:
    """The face somewhere on a strip about four times as long as it is wide, over a smeared copy of itself."""
    side, length = SIZE * 3 // 4, rng.randint(3 * SIZE - 40, 3 * SIZE + 40)
    size = (length, side) if wide else (side, length)
    strip = face.resize(size).filter(ImageFilter.GaussianBlur(12))
    at = rng.randrange(length - side)
    strip.paste(face.resize((side, side)), (at, 0) if wide else (0, at))
    return strip


def _odd_mode(rng: Random, face: Image.Image, detail: str) -> bytes:
    """The face in a valid file of a kind that naive readers get wrong."""
    if detail == "palette":
        return _encoded(face.quantize(64), "PNG")
    if detail == "alpha":
        see_through = Image.radial_gradient("L").resize(face.size)  # 0 in the middle, 255 at the corners
        face.putalpha(see_through.point([255 - max(0, 2 * (value - 128)) for value in range(256)]))
        return _encoded(face, "PNG")
    if detail == "grey16":
        return _encoded(Image.fromarray(np.asarray(face.convert("L"), dtype=np.uint16) * 257), "PNG")
    if detail == "animated":
        return _encoded(face, "GIF", save_all=True, append_images=[ImageOps.mirror(face)], duration=500, loop=0)
    if detail == "exif_rotated":
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = EXIF_TURN_RIGHT
        return _encoded(face.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=92, exif=exif)
    return _jpeg(rng, face.convert({"cmyk": "CMYK", "grey": "L"}[detail]))


def _jpeg(rng: Random, image: Image.Image) -> bytes:
    return _encoded(image, "JPEG", quality=rng.randint(85, 95))


def _encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _write_tables(pictures: list[Picture], folder: Path) -> None:
    files = {p.number: p.file for p in pictures}
    table = pd.DataFrame({"id": p.number, "file": p.file, "glasses": p.label, "test": p.test} for p in pictures)
    train, test = table[~table["test"]], table[table["test"]]
    train[["id", "file", "glasses"]].to_csv(folder / "train.csv", index=False)
    test[["id", "file"]].to_csv(folder / "test.csv", index=False)
    test[["id", "glasses"]].to_csv(folder / "test_labels.csv", index=False)
    key = pd.DataFrame(
        {
            "file": p.file,
            "kind": p.kind,
            "detail": p.detail,
            "true_label": p.true_label,
            "of": files[p.of] if p.of else "",
            "conflicting": int(p.conflicting),
        }
        for p in sorted(pictures, key=lambda p: p.kind)
        if p.kind != CLEAN
    )
    key.to_csv(folder / "planted.csv", index=False)


def main() -> None:
    """Draw the sample data set from the command line."""
    parser = argparse.ArgumentParser(description="Draw a labelled data set of faces with and without spectacles.")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to create")
    parser.add_argument("--images", type=int, default=600, help=f"how many pictures to draw, at least {SMALLEST}")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same files")
    args = parser.parse_args()
    try:
        folder = draw(args.output_dir, args.images, args.seed, show_progress=True)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    print(f"The sample data set is in {folder}: train.csv, test.csv and, for checking what is found, planted.csv.")
