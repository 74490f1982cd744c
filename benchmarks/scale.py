"""Memory and speed with many images: of prediction, and of the tables behind training.

`python -m benchmarks.scale predict --bundle outputs/RUN/train/bundle`
`python -m benchmarks.scale index`
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import common
from spectacles.core.errors import UserError
from spectacles.core.results import DatasetReport, RowAccounting
from spectacles.core.run_dir import RunDir, create_run
from spectacles.data import label_sets
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import resolve_preprocessing
from spectacles.data.schemas import MEASURES, SPLIT_ROWS, load_split
from spectacles.data.stratification import stratified_split
from spectacles.training.batches import Examples, epoch_order

SIZE = 64
BASES = 300
SHARES = (0.1, 0.5, 1.0)
CLASSES = ["no", "yes"]


def predict(args: argparse.Namespace) -> dict[str, object]:
    """Images per second and resident memory of `predict.py` on a folder of generated photos."""
    if not args.bundle.is_dir():
        raise UserError(f"--bundle {args.bundle} is not a folder: give the train/bundle of a run.")
    with tempfile.TemporaryDirectory() as folder:
        photos, answers = Path(folder) / "photos", Path(folder) / "answers"
        draw(photos, args.images)
        answers.mkdir()
        command = [sys.executable, "predict.py", photos, "--bundle", args.bundle.resolve()]
        command += ["--output", answers / "predictions.csv", "--device", args.device]
        started = time.monotonic()
        samples = watch([str(part) for part in command], answers)
        seconds = time.monotonic() - started
        rows = len(pd.read_csv(answers / "predictions.csv", usecols=["file"]))
    if rows != args.images:
        raise UserError(f"predict.py answered {rows} of {args.images} images.")
    return {
        "images": rows,
        "seconds": seconds,
        "images_per_second": rows / seconds,
        "rss_gb": {f"{share:.0%}": rss_at(samples, share) for share in SHARES},
    }


def draw(folder: Path, images: int) -> None:
    """JPEGs of 64 px that all differ: a few hundred soft pictures, shifted and numbered in a corner."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (BASES, 8, 8, 3), dtype=np.uint8)
    bases = [np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE))) for pixels in coarse]
    for number in range(images):
        if number % 1000 == 0:
            part = folder / f"{number // 1000:05d}"
            part.mkdir(parents=True)
        pixels = np.roll(bases[number % BASES], number // BASES, axis=1)
        pixels[:8, :8] = np.frombuffer(number.to_bytes(3, "little"), np.uint8)
        Image.fromarray(pixels).save(part / f"{number}.jpg", quality=85)


def watch(command: list[str], answers: Path) -> list[tuple[int, float]]:
    """Runs the command; each second (bytes of answers written, resident GB). UserError where it fails."""
    process = subprocess.Popen(command, cwd=common.ROOT)
    samples = []
    while process.poll() is None:
        samples.append((written(answers), resident_gb(process.pid)))
        time.sleep(1)
    if process.returncode:
        raise UserError(f"predict.py ended with exit code {process.returncode}: it says above why.")
    return samples


def written(folder: Path) -> int:
    """Bytes in the folder, temporary files too: predict.py renames its output when it is complete."""
    return sum(path.stat().st_size for path in folder.iterdir())


def resident_gb(pid: int) -> float:
    """0 for a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmRSS")), 0.0)


def rss_at(samples: list[tuple[int, float]], share: float) -> float:
    """Resident GB when `share` of the answers was written; at the end, of the last sample that saw it alive."""
    alive = [(size, rss) for size, rss in samples if rss]
    return next((rss for size, rss in alive if size >= share * alive[-1][0]), 0.0)


def index(args: argparse.Namespace) -> dict[str, object]:
    """Seconds of each step over a table of many rows, and the peak memory of all."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = create_run(Path(folder), "run")
        seconds = {}
        _, seconds["write"] = timed(lambda: write_table(run_dir, args.rows))
        rows, seconds["load"] = timed(lambda: load_split(run_dir, "train"))
        labels = pd.factorize(rows["label"])[0]
        clusters = rows["cluster"].to_numpy()
        _, seconds["split"] = timed(lambda: stratified_split(labels, clusters, (0.85, 0.15), 0))
        batches, seconds["epoch"] = timed(lambda: iterate(rows, run_dir.cache))
    return {"rows": len(rows), "batches": batches, "seconds": seconds, "peak_memory_gb": common.peak_memory_gb()}


def timed(action: Callable[[], object]) -> tuple:
    started = time.monotonic()
    outcome = action()
    return outcome, time.monotonic() - started


def write_table(run_dir: RunDir, rows: int, chunk: int = 100_000) -> None:
    """splits.csv and the result of the dataset stage, as dataset.py leaves them; two images a cluster."""
    run_dir.folder("dataset")
    for start in range(0, rows, chunk):
        numbers = np.arange(start, min(start + chunk, rows))
        names = [f"{number:09d}.jpg" for number in numbers]
        values = {
            "file": names,
            "path": [f"/photos/{name}" for name in names],
            "label": np.where(numbers % 5 == 0, "yes", "no"),
            "split": "train",
            "group": "",
            "cluster": numbers // 2,
            "id": numbers,
            "sha256": [f"{number:064x}" for number in numbers],
            **dict.fromkeys(MEASURES, 127.5),
            "width": 640,
            "height": 480,
            "bytes": 54321,
            "modified": 0,
            "format": "JPEG",
        }
        part = pd.DataFrame(values)[SPLIT_ROWS.names]
        part.to_csv(run_dir.splits, mode="a", header=start == 0, index=False)
    accounting = RowAccounting(rows=rows, used=rows, converted=0, rejected=0, conversions={}, rejections={})
    report = DatasetReport(
        summary=[], metrics={}, artifacts=[], classes=CLASSES, multi_label=False, row_accounting=accounting, counts={},
        images={}, unlabelled=0, fingerprint="", label_column="label", id_column="id",
    )  # fmt: skip
    run_dir.save_result("dataset", report)


def iterate(rows: pd.DataFrame, cache: Path) -> int:
    """Batches of one epoch, with all that training holds of the rows, without decoding."""
    labels = label_sets.encode(rows["label"], CLASSES, False)
    input_of = {"input_size": (3, SIZE, SIZE), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with Pixels(rows, resolve_preprocessing(input_of, SIZE, "squash", 3), cache, max_bytes=0, num_workers=1) as pixels:
        examples = Examples(pixels, np.arange(len(rows)), labels)
        batches = epoch_order(0, 1, len(examples.labels), common.BATCH_SIZE)
        return sum(len(examples.labels[indices]) > 0 for indices in batches)


def report(values: dict[str, object], output: Path | None) -> None:
    for name, value in values.items():
        print(f"{name}: {value}")
    if output:
        common.write_json(output, values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("predict", help=predict.__doc__)
    command.add_argument("--bundle", type=Path, required=True)
    command.add_argument("--images", type=int, default=100_000)
    command.add_argument("--device", default="cpu")
    command.set_defaults(action=predict)
    command = commands.add_parser("index", help=index.__doc__)
    command.add_argument("--rows", type=int, default=2_000_000)
    command.set_defaults(action=index)
    for command in commands.choices.values():
        command.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with common.exit_codes():
        report(args.action(args), args.output)


if __name__ == "__main__":
    main()
