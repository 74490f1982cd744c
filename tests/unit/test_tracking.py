"""A run that is made again stands below the run before it, where both are in one store."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from spectacles import delivery, mlflow_store, tracking
from spectacles import run_dir as runs
from spectacles.run_dir import RunDir, write_json


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def track(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RunDir, str, dict[str, str]]]:
    """Makes a run folder and tracks it; returns it, its id, and the tags that the store has of it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "_start_sender", lambda _: None)  # delivered in this process, which takes less time

    def make(name: str, before: RunDir | None = None) -> tuple[RunDir, str, dict[str, str]]:
        run_dir = runs.create(outputs, name)
        with tracking.parent_run(run_dir, before):
            pass
        assert delivery.sync(outputs)
        run_id = json.loads(run_dir.tracking.read_text(encoding="utf-8"))["run_id"]
        return run_dir, run_id, MlflowClient(tracking.uri(outputs)).get_run(run_id).data.tags

    return make


def test_runs_nest_below_the_run_before_and_stay_there(track, outputs: Path) -> None:
    first, first_id, tags = track("first")
    assert mlflow_store.PARENT not in tags and "run_before" not in tags
    second, second_id, tags = track("second", first)
    assert (tags[mlflow_store.PARENT], tags["run_before"]) == (first_id, "first")
    assert track("second")[1:] == (second_id, tags)  # reopened by a stage that is run alone
    assert track("third", second)[2][mlflow_store.PARENT] == second_id


def test_a_run_before_that_this_store_does_not_have_is_named_by_a_tag(track, outputs: Path) -> None:
    untracked = runs.create(outputs, "untracked")
    elsewhere, lost = runs.create(outputs, "elsewhere"), runs.create(outputs, "lost")
    write_json(elsewhere.tracking, {"uri": "http://example.invalid", "run_id": "a" * 32})
    write_json(lost.tracking, {"uri": tracking.uri(outputs), "run_id": "b" * 32})
    deleted, deleted_id, _ = track("deleted")
    MlflowClient(tracking.uri(outputs)).delete_run(deleted_id)
    for before in (untracked, elsewhere, lost, deleted):
        _, _, tags = track(f"after {before.name}", before)
        assert tags["run_before"] == before.name
        assert mlflow_store.PARENT not in tags
        assert tags["status"] == "FINISHED"
