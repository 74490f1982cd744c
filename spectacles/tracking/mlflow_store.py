"""Events to MLflow, which is imported here only. Whatever is delivered twice arrives once.

MLflow invents a run's id, so each run carries our key as a tag and is looked for before it is made. MLflow's database
keeps one of the metrics that agree in name, time, step and value, and times were fixed when they were written down.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from spectacles.core.fileio import write_json
from spectacles.core.run_dir import RunDir
from spectacles.tracking import event_log
from spectacles.tracking.event_log import Event

log = logging.getLogger("spectacles.tracking.delivery")

EXPERIMENT = "spectacles"
PARENT = "mlflow.parentRunId"
"""MLflow's own tag, by which its pages nest runs."""
KEY = "spectacles.run_key"
CHANGED = "changed."
"""Before the name of a parameter that was given anew in a run that goes on: MLflow keeps its first value for ever."""
BATCH, MAX_PARAMS = 500, 100
"""What fits one request: MLflow takes 1,000 metrics and 100 parameters."""
REJECTIONS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
"""Answers that would be the same if asked again."""
TYPES = {"int64": "long", "float64": "double", "bool": "boolean"}


class Rejected(Exception):
    """An event that the store will never take."""


@dataclass
class Store:
    """Where the runs of one output folder go; `ids`: our key -> MLflow's id."""

    client: Any
    address: str
    experiment: str
    ids: dict[str, str] = field(default_factory=dict)


def connect(to: str, output_dir: Path) -> Store:
    """Raises what MLflow raises where the store cannot be reached."""
    return _connect(event_log.address(to, output_dir), output_dir, own=not to)


def forget() -> None:
    """After a failure: the store may come back as another one."""
    _connect.cache_clear()


def record(store: Store, events: list[Event], run_dir: RunDir) -> None:
    """One event, or metrics of one run. Raises Rejected where asking again is useless, else what MLflow raises."""
    try:
        ACTIONS[events[0]["do"]](store, events, run_dir)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if getattr(error, "error_code", "") in REJECTIONS or status in (400, 413):
            raise Rejected(str(error)) from error
        raise


@cache
def _connect(address: str, output_dir: Path, own: bool) -> Store:
    """Imports MLflow, which takes seconds. A request waits long: one that is given up may still be done later."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    client = MlflowClient(address)
    known = client.get_experiment_by_name(EXPERIMENT)
    if known is None:
        place = (output_dir / "mlartifacts").absolute().as_uri() if own else None
        return Store(client, address, client.create_experiment(EXPERIMENT, artifact_location=place))
    if known.lifecycle_stage != "active":
        raise RuntimeError(f"the experiment {EXPERIMENT!r} is deleted there: restore it, or delete it for good")
    return Store(client, address, known.experiment_id)


def _start(store: Store, events: list[Event], run_dir: RunDir) -> None:
    """Found and opened again, or made."""
    from mlflow.entities import RunTag

    [event] = events
    tags = event["tags"] | {KEY: event["run"]}
    above = _find(store, event["parent"]) if event["parent"] else _before(store, event)
    if above is not None:
        tags[PARENT] = above
    run_id = _find(store, event["run"])
    if run_id is None and event["parent"] is None:
        run_id = _known(store, run_dir)
    if run_id is None:
        made = store.client.create_run(store.experiment, event["ts"], event["origin"] | tags, event["name"])
        run_id = str(made.info.run_id)
    else:
        store.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        store.client.update_run(run_id, status="RUNNING")
    store.ids[event["run"]] = run_id
    if event["parent"] is None:
        write_json(run_dir.tracking, {"uri": store.address, "experiment_id": store.experiment, "run_id": run_id})


def _find(store: Store, key: str) -> str | None:
    """MLflow's id of the run with our key, asked for once."""
    return store.ids.get(key) or _search(store, key)


def _search(store: Store, key: str) -> str | None:
    """Where a request that was given up made the run once more, the emptier one goes."""
    found = store.client.search_runs([store.experiment], f"tags.`{KEY}` = '{key}'")
    found = sorted(found, key=lambda run: -len(run.data.metrics) - len(run.data.params) - len(run.data.tags))
    for double in found[1:]:
        store.client.delete_run(double.info.run_id)
    if not found:
        return None
    store.ids[key] = str(found[0].info.run_id)
    return store.ids[key]


def _known(store: Store, run_dir: RunDir) -> str | None:
    """The run that the folder names, if it is in this store and not deleted."""
    known = json.loads(run_dir.tracking.read_text(encoding="utf-8")) if run_dir.tracking.is_file() else {}
    if known.get("uri") != store.address:
        return None
    try:
        run = store.client.get_run(known["run_id"])
    except Exception as error:
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return str(run.info.run_id) if run.info.lifecycle_stage == "active" else None


def _before(store: Store, event: Event) -> str | None:
    """The run that this one is made from again, where it is tracked in the same store."""
    if "before" not in event:
        return None
    before = RunDir(Path(event["before"]))
    key = event_log.folder_run(before.path)
    return (_search(store, key) if key else None) or _known(store, before)


def _id(store: Store, events: list[Event]) -> str:
    run_id = _find(store, events[0]["run"])
    if run_id is None:
        raise Rejected("its run is not there any more")
    return run_id


def _params(store: Store, events: list[Event], run_dir: RunDir) -> None:
    from mlflow.entities import Param, RunTag

    run_id, [event] = _id(store, events), events
    known = store.client.get_run(run_id).data.params
    params = [Param(name, value) for name, value in event["values"].items() if name not in known]
    changed = {name: value for name, value in event["values"].items() if known.get(name, value) != value}
    if changed:
        store.client.log_batch(run_id, tags=[RunTag(f"{CHANGED}{name}", value) for name, value in changed.items()])
    for start in range(0, len(params), MAX_PARAMS):
        store.client.log_batch(run_id, params=params[start : start + MAX_PARAMS])


def _metrics(store: Store, events: list[Event], run_dir: RunDir) -> None:
    from mlflow.entities import Metric

    run_id = _id(store, events)
    metrics = [Metric(name, float(value), event["ts"], event["step"])
               for event in events for name, value in event["values"].items()]  # fmt: skip
    for start in range(0, len(metrics), BATCH):
        store.client.log_batch(run_id, metrics=metrics[start : start + BATCH])


def _dataset(store: Store, events: list[Event], run_dir: RunDir) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    run_id, [event] = _id(store, events), events
    kinds = {name: TYPES.get(kind, "string") for name, kind in event["columns"].items()}
    schema = [{"type": kind, "name": name, "required": True} for name, kind in kinds.items()]
    profile = {"num_rows": event["rows"], "num_elements": event["rows"] * len(kinds)}
    dataset = Dataset(event["name"], event["digest"], "local", json.dumps({"uri": event["source"]}),
                      json.dumps({"mlflow_colspec": schema}), json.dumps(profile))  # fmt: skip
    store.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", event["context"])])])


def _artifact(store: Store, events: list[Event], run_dir: RunDir) -> None:
    """File by file: one that has vanished since, or cannot be read, is left out."""
    run_id, [event] = _id(store, events), events
    path = Path(event["path"])
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_dir():
            continue
        below = file.parent.relative_to(path).as_posix() if path.is_dir() else "."
        target = "/".join(part for part in (event["folder"], below) if part and part != ".") or None
        try:
            store.client.log_artifact(run_id, str(file), target)
        except OSError:
            if os.access(file, os.R_OK):
                raise
            log.warning("left out: %s has vanished or cannot be read", file)


def _end(store: Store, events: list[Event], run_dir: RunDir) -> None:
    [event] = events
    _search(store, event["run"])  # once more, so that a double is found
    run_id = _id(store, events)
    store.client.set_tag(run_id, "status", event["status"])
    store.client.set_terminated(run_id, event["status"], event["ts"])


ACTIONS: dict[str, Callable[[Store, list[Event], RunDir], None]] = {
    "start": _start, "params": _params, "metrics": _metrics, "dataset": _dataset, "artifact": _artifact, "end": _end,
}  # fmt: skip
