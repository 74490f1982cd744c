"""What arrives in MLflow of a run: once, however often it is delivered, and below the run before it."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from spectacles.core.fileio import write_json
from spectacles.core.run_dir import RunDir, create_run
from spectacles.tracking import delivery, event_log, mlflow_store, tracking

Track = Callable[..., tuple[RunDir, str, dict[str, str]]]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delivered when a test says so, without another import of MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "_start_sender", lambda _: None)


@pytest.fixture
def track(outputs: Path) -> Track:
    """Makes a run folder and tracks it; returns it, its id, and the tags that the store has of it."""

    def make(name: str, before: RunDir | None = None) -> tuple[RunDir, str, dict[str, str]]:
        run_dir = create_run(outputs, name)
        with tracking.parent_run(run_dir, before):
            pass
        assert delivery.sync(outputs)
        run_id = json.loads(run_dir.tracking.read_text(encoding="utf-8"))["run_id"]
        return run_dir, run_id, MlflowClient(tracking.uri(outputs)).get_run(run_id).data.tags

    return make


def stage_runs(outputs: Path, stage: str) -> list[Run]:
    store = MlflowClient(tracking.uri(outputs))
    return list(
        store.search_runs([store.get_experiment_by_name("spectacles").experiment_id], f"tags.stage = '{stage}'")
    )


def test_runs_nest_below_the_run_before_and_stay_there(track: Track) -> None:
    first, first_id, tags = track("first")
    assert mlflow_store.PARENT not in tags and "run_before" not in tags
    second, second_id, tags = track("second", first)
    assert (tags[mlflow_store.PARENT], tags["run_before"]) == (first_id, "first")
    assert track("second")[1:] == (second_id, tags)  # reopened by a stage that is run alone
    assert track("third", second)[2][mlflow_store.PARENT] == second_id


def test_a_run_before_that_this_store_does_not_have_is_named_by_a_tag(track: Track, outputs: Path) -> None:
    untracked = create_run(outputs, "untracked")
    elsewhere, lost = create_run(outputs, "elsewhere"), create_run(outputs, "lost")
    write_json(elsewhere.tracking, {"uri": "http://example.invalid", "run_id": "a" * 32})
    write_json(lost.tracking, {"uri": tracking.uri(outputs), "run_id": "b" * 32})
    deleted, deleted_id, _ = track("deleted")
    MlflowClient(tracking.uri(outputs)).delete_run(deleted_id)
    for before in (untracked, elsewhere, lost, deleted):
        _, _, tags = track(f"after {before.name}", before)
        assert tags["run_before"] == before.name
        assert mlflow_store.PARENT not in tags
        assert tags["status"] == "FINISHED"


def test_the_address_of_a_run_is_known_once_it_has_arrived(
    track: Track, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not in MLflow yet" in tracking.where_to_look(create_run(outputs, "not delivered"))
    run_dir, run_id, _ = track("delivered")
    page = f"/#/experiments/1/runs/{run_id}?workflowType=machine_learning"
    assert tracking.run_address(run_dir) == tracking.LOCAL_UI + page
    command = tracking.where_to_look(run_dir)
    assert command.endswith(f"mlflow.db   then {tracking.LOCAL_UI}{page}")
    assert command.startswith("MLFLOW_DISABLE_TELEMETRY=true ")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@server:5000/")
    assert tracking.run_address(run_dir) is None  # it went to another store
    write_json(run_dir.tracking, json.loads(run_dir.tracking.read_text()) | {"uri": tracking.uri(outputs)})
    assert tracking.where_to_look(run_dir) == f"http://server:5000{page}"


def test_what_is_delivered_twice_arrives_once(outputs: Path) -> None:
    run_dir = create_run(outputs, "twice")
    artifact = run_dir.path / "train" / "history.csv"
    artifact.parent.mkdir()
    artifact.write_text("epoch\n1\n")
    frame = pd.DataFrame({"file": ["a", "b"], "label": ["0", "1"]})
    with tracking.parent_run(run_dir), tracking.stage_run(run_dir, "twice", {"epochs": 3, "long": "x" * 9999}):
        for step in (1, 2, 3):
            tracking.log_metrics({"loss": 1 / step, "same": 0.5, "nan": math.nan, "undefined": None}, step=step)
        tracking.log_params({"epochs": 4})  # the first value stays
        tracking.log_artifact(artifact.parent, "folder")
        tracking.log_dataset(frame, "data", "twice-train", "train")
    assert delivery.sync(outputs)
    (run_dir.path / event_log.SENT).unlink()
    mlflow_store.forget()
    assert delivery.sync(outputs)
    [run] = stage_runs(outputs, "twice")
    store = MlflowClient(tracking.uri(outputs))
    for name in ("loss", "same", "nan"):
        assert [point.step for point in store.get_metric_history(run.info.run_id, name)] == [1, 2, 3]
    assert set(run.data.metrics) == {"loss", "same", "nan"} and math.isnan(run.data.metrics["nan"])
    assert run.data.params == {"epochs": "3", "long": "x" * tracking.MAX_PARAM}
    assert [file.path for file in store.list_artifacts(run.info.run_id, "folder")] == ["folder/history.csv"]
    [given] = run.inputs.dataset_inputs
    assert (given.dataset.name, json.loads(given.dataset.profile)["num_rows"]) == ("twice-train", 2)
    assert run.info.status == "FINISHED"


def test_what_cannot_arrive_is_left_out_and_holds_nothing_up(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = create_run(outputs, "odd")
    gone = run_dir.path / "gone.bin"
    with tracking.parent_run(run_dir), tracking.stage_run(run_dir, "odd", {}):
        tracking.log_artifact(gone)
        tracking.log_metrics({"no [such] name?": 1.0, "accuracy": 0.5})
        tracking.log_metrics({"loss": 1.0}, step=1)
    assert delivery.sync(outputs)
    [run] = stage_runs(outputs, "odd")
    assert run.data.metrics == {"loss": 1.0, "accuracy": 0.5} and run.info.status == "FINISHED"
    assert str(gone) in caplog.text and "no [such] name?" in caplog.text


def test_a_run_that_was_made_twice_is_one_in_the_end(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was given up, and done after all."""
    run_dir = create_run(outputs, "double")
    create = MlflowClient.create_run

    def twice(*arguments: object, **more: object) -> Run:
        create(*arguments, **more)
        return create(*arguments, **more)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    with tracking.parent_run(run_dir), tracking.stage_run(run_dir, "double", {"epochs": 1}):
        tracking.log_metrics({"loss": 1.0})
    assert delivery.sync(outputs)
    [run] = stage_runs(outputs, "double")
    assert (run.data.params, run.data.metrics, run.info.status) == ({"epochs": "1"}, {"loss": 1.0}, "FINISHED")
