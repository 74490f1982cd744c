"""Every path under outputs/<run>, and the done-markers that let a run resume."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_write, new_folder
from spectacles.core.results import RecordT, from_json, to_json
from spectacles.core.setting_changes import NO_INFLUENCE, NO_INFLUENCE_ON, ONE_STAGE

STAGES = ("dataset", "explore", "train", "evaluate", "error_analysis", "predict")
"""In running order. A stage's folder and script bear its name."""

STALE_AFTER = {
    "dataset": ("explore", "train", "evaluate", "error_analysis", "predict", "export"),
    "train": ("evaluate", "error_analysis", "predict", "export"),
    "evaluate": ("error_analysis",),
}
"""Running a stage again (the key) makes the results of these stages out of date."""

LATEST = "latest"
RESERVED = (LATEST, "cache", "mlartifacts", "mlflow.db")
"""What an output folder holds besides runs."""


@dataclass(frozen=True)
class RunDir:
    """One run's folder. `for_stage` remembers which stage is at work: training may not see the test split."""

    path: Path
    stage: str = ""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def output_dir(self) -> Path:
        return self.path.parent

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def tracking(self) -> Path:
        """Ids of the parent run in MLflow: a stage that is run alone nests under it."""
        return self.path / "mlflow.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def model_card(self) -> Path:
        return self.path / "MODEL_CARD.md"

    @property
    def index(self) -> Path:
        return self.path / "dataset" / "index.csv"

    @property
    def splits(self) -> Path:
        return self.path / "dataset" / "splits.csv"

    @property
    def issues(self) -> Path:
        return self.path / "dataset" / "issues.csv"

    @property
    def duplicates(self) -> Path:
        return self.path / "dataset" / "duplicates.csv"

    @property
    def bundle(self) -> Path:
        return self.path / "train" / "bundle"

    @property
    def predictions(self) -> Path:
        return self.path / "evaluate" / "predictions.csv"

    @property
    def cache(self) -> Path:
        """Shared by all runs: embeddings are keyed by content, so a second run reuses the first one's."""
        return self.path.parent / "cache"

    def for_stage(self, stage: str) -> "RunDir":
        return RunDir(self.path, stage)

    def folder(self, stage: str) -> Path:
        folder = self.path / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def relative(self, *paths: Path) -> list[str]:
        return [path.relative_to(self.path).as_posix() for path in paths]

    def result(self, stage: str) -> Path:
        return self.path / stage / "result.json"

    def done(self, stage: str) -> bool:
        return self.result(stage).is_file()

    def begin(self, stage: str) -> None:
        """Removes the done-markers of this stage and of those that were built on its last result."""
        for name in (stage, *STALE_AFTER.get(stage, ())):
            self.result(name).unlink(missing_ok=True)

    def save_result(self, stage: str, record: object) -> None:
        atomic_write(self.result(stage), to_json(record))

    def drop_progress(self, stage: str) -> None:
        """Deletes a finished stage's checkpoints, from which it would have resumed after a crash."""
        for path in self.folder(stage).glob("checkpoint-*"):
            path.unlink()

    def load_result(self, stage: str, record_type: type[RecordT]) -> RecordT:
        """Raises UserError when the stage has not finished in this run folder."""
        if not self.done(stage):
            raise UserError(
                f"{self.path} has no finished {stage} stage: run `python {stage}.py --run_name {self.name}` first."
            )
        return from_json(record_type, self.result(stage).read_text(encoding="utf-8"))

    def save_config(self, stage: str, values: dict[str, Any]) -> None:
        """Keeps what this stage was run with, and merges it into the run's config.yaml."""
        atomic_write(self.folder(stage) / "config.yaml", yaml.safe_dump(values, sort_keys=False))
        shared = {name: value for name, value in values.items() if name not in ONE_STAGE}
        self.write_config({**self.load_config(), **shared})

    def write_config(self, values: dict[str, Any]) -> None:
        atomic_write(self.config, yaml.safe_dump(values, sort_keys=False))

    def load_config(self, stage: str = "") -> dict[str, Any]:
        """Of the run, which every command merges its settings into; or what a stage was last run with."""
        path = self.path / stage / "config.yaml"
        return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}

    def trained_config(self) -> dict[str, Any]:
        """The run's settings, but what the model depends on as it was trained with, whatever ran later."""
        trained = self.load_config("train") if self.done("train") else {}
        ignored = NO_INFLUENCE | NO_INFLUENCE_ON["train"]
        return self.load_config() | {name: value for name, value in trained.items() if name not in ignored}


def create_run(output_dir: Path, run_name: str) -> RunDir:
    """Makes (or reopens) outputs/<run_name>. `latest` moves there once its data are indexed: see point_latest."""
    _check_names(output_dir, run_name)
    with _explained(output_dir):
        (output_dir / run_name).mkdir(parents=True, exist_ok=True)
    return RunDir((output_dir / run_name).absolute())


def new_run(output_dir: Path, run_name: str | None, default: str) -> RunDir:
    """A folder that no other command works in: `run_name`, else `default`, with a number where that is taken. Raises
    UserError where a run of that name exists."""
    _check_names(output_dir, run_name or default)
    with _explained(output_dir):
        if run_name is None:
            return RunDir(new_folder(output_dir, default).absolute())
        output_dir.mkdir(parents=True, exist_ok=True)
        path = output_dir / run_name
        try:
            path.mkdir()
        except FileExistsError:
            raise UserError(
                f"the run {path} exists: continue it with --resume, or choose another --run_name."
            ) from None
    return RunDir(path.absolute())


def _check_names(output_dir: Path, run_name: str) -> None:
    """Raises UserError for a name that cannot be a folder inside the output folder, or cannot be written as text."""
    usable = run_name.isprintable() and run_name == run_name.strip() and not re.search(r"[/\\]|^[.-]|^$", run_name)
    if not usable or run_name in RESERVED:
        raise UserError(
            f"--run_name {run_name!r} cannot name a folder of a run: use another name, without slashes, and not "
            f"beginning with a dot or a hyphen; {', '.join(RESERVED)} are taken."
        )
    try:
        str(output_dir.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"--output_dir {str(output_dir)!r} is not UTF-8 text: rename the folder.") from None


@contextmanager
def _explained(output_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write under --output_dir {output_dir}: {error}.") from error


def point_latest(run_dir: RunDir) -> None:
    atomic_write(run_dir.output_dir / LATEST, run_dir.name + "\n")


def newest_bundle(output_dir: Path) -> Path:
    """The bundle folder of the latest run, or of the newest one that has been trained. Raises UserError."""
    latest = find_run(output_dir, LATEST).bundle
    trained = sorted(output_dir.glob("*/train/bundle/bundle.json"), key=lambda path: path.stat().st_mtime)
    return latest if latest.is_dir() or not trained else trained[-1].parent


def find_run(output_dir: Path, run_name: str) -> RunDir:
    """The folder of an existing run; the name `latest` is resolved. Raises UserError where there is none."""
    pointer = output_dir / LATEST
    if run_name == LATEST:
        if not pointer.is_file():
            raise UserError(
                f"{output_dir} holds no run yet: start with `python run_pipeline.py` or `python dataset.py`."
            )
        run_name = pointer.read_text(encoding="utf-8").strip()
    path = output_dir / run_name
    if path.parent != output_dir or not path.is_dir() or run_name == "..":
        known = sorted(p.name for p in output_dir.glob("*") if (p / "config.yaml").is_file())
        raise UserError(f"there is no run {path}; --run_name can be one of: {', '.join(known) or '(none yet)'}.")
    return RunDir(path.absolute())
