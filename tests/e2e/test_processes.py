"""Training in two processes, started by torchrun, compared with one process on the same batches."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from command_line import PATIENCE, ROOT, run_script

from spectacles.core.run_dir import RunDir
from spectacles.models.bundle import load_bundle
from spectacles.training import checkpoint

FLAGS = (
    "--image_size", "32", "--batch_size", "6", "--epochs", "2", "--device", "cpu", "--engine", "torch",
    "--mixup", "0.2", "--dropout", "0", "--fine_tune", "always", "--optimizer", "sgd", "--lr", "0.001",
    "--class_weights", "balanced", "--run_name", "run",
)  # fmt: skip


def copied(indexed: RunDir, folder: Path) -> RunDir:
    shutil.copytree(indexed.output_dir, folder)
    return RunDir(folder / indexed.name)


def torchrun(run_dir: RunDir, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py",
               "--output_dir", run_dir.output_dir, *FLAGS, *flags]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(started: subprocess.Popen[str]) -> str:
    output, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, output
    return output


def test_two_processes_end_like_one(indexed: RunDir, tmp_path: Path) -> None:
    alone, together = copied(indexed, tmp_path / "alone"), copied(indexed, tmp_path / "together")
    done = run_script("train.py", "--output_dir", alone.output_dir, *FLAGS)
    assert done.returncode == 0, done.stdout + done.stderr
    output = finish(torchrun(together))
    assert output.count("epoch 3/3") == 1, "one of them speaks"
    expected, found = load_bundle(alone.bundle)[1], load_bundle(together.bundle)[1]
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-3, atol=1e-3 * float(tensor.float().abs().max()), msg=name
        )
    one, two = (pd.read_csv(run.folder("train") / "history.csv").drop(columns="seconds") for run in (alone, together))
    pd.testing.assert_frame_equal(one, two, rtol=1e-3)


def test_when_one_process_is_killed_all_stop_and_the_run_can_be_resumed(indexed: RunDir, tmp_path: Path) -> None:
    run_dir = copied(indexed, tmp_path / "killed")
    started = torchrun(run_dir, "--checkpoint_every", "0", "--epochs", "400", "--patience", "400")
    assert started.stdout is not None
    heard = next(line for line in started.stdout if "epoch 2/401" in line)
    followers = [process for process in children(started.pid) if "train.py" in command_of(process)]
    os.kill(followers[-1], signal.SIGKILL)
    output, _ = started.communicate(timeout=120)  # at once, not after the twelve hours that a peer may take
    assert started.returncode != 0
    assert re.search("another process of this training has ended|SIGKILL", output), heard + output
    kept = checkpoint.load_newest(run_dir.folder("train"))
    assert kept is not None and len(kept.values["history"]) >= 2
    rejected = run_script("train.py", "--output_dir", run_dir.output_dir, *FLAGS, "--resume")
    assert rejected.returncode == 2 and "--epochs was 400 and is 2" in rejected.stderr
    resumed = torchrun(run_dir, "--resume", "--checkpoint_every", "0", "--epochs", "400", "--patience", "400")
    assert resumed.stdout is not None
    next(line for line in resumed.stdout if re.search(r"epoch \d+/401", line))
    resumed.send_signal(signal.SIGTERM)
    resumed.communicate(timeout=PATIENCE)
    after = checkpoint.load_newest(run_dir.folder("train"))
    assert after is not None and len(after.values["history"]) > len(kept.values["history"])


def children(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return [int(line) for line in found.stdout.split()]


def command_of(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8").replace("\0", " ")


def test_other_stages_run_in_one_process(tmp_path: Path) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for script in ("run_pipeline.py", "evaluate.py"):
        done = run_script(script, "--output_dir", tmp_path, environment=environment)
        assert done.returncode == 2 and f"{script} runs in one process" in done.stderr
