"""Test accuracy against seconds of training, from the results of one or more runs of `benchmarks.compare`.

`python -m benchmarks.curves --output curves.png head=outputs/head/spectacles fast=outputs/fast/spectacles ...`
Each NAME=FOLDER holds the results of one setting of ours; their means make one line, from the quickest to the slowest.
The others' epochs, means over their seeds too, come from the first folder that has any.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from benchmarks import common
from spectacles.core.errors import UserError
from spectacles.report.style import add_legend, new_figure, nth_colour, save

Point = tuple[float, float]
"""Seconds and accuracy."""
LABELS = {"tutorial": "tutorial loop", "fastai": "fastai fine_tune(3)"}


def run(args: argparse.Namespace) -> None:
    settings = dict(each.partition("=")[::2] for each in args.results)
    found = {name: curves(Path(folder)) for name, folder in settings.items()}
    if lacking := [name for name, peers in found.items() if "ours" not in peers]:
        raise UserError(f"{settings[lacking[0]]} has no results of ours: name the folder of one data set.")
    figure, [axes] = new_figure("Test accuracy against seconds of training", 7.2, 4.0)
    ours = sorted((peers["ours"][-1], name) for name, peers in found.items())
    draw(axes, "ours", [point for point, _ in ours], 0)
    for (seconds, accuracy), name in ours:
        axes.annotate(name, (seconds, 100 * accuracy), (6, -12), textcoords="offset points", fontsize=8)
    for number, (peer, label) in enumerate(LABELS.items(), 1):
        curve = next((peers[peer] for peers in found.values() if peer in peers), None)
        if curve:
            draw(axes, label, curve, number)
    axes.set(xlabel="seconds of training (2 cores)", ylabel="test accuracy, %", xlim=(0, None))
    add_legend(axes, loc="lower right")
    save(figure, args.output)


def curves(folder: Path) -> dict[str, list[Point]]:
    """competitor -> its points, each the mean over its seeds."""
    runs = defaultdict(list)
    for path in sorted(folder.glob("*-*.json")):
        runs[path.stem.rpartition("-")[0]].append(json.loads(path.read_text(encoding="utf-8"))["curve"])
    return {
        name: [
            (statistics.mean(p["seconds"] for p in epoch), statistics.mean(p["accuracy"] for p in epoch))
            for epoch in zip(*each, strict=True)
        ]
        for name, each in runs.items()
    }


def draw(axes, label: str, points: list[Point], number: int) -> None:
    seconds, accuracies = zip(*points, strict=True)
    percent = [100 * accuracy for accuracy in accuracies]
    axes.plot(seconds, percent, marker="o", markersize=4, color=nth_colour(number), label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("results", nargs="+", help="NAME=FOLDER, the folder of a data set below --output_dir")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
