"""Training in two processes, compared with one process on the same batches; and what happens when one of them ends."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
from command_line import ROOT, run_script, run_together

from spectacles.core.run_dir import RunDir
from spectacles.models.bundle import load_bundle
from spectacles.training import checkpoint
from spectacles.training.collectives import OTHER_PROCESS_ENDED

FLAGS = (
    "--image_size", "32", "--batch_size", "6", "--epochs", "2", "--device", "cpu", "--engine", "torch",
    "--mixup", "0.2", "--dropout", "0", "--fine_tune", "always", "--optimizer", "sgd", "--lr", "0.001",
    "--class_weights", "balanced", "--unfreeze", "progressive", "--grad_accum_steps", "2", "--run_name", "run",
)  # fmt: skip
LONG = ("--checkpoint_every", "0", "--epochs", "400", "--patience", "400", "--unfreeze", "last:1")


def copied(indexed: RunDir, folder: Path) -> RunDir:
    shutil.copytree(indexed.output_dir, folder)
    return RunDir(folder / indexed.name)


def test_two_processes_end_like_one(indexed: RunDir, tmp_path: Path) -> None:
    alone, together = copied(indexed, tmp_path / "alone"), copied(indexed, tmp_path / "together")
    done = run_script("train.py", "--output_dir", alone.output_dir, *FLAGS)
    assert done.returncode == 0, done.stdout + done.stderr
    both = run_together("train.py", "--output_dir", together.output_dir, *FLAGS)
    assert "exit codes [0, 0]" in both.stdout, both.stdout + both.stderr
    assert both.stdout.count("epoch 3/3") == 1, "one of them speaks"
    expected, found = load_bundle(alone.bundle).tensors(), load_bundle(together.bundle).tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, 1e-3, 1e-3 * np.abs(tensor).max(), err_msg=name)
    one, two = (pd.read_csv(run.folder("train") / "history.csv").drop(columns="seconds") for run in (alone, together))
    pd.testing.assert_frame_equal(one, two, rtol=1e-3)


STOPPED_AFTER_THE_EXCHANGE = """
import os, runpy, signal, sys
from spectacles.training import collectives
exchange, count = collectives.any_process, 0
def any_process(*flags):
    global count
    answers, count = exchange(*flags), count + 1
    if count == 8 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return answers
collectives.any_process = any_process
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def test_when_one_process_ends_all_stop_and_the_run_can_be_resumed(indexed: RunDir, tmp_path: Path) -> None:
    run_dir = copied(indexed, tmp_path / "killed")
    flags = ("--output_dir", run_dir.output_dir, *FLAGS)
    killed = run_together("train.py", *flags, *LONG, probe=f"1:{signal.SIGKILL:d}:epoch 2/401")
    assert "exit codes [2, -9]" in killed.stdout and OTHER_PROCESS_ENDED in killed.stderr, killed.stderr
    kept = checkpoint.load_newest(run_dir.folder("train"))
    assert kept is not None and len(kept.values["history"]) >= 2
    rejected = run_script("train.py", *flags, "--resume")
    assert rejected.returncode == 2 and "--epochs was 400 and is 2" in rejected.stderr

    script = tmp_path / "train_until_stopped.py"
    script.write_text(STOPPED_AFTER_THE_EXCHANGE, encoding="utf-8")
    stopped = run_together(script, *flags, *LONG, "--resume")
    assert "exit codes [143, 143]" in stopped.stdout, stopped.stdout + stopped.stderr
    after = checkpoint.load_newest(run_dir.folder("train"))
    assert after is not None and len(after.values["history"]) > len(kept.values["history"])


def test_gradients_of_uneven_parts_are_those_of_the_whole_batch() -> None:
    done = run_together(ROOT / "tests" / "helpers" / "two_gradients.py")
    assert done.stdout.count("the same") == 1 and "exit codes [0, 0]" in done.stdout, done.stdout + done.stderr


def test_other_stages_run_in_one_process(tmp_path: Path) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for script in ("run_pipeline.py", "evaluate.py"):
        done = run_script(script, "--output_dir", tmp_path, environment=environment)
        assert done.returncode == 2 and f"{script} runs in one process" in done.stderr


def test_processes_that_do_not_know_which_one_they_are_are_told_how_to_start(indexed: RunDir) -> None:
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = run_script("train.py", "--output_dir", indexed.output_dir, *FLAGS, environment=environment)
    assert done.returncode == 2 and "RANK is not set: start them with torchrun" in done.stderr
