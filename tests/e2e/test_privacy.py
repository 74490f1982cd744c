"""No command connects to another machine, and no library reports that it is used."""

import os
import subprocess
import sys
from pathlib import Path

import network_trace
import pytest
from command_line import ROOT, Finished, clean_environment

needs_strace = pytest.mark.skipif(not network_trace.tracer(Path()), reason="strace is not installed")

USE = """
import numpy, torch
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import engines, onnx_export, torch_network

preprocessing = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 16), torch.nn.Flatten())
onnx = onnx_export.export_quickly(*torch_network.PixelNetwork(network, preprocessing, "cpu").from_pixels())
for name, build in engines.BUILDERS.items():
    if engines.is_installed(name):
        outputs = build(onnx)(numpy.zeros((2, 16, 16, 3), dtype=numpy.uint8))
        assert outputs["outputs"].shape == (2, 4)
import mlflow
"""
"""Every library that would report its use if it were let."""


@needs_strace
def test_the_pipeline_connects_to_no_other_machine(finished: Finished) -> None:
    folder = finished.run_dir.output_dir.parent
    assert network_trace.addresses(folder) == set()
    assert network_trace.reports(folder) == []


@needs_strace
def test_engines_report_nothing(tmp_path: Path) -> None:
    command = [*network_trace.tracer(tmp_path), sys.executable, "-c", USE]
    environment = clean_environment() | network_trace.new_home(tmp_path) | {"PYTHONPATH": str(ROOT)}
    for switch in ("ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "DO_NOT_TRACK"):
        environment.pop(switch, None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert network_trace.addresses(tmp_path) == set()
    assert network_trace.reports(tmp_path) == []


def test_who_wants_a_report_may_switch_it_on() -> None:
    show = "import os, spectacles; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    for given, expected in (({}, "1 true"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0 true")):
        done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, env=environment | given, capture_output=True,
                              text=True, check=True)  # fmt: skip
        assert done.stdout.strip() == expected
