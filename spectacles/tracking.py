"""MLflow, the only place that knows it. A tracking server that fails costs a warning, never a training run."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectacles.environment import git_commit
from spectacles.records import Report
from spectacles.run_dir import RunDir, write_json

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("spectacles")

EXPERIMENT = "spectacles"
MAX_PARAM = 500
PARENT = "mlflow.parentRunId"
"""MLflow's own tag, by which its pages nest runs."""

_broken = False
"""Set by the first failure and cleared when the next parent run starts, so that a dead server is waited for once."""


_inside = False
"""Is a parent run open? Said by us and not asked of MLflow, which knows of none where its server is dead."""


def uri(output_dir: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(output_dir / 'mlflow.db').absolute().as_posix()}"


def _mlflow() -> Any:
    """Imported on first use: it takes seconds, and --help should not."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow
    import mlflow.data

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    return mlflow


def _safely(action: Callable[..., Any]) -> Callable[..., Any]:
    """What happens in the tracking server stays there: the first failure is reported, later calls do nothing."""

    @wraps(action)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        global _broken
        if _broken:
            return None
        try:
            return action(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - MLflow raises its own, SQLAlchemy's, requests' and OS errors
            _broken = True
            log.warning("warning: this run is no longer tracked in MLflow: %s", error)
            return None

    return guarded


@_safely
def _start(run_id: str | None, name: str, tags: dict[str, str], nested: bool) -> Any:
    return _mlflow().start_run(run_id=run_id, run_name=None if run_id else name, nested=nested, tags=tags)


def _end(status: str) -> None:
    """Tried even after a failure: a run must not stay RUNNING because the database was locked for a moment."""
    global _broken
    was_broken, _broken = _broken, False
    _close(status)
    _broken = _broken or was_broken


@_safely
def _close(status: str) -> None:
    mlflow = _mlflow()
    mlflow.set_tag("status", status)
    mlflow.end_run(status)


@_safely
def _connect(output_dir: Path) -> None:
    mlflow = _mlflow()
    local = "MLFLOW_TRACKING_URI" not in os.environ
    mlflow.set_tracking_uri(uri(output_dir))
    if local:  # set_tracking_uri exports the address, and a later run may have another --output_dir
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        location = (output_dir / "mlartifacts").absolute().as_uri() if local else None
        mlflow.create_experiment(EXPERIMENT, artifact_location=location)
    mlflow.set_experiment(EXPERIMENT)


def _active() -> bool:
    return "mlflow" in sys.modules and sys.modules["mlflow"].active_run() is not None


@contextmanager
def _run(run_id: str | None, name: str, tags: dict[str, str], nested: bool) -> Iterator[Any]:
    run = _start(run_id, name, tags, nested)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if run is not None:
            _end(status)


@contextmanager
def parent_run(run_dir: RunDir, before: RunDir | None = None) -> Iterator[None]:
    """The run of the whole folder: begun once, reopened by every later stage. Inside another parent: does nothing.

    `before`: the run that this one is made from again. Where that is tracked in the same store, this one is shown below
    it; elsewhere a tag names it.
    """
    global _broken, _inside
    if _inside:
        yield
        return
    _broken, _inside = False, True
    try:
        _connect(run_dir.output_dir)
        tags = {"git_commit": git_commit(), "run_folder": str(run_dir.path)}
        if before is not None:
            tags |= {"run_before": before.name} | _below(_known_run(before))
        with _run(_known_run(run_dir), run_dir.name, tags, nested=False) as run:
            if run is not None:
                write_json(run_dir.tracking, {"uri": uri(run_dir.output_dir), "run_id": run.info.run_id})
            yield
    finally:
        _inside = False


def _known_run(run_dir: RunDir) -> str | None:
    """The folder's run, if it was tracked where we track now."""
    known = json.loads(run_dir.tracking.read_text(encoding="utf-8")) if run_dir.tracking.is_file() else {}
    return known.get("run_id") if known.get("uri") == uri(run_dir.output_dir) else None


@_safely
def _exists(run_id: str) -> bool:
    """Its store may have been made anew since, and a deleted run would hide what is below it."""
    mlflow = _mlflow()
    try:
        return bool(mlflow.get_run(run_id).info.lifecycle_stage == "active")
    except mlflow.exceptions.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _below(run_id: str | None) -> dict[str, str]:
    return {PARENT: run_id} if run_id is not None and _exists(run_id) else {}


@contextmanager
def stage_run(run_dir: RunDir, stage: str, params: dict[str, Any]) -> Iterator[None]:
    """A child run with the stage's parameters; FAILED when the stage raises, KILLED on Ctrl-C."""
    with _run(None, stage, {"stage": stage, "git_commit": git_commit()}, nested=True):
        log_params(params)
        yield


@contextmanager
def child_run(name: str) -> Iterator[None]:
    """A run below the active one (training's phases); does nothing where nothing is tracked."""
    if not _active():
        yield
        return
    with _run(None, name, {"stage": name}, nested=True):
        yield


@_safely
def log_params(params: dict[str, Any]) -> None:
    """MLflow never changes a parameter: in a run that is continued, the first value stays."""
    if _active():
        mlflow = _mlflow()
        known = mlflow.get_run(mlflow.active_run().info.run_id).data.params
        mlflow.log_params({key: str(value)[:MAX_PARAM] for key, value in params.items() if key not in known})


@_safely
def log_metrics(metrics: dict[str, float | None], step: int | None = None) -> None:
    """Undefined metrics (None) are left out."""
    if _active():
        _mlflow().log_metrics({key: value for key, value in metrics.items() if value is not None}, step=step)


@_safely
def log_artifact(path: Path, folder: str | None = None) -> None:
    if _active():
        mlflow = _mlflow()
        (mlflow.log_artifacts if path.is_dir() else mlflow.log_artifact)(str(path), folder)


@_safely
def log_dataset(frame: "pd.DataFrame", source: str, name: str, context: str) -> None:
    """Registers a split as an MLflow data set input of the active run."""
    if _active():
        mlflow = _mlflow()
        with warnings.catch_warnings():  # "source can be interpreted in multiple ways": all of them are local paths
            warnings.simplefilter("ignore", UserWarning)
            mlflow.log_input(mlflow.data.from_pandas(frame, source=source, name=name), context=context)


def log_report(report: Report, run_dir: RunDir) -> None:
    log_metrics(report.metrics)
    for relative in report.artifacts:
        path = run_dir.path / relative
        log_artifact(path, path.name if path.is_dir() else None)
