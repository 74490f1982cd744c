"""Accuracy on photos from elsewhere, simulated: the validation photos as other cameras and rooms would show them.

`python -m benchmarks.elsewhere --bundle outputs/<run>/train/bundle --splits splits.csv --backgrounds FOLDER`
It compares models with each other; it does not predict the accuracy on real photos from elsewhere.
"""

import argparse
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks import common
from spectacles.core.device import resolve_device
from spectacles.core.errors import UserError
from spectacles.data import folders
from spectacles.data.images import decode
from spectacles.inference.predictor import Predictor

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def as_jpeg(photo: Image.Image, _: np.random.Generator) -> Image.Image:
    buffer = BytesIO()
    photo.save(buffer, "JPEG", quality=12)
    return Image.open(buffer).convert("RGB")


def low_resolution(photo: Image.Image, _: np.random.Generator) -> Image.Image:
    return photo.resize((photo.width // 4, photo.height // 4), Image.Resampling.BICUBIC).resize(photo.size)


def covered(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = min(photo.size) // 3
    corner = int(rng.integers(photo.width - side)), int(rng.integers(photo.height - side))
    changed = photo.copy()
    changed.paste((128, 128, 128), (*corner, corner[0] + side, corner[1] + side))
    return changed


def in_a_room(share: float, backgrounds: list[Path]) -> Change:
    """The photo at `share` of the height of another one, somewhere in it."""

    def place(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
        room = decode(backgrounds[int(rng.integers(len(backgrounds)))]).image.resize((480, 480))
        height = round(share * room.height)
        small = photo.resize((round(photo.width * height / photo.height), height), Image.Resampling.LANCZOS)
        room.paste(small, (int(rng.integers(room.width - small.width)), int(rng.integers(room.height - small.height))))
        return room

    return place


CHANGES: dict[str, Change] = {
    "as it is": lambda photo, _: photo,
    "grey": lambda photo, _: photo.convert("L").convert("RGB"),
    "dark": lambda photo, _: ImageEnhance.Brightness(photo).enhance(0.45),
    "blurred, 2 px": lambda photo, _: photo.filter(ImageFilter.GaussianBlur(2)),
    "a quarter of the resolution": low_resolution,
    "JPEG quality 12": as_jpeg,
    "turned by up to 20 degrees": lambda photo, rng: photo.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC),
    "a third of the width covered": covered,
}


def run(args: argparse.Namespace) -> None:
    table = common.read_splits(args.splits)
    table = table[table["split"] == "val"]
    backgrounds = folders.files_below(args.backgrounds)
    rooms = {f"{share:.0%} of a room's height": in_a_room(share, backgrounds) for share in (0.6, 0.4)}
    device = resolve_device(args.device)
    predictors = [Predictor(bundle, device, images=len(table)) for bundle in args.bundle]
    classes = predictors[0].info.classes
    if any(predictor.info.classes != classes for predictor in predictors) or len(classes) != 2:
        raise UserError("--bundle: all models must know the same two classes.")
    rows = {name: [score(p, table, change) for p in predictors] for name, change in (CHANGES | rooms).items()}
    print(pd.DataFrame(rows, index=[str(bundle) for bundle in args.bundle]).T.to_string())


def score(predictor: Predictor, table: pd.DataFrame, change: Change) -> str:
    """Accuracy and HTER over the changed photos; every model sees the same ones."""
    rng = np.random.default_rng(0)
    pixels = [predictor.info.preprocessing.pixels(change(decode(Path(f)).image, rng)) for f in table["file"]]
    size = predictor.batch_size
    batches = [np.stack(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    predicted = np.concatenate([predictor.probabilities(batch) for batch in batches]).argmax(axis=1)
    labels = table["label"].astype(str).map({name: place for place, name in enumerate(predictor.info.classes)})
    right = predicted == labels.to_numpy()
    errors = [1 - right[labels.to_numpy() == number].mean() for number in (0, 1)]
    return f"{right.mean():.1%} / {np.mean(errors):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--bundle", type=Path, nargs="+", required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--backgrounds", type=Path, required=True, help="folder of photos that show something else")
    parser.add_argument("--device", default="cpu")
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
