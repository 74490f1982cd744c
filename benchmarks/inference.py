"""Speed of prediction relative to the engine alone: on images in memory, and from files.

`python -m benchmarks.inference --bundle outputs/<run>/train/bundle --images FOLDER`
Measured in turn, in several rounds; prints medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import common
from spectacles.core.device import resolve_device
from spectacles.core.errors import UserError
from spectacles.data import folders
from spectacles.data.preprocessing import decode_one
from spectacles.inference.predictor import Predictor


def run(args: argparse.Namespace) -> None:
    device = resolve_device(args.device)
    predictor = Predictor(args.bundle, device, args.batch_size, args.engine)
    paths = folders.files_below(args.images)[: args.limit]
    decoded = [decode_one(path, predictor.info.preprocessing) for path in paths]
    readable = [(path, item.pixels) for path, item in zip(paths, decoded, strict=True) if item.pixels is not None]
    if not readable:
        raise UserError(f"{args.images} holds no readable image.")
    pixels = np.stack([picture for _, picture in readable])
    batches = [pixels[start : start + args.batch_size] for start in range(0, len(pixels), args.batch_size)]
    ways: dict[str, Callable[[], object]] = {
        "engine alone": lambda: [predictor.run(batch) for batch in batches],
        "probabilities of decoded pictures": lambda: [predictor.probabilities(batch) for batch in batches],
        "predict from files": lambda: list(predictor.predict(path for path, _ in readable)),
        "decoding alone": lambda: [decode_one(path, predictor.info.preprocessing) for path, _ in readable],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    report(seconds, len(readable), predictor.engine)


def report(seconds: dict[str, list[float]], images: int, engine: str) -> None:
    """Rates, and shares of the engine's own: the median of the ratios of each round."""
    alone = seconds["engine alone"]
    for name, own in seconds.items():
        share = statistics.median(first / second for first, second in zip(alone, own, strict=True))
        print(f"{name:36} {images / statistics.median(own):8.1f} images/s  {share:6.1%} of {engine} alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of photos")
    parser.add_argument("--limit", type=int, default=1000, help="photos at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="cpu")
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
