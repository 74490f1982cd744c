"""The dataset stage on small data sets made on the spot, for the tests of it."""

from pathlib import Path

from pictures import write_csv, write_noise

import dataset
from spectacles.core.config import DatasetConfig
from spectacles.core.results import DatasetReport
from spectacles.core.run_dir import RunDir
from spectacles.data.schemas import load_index, load_split

PER_CLASS = 10


def run(folder: Path, run_name: str = "run", **flags: object) -> tuple[DatasetReport, RunDir]:
    """The stage on a fresh run folder beside the data, finished as the command line would finish it."""
    flags = {"output_dir": folder / "outputs", **flags}
    run_dir = RunDir(folder / "outputs" / run_name, "dataset")
    report = dataset.run(DatasetConfig(**{"num_workers": 1, "no_pretrained": True, **flags}), run_dir)
    run_dir.save_result("dataset", report)
    return report, run_dir


def make_rows(folder: Path, count: int = 2 * PER_CLASS) -> list[str]:
    """Different pictures, two classes in turn."""
    names = write_noise(folder, [f"{number}.png" for number in range(count)])
    return [f"{name},{('no', 'yes')[number % 2]}" for number, name in enumerate(names)]


def run_table(folder: Path, *rows: str, header: str = "file,label", **flags: object) -> tuple[DatasetReport, RunDir]:
    return run(folder, train_csv=write_csv(folder / "train.csv", header, *rows), **flags)


def row_statuses(run_dir: RunDir) -> dict[str, list[tuple[str, str]]]:
    """File -> (status, reason) of each of its rows."""
    index = load_index(run_dir)
    result: dict[str, list[tuple[str, str]]] = {}
    for file, status, reason in zip(index["file"], index["status"], index["reason"], strict=True):
        result.setdefault(file, []).append((status, reason))
    return result


def split_of(run_dir: RunDir) -> dict[str, str]:
    frame = load_split(run_dir, "train", "val", "test")
    return dict(zip(frame["file"], frame["split"], strict=True))
