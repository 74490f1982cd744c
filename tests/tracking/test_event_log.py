"""The journal of what is to be tracked: what a crash leaves of it, and who may write, close and deliver."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from spectacles.core.run_dir import create_run
from spectacles.tracking import event_log, tracking


def start(run: str, parent: str | None = None, ts: int = 1) -> event_log.Event:
    return {"do": "start", "run": run, "parent": parent, "to": "", "ts": ts}


def test_a_torn_last_line_is_no_event_and_the_next_writer_goes_on_behind_it(tmp_path: Path) -> None:
    with event_log.writing(tmp_path) as write:
        write(start("a"))
    with (tmp_path / event_log.EVENTS).open("ab") as file:
        file.write(b'{"do": "metr')
    assert [event["do"] for event, _ in event_log.read(tmp_path)] == ["start"]
    with event_log.writing(tmp_path) as write:
        write(start("b"))
    events = list(event_log.read(tmp_path))
    assert [(event["do"], event["run"]) for event, _ in events] == [("start", "a"), ("end", "a"), ("start", "b")]
    assert [event["run"] for event, _ in event_log.read(tmp_path, offset=events[1][1])] == ["b"]


def test_runs_that_a_dead_process_left_open_end_as_killed_the_innermost_first(tmp_path: Path) -> None:
    with event_log.writing(tmp_path) as write:
        write(start("parent", ts=1))
        write(start("done", "parent", ts=2))
        write({"do": "end", "run": "done", "to": "", "ts": 3, "status": "FINISHED"})
        write(start("stage", "parent", ts=4))
        event_log.close_dead(tmp_path)  # somebody writes, so nothing is dead
        assert [run for run, _ in event_log.open_runs(tmp_path)] == ["parent", "stage"]
    event_log.close_dead(tmp_path)
    ends = [event for event, _ in event_log.read(tmp_path)][-2:]
    assert [(event["run"], event["status"], event["ts"]) for event in ends] == [("stage", "KILLED", 4),
                                                                               ("parent", "KILLED", 4)]  # fmt: skip
    assert not event_log.open_runs(tmp_path)
    assert event_log.folder_run(tmp_path) == "parent"


def test_each_store_has_its_own_place_in_the_journal(tmp_path: Path) -> None:
    with event_log.writing(tmp_path) as write:
        write(start("a"))
        write(start("a") | {"to": "http://elsewhere"})
        write(start("b"))
    offsets = [offset for _, offset in event_log.read(tmp_path)]
    assert event_log.waiting(tmp_path) == {"": 2, "http://elsewhere": 1}
    event_log.mark_sent(tmp_path, "", offsets[0])
    assert event_log.waiting(tmp_path) == {"": 1, "http://elsewhere": 1}
    event_log.mark_sent(tmp_path, "", offsets[2])
    assert event_log.waiting(tmp_path) == {"http://elsewhere": 1}


def test_one_process_at_a_time_delivers(tmp_path: Path) -> None:
    with event_log.delivering(tmp_path) as first, event_log.delivering(tmp_path) as second:
        assert (first, second) == (True, False)
    with event_log.delivering(tmp_path) as again:
        assert again


def test_a_database_in_this_folder_is_found_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert event_log.destination() == f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert event_log.destination() == "http://server:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.uri(tmp_path / "outputs") == f"sqlite:///{tmp_path}/outputs/mlflow.db"


@pytest.mark.parametrize("name", ["a b 100% #1?x=u", "50%25+ü", "a?b=c&d", "it's;{x}"])
def test_the_database_is_inside_an_output_folder_of_any_name(tmp_path: Path, name: str) -> None:
    database = make_url(tracking.uri(tmp_path / name)).database
    assert database == str(tmp_path / name / "mlflow.db")


def test_a_full_disk_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    run_dir = create_run(tmp_path, "run")
    (run_dir.path / event_log.EVENTS).symlink_to(full)
    with tracking.parent_run(run_dir), tracking.stage_run(run_dir, "train", {"epochs": 1}):
        tracking.log_metrics({"loss": 1.0})
    assert "not tracked" in caplog.text
