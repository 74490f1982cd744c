"""Our pipeline as a user runs it: `run_pipeline.py` with the stages dataset, train and evaluate.

`python -m benchmarks.ours --splits splits.csv --seed 0 --output result.json -- --recipe fast`
Flags after `--` go to `run_pipeline.py` and override those given here. Without --image_size the recipe chooses the
size. Every run starts with an empty cache. There is a model to score only at the end, so the curve has one point.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import common
from spectacles.core.errors import UserError
from spectacles.training import sampling

RUN = "run"


def run(args: argparse.Namespace) -> None:
    table = common.read_splits(args.splits)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        run_pipeline(args, Path(folder))
        wall = time.monotonic() - started
        values = collect(Path(folder) / RUN)
    common.write_result(args, "ours", table, {**values, "wall_seconds": wall}, args.flags)


def run_pipeline(args: argparse.Namespace, folder: Path) -> None:
    given = {
        "stages": "dataset,train,evaluate",
        "train_csv": args.splits.resolve(),
        "file_column": "file",
        "label_column": "label",
        "split_column": "split",
        "seed": args.seed,
        "device": args.device,
        "output_dir": folder,
        "run_name": RUN,
    }
    if args.image_size is not None:
        given["image_size"] = args.image_size
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, "run_pipeline.py", *flags, *args.flags], cwd=common.ROOT, check=False)
    if done.returncode:
        raise UserError(f"run_pipeline.py ended with exit code {done.returncode}: it says above why.")


def collect(run_folder: Path) -> dict[str, Any]:
    """What the finished run says about itself; the image size is the one that was used, flags after `--` included."""
    train = json.loads((run_folder / "train" / "result.json").read_text(encoding="utf-8"))
    test = json.loads((run_folder / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["test"]
    plan = json.loads((run_folder / "train" / "plan.json").read_text(encoding="utf-8"))
    images = json.loads((run_folder / "dataset" / "result.json").read_text(encoding="utf-8"))["images"]
    history = pd.read_csv(run_folder / "train" / "history.csv")
    epochs = history.loc[history["phase"] == "fine_tune", "seconds"]
    used = {f"{split}_images": count for split, count in images.items()}
    seen = len(epochs) * sampling.images_per_epoch(used["train_images"], plan["epoch_share"])
    return {
        "image_size": plan["image_size"],
        **used,
        **{name: test.get(name) for name in ("accuracy", "balanced_accuracy", "hter")},
        "train_seconds": train["seconds"],
        "images_per_second": seen / epochs.sum() if len(epochs) else None,
        "curve": [{"seconds": train["seconds"], "accuracy": test["accuracy"]}],
    }


def main() -> None:
    parser = common.competitor_arguments(__doc__, image_size=None)
    parser.add_argument("flags", nargs="*", help="after `--`: further flags of run_pipeline.py")
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
