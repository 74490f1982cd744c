"""Which photos does a model call out of distribution? Its own kind, the same from other cameras and rooms, and others.

`python -m benchmarks.out_of_distribution --bundle outputs/<run>/train/bundle --splits splits.csv --others FOLDER`
Prints, for each set of pictures, how many are out of distribution, their median ood_score, and the ROC-AUC of the
distance that it comes from, against the test photos.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from benchmarks import common, elsewhere
from spectacles.core.device import resolve_device
from spectacles.core.errors import UserError
from spectacles.data import folders
from spectacles.data.images import decode
from spectacles.data.preprocessing import decoded_batches
from spectacles.inference.predictor import Predictor
from spectacles.metrics import curves

GENERATED = 100
SIZE = (180, 200)


def noise(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))


def flat_colour(rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", SIZE, tuple(rng.integers(0, 256, 3).tolist()))


def blots(rng: np.random.Generator) -> Image.Image:
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize(SIZE, Image.Resampling.BICUBIC)


def waves(rng: np.random.Generator) -> Image.Image:
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]] / SIZE[1]
    across, down, phase = rng.uniform([[2], [2], [0]], [[30], [30], [1]], (3, 3))
    colours = [np.sin(2 * np.pi * (across[c] * x + down[c] * y + phase[c])) for c in range(3)]
    return Image.fromarray(((np.stack(colours, axis=2) + 1) * 127).astype(np.uint8))


def page_of_text(rng: np.random.Generator) -> Image.Image:
    page = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(page)
    for line in range(4, SIZE[1], 12):
        draw.text((4, line), "".join(map(chr, rng.integers(97, 123, 28))), fill="black")
    return page


def run(args: argparse.Namespace) -> None:
    predictor = Predictor(args.bundle, resolve_device(args.device))
    if predictor.ood_scorer is None:
        raise UserError(f"--bundle {args.bundle} has no out-of-distribution scores: it was trained on too few photos.")
    table = common.read_splits(args.splits)
    photos = {split: [Path(file) for file in table.loc[table["split"] == split, "file"]] for split in ("val", "test")}
    others = folders.files_below(args.others)
    sets = {split: of_files(predictor, photos[split]) for split in photos}
    sets["others"] = of_files(predictor, others)
    rooms = {f"{share:.0%} of a room's height": elsewhere.in_a_room(share, others) for share in (0.6, 0.4)}
    for name, change in (elsewhere.CHANGES | rooms).items():
        rng = np.random.default_rng(0)
        sets[f"val: {name}"] = of_pictures(predictor, (change(decode(path).image, rng) for path in photos["val"]))
    for make in (noise, flat_colour, blots, waves, page_of_text):
        rng = np.random.default_rng(0)
        sets[make.__name__.replace("_", " ")] = of_pictures(predictor, (make(rng) for _ in range(GENERATED)))
    print(
        pd.DataFrame([row(predictor, name, maps, sets["test"]) for name, maps in sets.items()]).to_string(index=False)
    )


def of_files(predictor: Predictor, paths: list[Path]) -> np.ndarray:
    """Last maps (N, E) of the readable ones."""
    batches = decoded_batches(paths, predictor.info.preprocessing, predictor.batch_size)
    return of_batches(predictor, ([item.pixels for item in batch if item.pixels is not None] for batch in batches))


def of_pictures(predictor: Predictor, pictures: Iterable[Image.Image]) -> np.ndarray:
    pixels = [predictor.info.preprocessing.pixels(picture) for picture in pictures]
    size = predictor.batch_size
    return of_batches(predictor, (pixels[start : start + size] for start in range(0, len(pixels), size)))


def of_batches(predictor: Predictor, batches: Iterable[list[np.ndarray]]) -> np.ndarray:
    def maps() -> Iterator[np.ndarray]:
        for batch in batches:
            if batch:
                yield predictor.outputs(np.stack(batch))["ood_features"]

    return np.concatenate(list(maps()))


def row(predictor: Predictor, name: str, maps: np.ndarray, own: np.ndarray) -> dict[str, object]:
    assert predictor.ood_scorer is not None
    scores = predictor.ood_scorer(maps)
    outside = np.repeat([False, True], [len(own), len(maps)])
    distance = predictor.ood_scorer.distance(np.concatenate([own, maps]))
    return {
        "pictures": name,
        "images": len(maps),
        "out of distribution": f"{(scores > predictor.info.ood_threshold).mean():.1%}",
        "median ood_score": f"{np.median(scores):.3g}",
        "ROC-AUC": f"{curves.roc_auc(outside, distance):.4f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--others", type=Path, required=True, help="folder of photos that show something else")
    parser.add_argument("--device", default="cpu")
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
