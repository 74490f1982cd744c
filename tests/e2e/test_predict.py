"""predict.py on files as people have them, and Ctrl-C in the middle of training."""

import json
import re
import signal
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import warm
from command_line import ROOT, SMALL, Finished, clean_environment, data_flags, run_script
from tracking_servers import until

from spectacles.core.run_dir import find_run
from spectacles.models.bundle import read_bundle_info
from spectacles.training import checkpoint


@pytest.fixture(scope="module")
def photos(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good files, a broken one and a text, under awkward names."""
    folder = tmp_path_factory.mktemp("photos") / "with space"
    folder.mkdir()
    table = pd.read_csv(finished.run_dir.index)
    first, second = table.loc[table["status"] == "used", "path"].iloc[:2]
    (folder / "a, b.jpg").write_bytes(Path(first).read_bytes())
    (folder / "ünï 2.jpg").write_bytes(Path(second).read_bytes())
    (folder / "ünï 10.jpg").write_bytes(Path(second).read_bytes()[:500])
    (folder / "notes.txt").write_text("not a photo")
    return folder


def predict(finished: Finished, *arguments: object) -> subprocess.CompletedProcess[str]:
    done = run_script("predict.py", *arguments, "--bundle", finished.run_dir.bundle, "--device", "cpu")
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_single_image_is_answered_on_one_line(finished: Finished, photos: Path) -> None:
    done = predict(finished, photos / "a, b.jpg")
    assert re.fullmatch(rf"{re.escape(str(photos))}/a, b\.jpg: [01] \(\d+\.\d%\)\n", done.stdout)


def test_a_single_unreadable_image_is_rejected_with_its_reason(finished: Finished, photos: Path) -> None:
    done = predict(finished, photos / "ünï 10.jpg")
    assert done.returncode == 2
    assert "truncated" in done.stderr


def test_commands_of_the_same_second_keep_each_others_predictions(
    finished: Finished, photos: Path, tmp_path: Path
) -> None:
    now = datetime.now()
    for seconds in range(600):  # another command's, at whichever second this one begins
        name = (now + timedelta(seconds=seconds)).strftime("predictions-%Y%m%d-%H%M%S")
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions.csv").write_text("theirs")
    assert predict(finished, photos, "--output_dir", tmp_path).returncode == 0
    [ours] = tmp_path.glob("predictions-*-*-2/predictions.csv")
    assert len(pd.read_csv(ours)) == 4
    assert {path.read_text() for path in tmp_path.glob("*/predictions.csv") if path != ours} == {"theirs"}


def test_a_folder_gives_a_row_for_every_file(finished: Finished, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    done = predict(finished, photos, "--output", output, "--top_k", 2)
    assert "4 rows = 2 predicted + 2 rejected" in done.stdout
    table = pd.read_csv(output, dtype=str, keep_default_na=False)
    assert [Path(name).name for name in table["file"]] == ["a, b.jpg", "notes.txt", "ünï 2.jpg", "ünï 10.jpg"]
    assert table["status"].str.startswith("rejected: ").tolist() == [False, True, False, True]
    good = table[table["status"] == "predicted"]
    assert (good["label"] != good["label_2"]).all()
    assert (good["confidence"].astype(float) + good["confidence_2"].astype(float)).sub(1).abs().max() < 1e-9


def test_another_class_mix_multiplies_the_odds(finished: Finished, photos: Path, tmp_path: Path) -> None:
    tables = []
    for name, flags in (("as_trained", ()), ("half", ("--prior", "1=0.5"))):
        done = predict(finished, photos, "--output", tmp_path / f"{name}.csv", *flags)
        assert ("expected 50.0 % '1', 50.0 % '0'" in done.stdout) == bool(flags)
        tables.append(pd.read_csv(tmp_path / f"{name}.csv").dropna(subset="p_1"))
    before, after = ((table["p_1"] / table["p_0"]).to_numpy() for table in tables)
    share = read_bundle_info(finished.run_dir.bundle)[0].class_shares[1]
    trained = pd.read_csv(finished.run_dir.splits, dtype=str).query("split == 'train'")["label"]
    assert share == pytest.approx((trained == "1").mean())
    assert after / before == pytest.approx((1 - share) / share)


def test_a_folder_of_one_file_is_a_folder(finished: Finished, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "notes.txt").write_text("not a photo")
    done = predict(finished, tmp_path / "one", "--output_dir", tmp_path / "outputs")
    assert done.returncode == 0
    assert "1 rows = 0 predicted + 1 rejected" in done.stdout


def test_text_output_has_one_line_per_file_in_input_order(finished: Finished, photos: Path, tmp_path: Path) -> None:
    files = [photos / "ünï 2.jpg", photos / "ünï 10.jpg", photos / "a, b.jpg"]
    predict(finished, *files, "--format", "txt", "--output", tmp_path / "out.txt")
    lines = (tmp_path / "out.txt").read_text(encoding="utf-8").split("\n")
    assert [line in ("0", "1") for line in lines[:3]] == [True, False, True]
    assert lines[1] == ""
    assert len(lines) == 4


def test_globs_and_json_lines(finished: Finished, photos: Path, tmp_path: Path) -> None:
    predict(finished, photos / "*.jpg", "--format", "jsonl", "--output", tmp_path / "out.jsonl")
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [set(record["probabilities"]) for record in records if record["status"] == "predicted"] == [{"0", "1"}] * 2
    assert sum(record["status"].startswith("rejected") for record in records) == 1


def test_a_table_with_ids_gives_a_submission_too(finished: Finished, tmp_path: Path) -> None:
    inputs = (finished.sample / "test.csv", "--image_dir", finished.sample / "dataset")
    done = predict(finished, *inputs, "--output", tmp_path / "p.csv")
    assert done.returncode == 0, done.stderr
    alone = pd.read_csv(tmp_path / "submission.csv")
    of_run = pd.read_csv(finished.run_dir.path / "predict" / "submission.csv")
    pd.testing.assert_frame_equal(alone, of_run)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jpg"], "matches nothing"),
        ([".", "--top_k", "3"], "--top_k 3"),
        ([".", "--format", "xml"], "format"),
        ([".", "--prior", "hat=0.5"], "--prior 'hat=0.5': 'hat' is not one of the classes 0, 1"),
        ([".", "--format", "csv", "--output", "x.jsonl"], "contradict"),
        ([".", "--output", "."], "is a folder"),
    ],
)
def test_mistakes_are_reported(finished: Finished, arguments: list[str], words: str) -> None:
    done = predict(finished, *arguments)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_usable_bundle_and_a_checkpoint(
    finished: Finished, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    assert run_script("dataset.py", *data_flags(finished.sample), "--output_dir", tmp_path).returncode == 0
    command = ["train.py", *SMALL[:6], "--epochs", "500", "--patience", "500", "--output_dir", str(tmp_path)]
    printed, errors = tmp_path / "printed.txt", tmp_path / "errors.txt"
    with printed.open("wb") as stdout, errors.open("wb") as stderr:
        training = warm.Process(warm.request(command, ROOT, clean_environment(), stdout, stderr))
    until(lambda: "epoch 2/501" in printed.read_text() or training.poll() is not None, "the second epoch is over")
    training.send_signal(number)
    assert training.wait(timeout=60) == status, errors.read_text()
    run_dir = find_run(tmp_path, "latest")
    assert checkpoint.load_newest(run_dir.folder("train")) is not None
    assert "Traceback" not in errors.read_text()
    assert f"--bundle {run_dir.bundle}" in printed.read_text()
    assert not run_dir.done("train")
    assert read_bundle_info(run_dir.bundle)[0].epoch >= 1
    table = pd.read_csv(run_dir.splits)
    assert run_script("predict.py", table["path"].iloc[0], "--bundle", run_dir.bundle).returncode == 0
