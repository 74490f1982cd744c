"""`make gpu-check` on a machine without a card: a dry run of every check, on a tiny net."""

import re
from pathlib import Path

import pytest
import torch
from command_line import run_script
from safetensors.torch import save_file

from benchmarks import gpu_check
from spectacles.models import backbones


def test_every_check_runs_on_the_cpu_too(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "backbone.safetensors"
    save_file(backbones.build("test_efficientnet", 3, 32).state_dict(), weights)
    flags = (
        "--device",
        "cpu",
        "--images",
        40,
        "--image_size",
        32,
        "--backbone",
        "test_efficientnet",
        "--weights",
        weights,
    )
    done = run_script("benchmarks/gpu_check.py", "--output_dir", tmp_path / "out", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.rpartition("dry run on the CPU")[2]
    outcomes = {name: re.search(rf"^ *{name} +(\w+)", table, re.MULTILINE)[1] for name in gpu_check.CHECKS}
    assert outcomes == {name: "skipped" if name == "two cards" else "passed" for name in gpu_check.CHECKS}


def test_a_check_that_fails_is_a_row_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setup: gpu_check.Setup) -> str:
        raise ZeroDivisionError("no\nmatter")

    monkeypatch.setattr(gpu_check, "CHECKS", {"one": broken, "two": lambda setup: "fine"})
    table = gpu_check.run(None)
    assert table["outcome"].tolist() == ["FAILED", "passed"]
    assert table["details"].tolist() == ["ZeroDivisionError: no matter", "fine"]
