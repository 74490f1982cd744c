"""A record never holds a setting that was not used: what a finished stage would ignore is refused, or runs it again."""

from contextlib import nullcontext
from pathlib import Path

import pytest

import run_pipeline
from spectacles import cli
from spectacles.core.config import PipelineConfig, TrainConfig, select, to_plain
from spectacles.core.errors import UserError
from spectacles.core.results import Report
from spectacles.core.run_dir import RunDir, create_run, point_latest
from spectacles.core.setting_changes import changes, recorded

REPORT = Report(summary=[], metrics={}, artifacts=[])


def finish(run: RunDir, stage: str, **settings: object) -> None:
    config = select(PipelineConfig(**settings), run_pipeline.TABLE[stage])
    run.save_config(stage, recorded(to_plain(config)))
    run.save_result(stage, REPORT)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = create_run(tmp_path, "run")
    point_latest(made)
    for stage in ("dataset", "explore", "train", "evaluate"):
        finish(made, stage, epochs=5, image_size=32, device="cpu", output_dir=tmp_path)
    return made


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """(stage, its settings) of those that are run, which save them and finish at once."""
    stages: list[tuple[str, object]] = []

    def execute(stage: str, run: object, config: object, run_dir: RunDir) -> None:
        stages.append((stage, config))
        run_dir.begin(stage)
        run_dir.save_config(stage, recorded(to_plain(config)))
        run_dir.save_result(stage, REPORT)

    monkeypatch.setattr(cli, "execute", execute)
    monkeypatch.setattr(cli, "publish", lambda run_dir: None)
    monkeypatch.setattr(run_pipeline, "_has_test_data", lambda run_dir: True)
    monkeypatch.setattr(run_pipeline.tracking, "parent_run", lambda run_dir, before: nullcontext())
    return stages


def pipeline(run: RunDir, *flags: str) -> None:
    run_pipeline.run(run_pipeline.parse(["--output_dir", str(run.output_dir), *flags]))


def test_a_changed_setting_of_a_finished_stage_is_refused_with_the_difference(run, executed):
    before = run.load_config()
    with pytest.raises(UserError, match=r"train has finished, and --epochs was 5 and is 3.* --rerun"):
        pipeline(run, "--resume", "--epochs", "3")
    assert executed == [] and run.load_config() == before


def test_rerun_runs_the_stage_again_and_what_was_built_on_it(run, executed):
    pipeline(run, "--resume", "--rerun", "--epochs", "3")
    assert [stage for stage, _ in executed] == ["train", "evaluate", "error_analysis", "predict"]
    trained = executed[0][1]
    assert isinstance(trained, TrainConfig) and (trained.epochs, trained.resume) == (3, False)
    assert run.load_config()["epochs"] == run.load_config("train")["epochs"] == 3
    assert not {"resume", "rerun", "stages"} & set(run.load_config())


@pytest.mark.parametrize("flags", [("--device", "cpu", "--num_workers", "1"), ("--image_size", "32"), ()])
def test_what_changes_nothing_is_no_obstacle(run, executed, flags):
    pipeline(run, "--resume", *flags)
    assert [stage for stage, _ in executed] == ["error_analysis", "predict"]


def test_a_setting_that_no_stage_to_run_uses_is_refused(run, executed):
    with pytest.raises(UserError, match=r"dataset has finished, and --val_fraction was 0\.15 and is 0\.3"):
        pipeline(run, "--stages", "train", "--val_fraction", "0.3")
    pipeline(run, "--stages", "train", "--image_size", "48")  # of the dataset stage too, but training uses it
    assert [stage for stage, _ in executed] == ["train"]
    assert (run.load_config("dataset")["image_size"], run.load_config()["image_size"]) == (32, 48)


def test_settings_of_stages_that_are_not_run_are_not_recorded(tmp_path, executed):
    flags = ("--output_dir", str(tmp_path), "--run_name", "new", "--stages", "dataset", "--epochs", "7")
    run_pipeline.run(run_pipeline.parse(flags))
    assert "epochs" not in RunDir(tmp_path / "new").load_config()


def test_a_stage_run_alone_with_other_settings_is_no_change(run, executed):
    """The run's settings are the last ones used; resuming without flags asks for none of them."""
    finish(run, "train", epochs=2, image_size=64, device="cpu")
    pipeline(run, "--resume")
    assert [stage for stage, _ in executed] == ["error_analysis", "predict"]


def test_rerun_alone_is_the_users_mistake(run, executed):
    with pytest.raises(UserError, match="--rerun goes with --resume"):
        pipeline(run, "--rerun", "--stages", "train")


def test_resuming_a_finished_training_with_other_settings_is_refused(run: RunDir, monkeypatch, capsys) -> None:
    def started(*flags: str) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["train.py", "--output_dir", str(run.output_dir), "--resume", *flags])
        with pytest.raises(SystemExit) as stopped:
            cli.main("train", TrainConfig, "Train.")
        return stopped.value.code, capsys.readouterr().err

    assert started() == (None, "")
    code, message = started("--epochs", "3")
    assert code == 2 and "train has finished, and --epochs was 5 and is 3" in message


def test_a_path_written_in_another_way_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert changes("dataset", {"train_csv": str(tmp_path / "a.csv")}, {"train_csv": "a.csv"}, {}) == []
    assert changes("dataset", {"train_csv": "b/a.csv"}, {"train_csv": "a.csv"}, {}) != []
    assert changes("train", {"backbone": "b"}, {"backbone": "a"}, {}) == ["--backbone was a and is b"]


def test_the_report_shows_what_the_model_was_trained_with(run: RunDir) -> None:
    run.save_config("explore", {"image_size": 99, "device": "cuda", "galleries": False})
    shown = run.trained_config()
    assert (shown["image_size"], shown["device"], shown["galleries"]) == (32, "cuda", False)
