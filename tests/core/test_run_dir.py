"""Writes are whole or nothing, results of a rerun stage go stale with what was built on them, records are strict."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path, atomic_write, write_json
from spectacles.core.results import (
    DatasetReport,
    ErrorReport,
    EvaluateReport,
    ExploreReport,
    PredictReport,
    Report,
    RowAccounting,
    TrainReport,
    from_json,
    to_json,
)
from spectacles.core.run_dir import STAGES, RunDir, create_run, find_run, new_run, point_latest

COMMON = {"summary": ["it went well"], "metrics": {"accuracy": 0.5, "roc_auc": None}, "artifacts": ["a/b.png"]}
ACCOUNTING = RowAccounting(rows=3, used=1, converted=1, rejected=1, conversions={"x": 1}, rejections={"ü \n": 1})
TRAIN = TrainReport(
    **COMMON, backbone="simple_cnn", model_id="0f", metric="accuracy", best_value=0.1 + 0.2, best_epoch=2,
    best_phase="head", epochs_run=3, train_seconds=1.5,
)  # fmt: skip
RECORDS = [
    Report(**COMMON),
    DatasetReport(
        **COMMON, classes=["0", "1"], multi_label=False, row_accounting=ACCOUNTING, counts={"train": {"0": 1, "1": 1}},
        images={"train": 2}, unlabelled=0, fingerprint="f", label_column="label", id_column="",
    ),
    ExploreReport(**COMMON, warnings=[], suggestions=[]),
    TRAIN,
    EvaluateReport(**COMMON, scored_on="test", model_id="0f", accuracy_interval=(0.25, 1.0)),
    ErrorReport(**COMMON, errors=1, suspected_labels=2),
    PredictReport(**COMMON, rows=2, predicted=1, rejected=1, output="x.csv"),
]  # fmt: skip


def test_a_clean_exit_replaces_the_old_content(tmp_path):
    path = tmp_path / "new folder" / "table.csv"
    for content in ("old", "new ü"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".csv"
            temporary.write_text(content, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert os.listdir(path.parent) == ["table.csv"]


def write_half(path: Path, exception: type[BaseException]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise exception


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_content_and_nothing_else(tmp_path, exception):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(exception):
        write_half(path, exception)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_an_exception_creates_nothing(tmp_path):
    with pytest.raises(ValueError, match="stop"), atomic_path(tmp_path / "table.csv"):
        raise ValueError("stop")
    assert os.listdir(tmp_path) == []


def test_results_can_be_read_like_any_file_the_person_writes(tmp_path):
    atomic_write(tmp_path / "ours", "x")
    (tmp_path / "theirs").write_text("x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "theirs").stat().st_mode)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_no_reader_accepts_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"value": value})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("stage", "kept"),
    [
        ("dataset", set()),
        ("explore", {"dataset", "train", "evaluate", "error_analysis", "predict"}),
        ("train", {"dataset", "explore"}),
        ("evaluate", {"dataset", "explore", "train", "predict"}),
        ("error_analysis", {"dataset", "explore", "train", "evaluate", "predict"}),
        ("predict", {"dataset", "explore", "train", "evaluate", "error_analysis"}),
    ],
)
def test_beginning_a_stage_invalidates_what_was_built_on_it(tmp_path, stage, kept):
    run_dir = RunDir(tmp_path)
    for name in STAGES:
        run_dir.save_result(name, RECORDS[0])
    run_dir.begin(stage)
    assert {name for name in STAGES if run_dir.done(name)} == kept


def test_a_stage_can_begin_where_nothing_was_done(tmp_path):
    RunDir(tmp_path).begin("dataset")
    assert not RunDir(tmp_path).done("dataset")


def test_the_run_pointed_at_is_the_latest(tmp_path):
    for name in ("one", "two"):
        point_latest(create_run(tmp_path / "outputs", name))
    create_run(tmp_path / "outputs", "three")
    assert find_run(tmp_path / "outputs", "latest").name == "two"
    assert find_run(tmp_path / "outputs", "one").path == (tmp_path / "outputs" / "one").absolute()


def test_creating_a_run_again_keeps_what_it_holds(tmp_path):
    create_run(tmp_path, "one").save_result("dataset", RECORDS[0])
    assert create_run(tmp_path, "one").done("dataset")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../a", "latest", "cache", "a\nb", "mlartifacts", "-x"])
def test_a_name_that_is_no_folder_is_rejected(tmp_path, name):
    with pytest.raises(UserError, match="--run_name"):
        create_run(tmp_path / "outputs", name)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", ["a b 100% #1?x=u", "größe 日本", 'it\'s "so"; $(x) & <b>', "[a]*{b}~", "50%25"])
def test_any_characters_work_in_a_name(tmp_path, name):
    made = create_run(tmp_path / name, name)
    made.write_config({"seed": 1})
    point_latest(made)
    assert find_run(tmp_path / name, "latest") == find_run(tmp_path / name, name) == made
    assert made.load_config() == {"seed": 1}


def test_an_output_folder_that_is_no_text_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--output_dir .* is not UTF-8 text"):
        create_run(tmp_path / "\udce9", "one")


def test_every_new_run_has_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_run(tmp_path / "outputs", None, "20260101-000000"), range(24)))
    assert {run.name for run in made} == {"20260101-000000", *(f"20260101-000000-{number}" for number in range(2, 25))}


def test_one_of_two_new_runs_of_the_same_name_is_rejected(tmp_path):
    def outcome(_: int) -> str:
        try:
            return new_run(tmp_path, "mine", "unused").name
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(outcome, range(8)))
    assert outcomes.count("mine") == 1
    assert sum("exists: continue it with --resume" in text for text in outcomes) == 7


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--output_dir .*file"):
        create_run(tmp_path / "file", "one")


def test_no_run_yet_says_how_to_start(tmp_path):
    with pytest.raises(UserError, match=r"run_pipeline\.py"):
        find_run(tmp_path, "latest")


@pytest.mark.parametrize("pointer", [None, "gone\n"])
def test_an_unknown_run_lists_those_that_exist(tmp_path, pointer):
    create_run(tmp_path, "one").save_config("dataset", {"seed": 1})
    if pointer:
        (tmp_path / "latest").write_text(pointer)
    with pytest.raises(UserError, match="gone; --run_name can be one of: one"):
        find_run(tmp_path, "latest" if pointer else "gone")


@pytest.mark.parametrize("name", ["", ".", "..", "../outside"])
def test_a_run_is_found_inside_the_output_folder_only(tmp_path, name):
    (tmp_path / "outside").mkdir()
    create_run(tmp_path / "outputs", "one")
    with pytest.raises(UserError):
        find_run(tmp_path / "outputs", name)


def test_configs_of_stages_are_merged_into_the_runs(tmp_path):
    run_dir = create_run(tmp_path, "one")
    run_dir.save_config("dataset", {"seed": 1, "train_csv": "ü.csv"})
    run_dir.save_config("train", {"seed": 2, "lr": 1e-5, "weights": None})
    assert run_dir.load_config() == {"seed": 2, "train_csv": "ü.csv", "lr": 1e-5, "weights": None}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_the_file(tmp_path, record):
    run_dir = RunDir(tmp_path)
    run_dir.save_result("dataset", record)
    assert run_dir.load_result("dataset", type(record)) == record


def test_a_stage_that_did_not_finish_is_named(tmp_path):
    with pytest.raises(UserError, match=r"python train\.py"):
        RunDir(tmp_path).load_result("train", TrainReport)


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"best_epoch": None},
        {"best_epoch": "2"},
        {"best_epoch": 2.5},
        {"best_value": float("nan")},
        {"metrics": {"accuracy": float("inf")}},
        {"summary": "text"},
    ],
)
def test_an_edited_record_is_rejected(change):
    text = json.dumps({**json.loads(to_json(TRAIN)), **change})
    with pytest.raises(UserError, match="TrainReport cannot be read"):
        from_json(TrainReport, text)


def test_a_record_that_lacks_a_key_is_rejected():
    values = json.loads(to_json(TRAIN))
    for missing in values.keys() - {"seconds"}:
        text = json.dumps({key: value for key, value in values.items() if key != missing})
        with pytest.raises(UserError, match="TrainReport cannot be read"):
            from_json(TrainReport, text)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "\0"])
def test_text_that_is_no_record_is_rejected(text):
    with pytest.raises(UserError):
        from_json(TrainReport, text)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_with_a_number_that_is_none_cannot_be_made(value):
    with pytest.raises(ValidationError):
        replace(TRAIN, best_value=value)


def test_paths_are_stored_relative_to_the_run():
    run_dir = RunDir(Path("/somewhere/outputs/one"))
    assert run_dir.relative(run_dir.bundle, run_dir.splits) == ["train/bundle", "dataset/splits.csv"]
