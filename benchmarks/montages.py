"""Several labels per image, on real photos: montages of two photos each, of faces, cats, dogs or nothing.

`python -m benchmarks.montages --splits faces.csv animals.csv --output_dir FOLDER --seed 0 -- --recipe fast`
The tables come from `benchmarks.make_splits`. A montage takes photos of its own split only, so no person and no animal
is in two splits. Prints the scores of run_pipeline.py on the test montages, with the chosen thresholds and with 0.5 for
all labels. Flags after `--` go to run_pipeline.py.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import common
from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path
from spectacles.core.run_dir import RunDir
from spectacles.data import label_sets, schemas
from spectacles.data.images import decode
from spectacles.metrics import decisions, multilabel
from spectacles.models.bundle import read_bundle_info

SHOWS = {"0": ["face"], "1": ["face", "glasses"], "cats": ["cat"], "dogs": ["dog"]}
"""Label of the tables -> labels of a montage that shows such a photo; a quarter of the tiles show none of them."""
LABELS = ("cat", "dog", "face", "glasses")
EMPTY = 0.25
MONTAGES = {"train": 1200, "val": 300, "test": 400}
SIDE = 160
METRICS = ("accuracy", "label_accuracy", "micro_f1", "macro_f1", "mean_average_precision", "log_loss", "ece")


def draw(tables: list[Path], folder: Path, seed: int) -> Path:
    """The montages and their table: file, split, a column of 0 and 1 for each of LABELS."""
    photos = pd.concat([common.read_splits(path) for path in tables])
    unknown = set(photos["label"]) - set(SHOWS)
    if unknown:
        raise UserError(f"--splits: the label {min(unknown)!r} is not one of {', '.join(SHOWS)}.")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(seed), []
    for split, count in MONTAGES.items():
        kinds = [(label, part["file"].tolist()) for label, part in photos[photos["split"] == split].groupby("label")]
        for number in range(count):
            image, shown = Image.new("RGB", (2 * SIDE, SIDE)), set()
            for half in range(2):
                label, picture = _tile(kinds, rng)
                image.paste(picture, (half * SIDE, 0))
                shown |= set(SHOWS.get(label, ()))
            name = f"images/{split}-{number:05d}.jpg"
            image.save(folder / name, quality=90)
            rows.append({"file": name, "split": split, **{each: int(each in shown) for each in LABELS}})
    with atomic_path(folder / "montages.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    return folder / "montages.csv"


def _tile(kinds: list[tuple[str, list[str]]], rng: np.random.Generator) -> tuple[str, Image.Image]:
    """A square photo of a kind drawn at random, or a smooth pattern and ''."""
    if rng.random() < EMPTY:
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        return "", coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    label, files = kinds[rng.integers(len(kinds))]
    photo = decode(Path(files[rng.integers(len(files))])).image
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    return label, photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))


def run(args: argparse.Namespace) -> None:
    table = draw(args.splits, args.output_dir / "data", args.seed)
    given = ["--train_csv", table, "--label_column", ",".join(LABELS), "--split_column", "split", "--resize", "squash",
             "--seed", args.seed, "--output_dir", args.output_dir, "--run_name", "run",
             "--stages", "dataset,train,evaluate", *args.flags]  # fmt: skip
    done = subprocess.run([sys.executable, "run_pipeline.py", *map(str, given)], cwd=common.ROOT, check=False)
    if done.returncode:
        raise UserError(f"run_pipeline.py ended with exit code {done.returncode}: it says above why.")
    finished = RunDir(args.output_dir / "run")
    own = json.loads((finished.path / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["test"]
    train = json.loads(finished.result("train").read_text(encoding="utf-8"))
    halves = at_one_half(finished)
    print(f"{own['images']} test montages, trained in {train['seconds']:.0f} s")
    rows = [{"metric": name, "own thresholds": own[name], "0.5 for all": halves[name]} for name in METRICS]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4f}".format))
    f1 = ", ".join(f"{name} {score['f1']:.3f}" for name, score in own["per_class"].items())
    print(f"F1 of each label: {f1}")


def at_one_half(finished: RunDir) -> dict[str, float | None]:
    info, _ = read_bundle_info(finished.bundle)
    test = schemas.PREDICTIONS.read(finished.predictions).query("split == 'test' and status == 'predicted'")
    probabilities = schemas.probabilities(test, list(info.classes))
    labels = label_sets.encode(test["label"], info.classes, multi_label=True)
    return multilabel.multi_label_metrics(labels, probabilities, decisions.decide_labels(probabilities))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--splits", type=Path, nargs="+", required=True, help="tables written by benchmarks.make_splits"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs="*", help="after `--`: further flags of run_pipeline.py")
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
