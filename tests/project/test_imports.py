"""Who may import whom, and that importing does nothing else."""

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {path.stem: path for path in ROOT.glob("*.py")}
ROOMS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (ROOT / "spectacles").rglob("*.py")
    if path.stem != "__init__"
}
EVERYTHING = SCRIPTS | ROOMS

BASE = {"dataset", "model"}
TOP = {"run_pipeline", "api", "benchmark"}
STAGES = set(SCRIPTS) - BASE - TOP
LIGHT = [
    "spectacles.core.config",
    "spectacles.core.results",
    "spectacles.core.run_dir",
    "spectacles.metrics.basics",
    "spectacles.metrics.decisions",
    "spectacles.metrics.thresholds",
]


@cache
def imported(path: Path) -> set[str]:
    """Full names of all modules that the file imports anywhere, even inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def importers(package: str) -> set[str]:
    return {name for name, path in EVERYTHING.items() if package in packages(path)}


def test_the_layers_are_all_there():
    assert set(SCRIPTS) >= BASE and {"train", "evaluate", "predict"} <= STAGES and len(ROOMS) > 20


@pytest.mark.parametrize("room", ROOMS)
def test_the_package_imports_no_root_script(room):
    assert packages(ROOMS[room]) & set(SCRIPTS) == set()


@pytest.mark.parametrize("script", sorted(BASE))
def test_data_and_model_import_the_package_only(script):
    assert packages(SCRIPTS[script]) & set(SCRIPTS) == set()


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_imports_no_other_stage(stage):
    assert packages(SCRIPTS[stage]) & set(SCRIPTS) <= BASE


@pytest.mark.parametrize(
    ("package", "room"),
    [
        ("mlflow", "spectacles.tracking.mlflow_store"),
        ("matplotlib", "spectacles.report.style"),
        ("ray", "spectacles.inference.ray_backend"),
        ("fsspec", "spectacles.data.remote_files"),
    ],
)
def test_a_heavy_package_has_one_importer(package, room):
    assert importers(package) == {room}


def test_no_module_of_the_package_imports_itself_in_a_circle():
    graph = {room: imported(path) & set(ROOMS) for room, path in ROOMS.items()}
    while leaves := {room for room, needed in graph.items() if not needed}:
        graph = {room: needed - leaves for room, needed in graph.items() if room not in leaves}
    assert graph == {}


def python(code: str, folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SPECTACLES", "MLFLOW"))}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.process
def test_light_modules_import_nothing_heavy(tmp_path):
    heavy = ("torch", "timm", "mlflow", "sklearn")
    code = f"import sys, {', '.join(LIGHT)}; print([name for name in {heavy} if name in sys.modules])"
    assert python(code, tmp_path) == "[]\n"


def test_predicting_files_imports_neither_a_tracker_nor_a_plotting_library(tmp_path):
    heavy = ("mlflow", "sklearn", "scipy.stats", "matplotlib", "captum", "ray", "fastapi")
    code = f"import sys, predict; print([name for name in {heavy} if name in sys.modules])"
    assert python(code, tmp_path) == "[]\n"


# The libraries come first: what they do when they are imported is theirs.
SIDE_EFFECTS = """
import importlib, json, logging, os, random, signal, sys, threading, warnings
import captum.attr, cleanlab.filter, fastapi, jinja2, jsonargparse, numpy, pandas, pydantic, scipy.ndimage, sklearn
import timm, timm.data.mixup, torch, torchvision.transforms.v2, uvicorn, yaml, tqdm, PIL.Image
import matplotlib.figure

def state():
    return {
        "threads": [thread.name for thread in threading.enumerate()],
        "handlers": [str(handler) for handler in logging.getLogger().handlers],
        "level": logging.getLogger().level,
        "arguments": sys.argv,
        "environment": dict(os.environ),
        "folder": os.listdir("."),
        "warnings": [str(entry) for entry in warnings.filters],
        "random": [str(random.getstate()), str(numpy.random.get_state()), torch.get_rng_state().tolist()],
        "torch": [torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled()],
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
    }

before = state()
for name in MODULES:
    importlib.import_module(name)
after = state()
changed = [key for key in before if before[key] != after[key]]
print(json.dumps({"changed": changed, "mlflow": "mlflow" in sys.modules}))
"""


@pytest.mark.process
def test_importing_everything_does_nothing_else(tmp_path):
    output = python(SIDE_EFFECTS.replace("MODULES", repr(sorted(EVERYTHING))), tmp_path)
    assert json.loads(output) == {"changed": [], "mlflow": False}
    assert list(tmp_path.iterdir()) == []
