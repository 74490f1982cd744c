"""`make gpu-check` on a machine without a card: a dry run of its checks, on a tiny net."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import gpu_check
from spectacles.core.config import TrainConfig
from spectacles.models import backbones


def test_the_checks_run_on_the_cpu_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but that of the server, which other tests start."""
    torch.manual_seed(1)
    weights = tmp_path / "backbone.safetensors"
    save_file(backbones.build("test_efficientnet", 3, 32).state_dict(), weights)
    config = TrainConfig(
        device="cpu", backbone="test_efficientnet", weights=weights, image_size=32, batch_size=16, epochs=2,
        unfreeze="last:2", fine_tune="always",
    )  # fmt: skip
    monkeypatch.delitem(gpu_check.CHECKS, "server")
    table = gpu_check.run(gpu_check.prepare(tmp_path, config, images=40))
    outcomes = dict(zip(table["check"], table["outcome"], strict=True))
    expected = {name: "skipped" if name in ("two cards", "exported file") else "passed" for name in gpu_check.CHECKS}
    assert outcomes == expected, table.to_string()


def test_a_check_that_fails_is_a_row_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setup: gpu_check.Setup) -> str:
        raise ZeroDivisionError("no\nmatter")

    monkeypatch.setattr(gpu_check, "CHECKS", {"one": broken, "two": lambda setup: "fine"})
    table = gpu_check.run(None)
    assert table["outcome"].tolist() == ["FAILED", "passed"]
    assert table["details"].tolist() == ["ZeroDivisionError: no matter", "fine"]
