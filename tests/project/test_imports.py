"""What import-linter cannot say: who imports root scripts and heavy packages, and that importing does nothing else."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {path.stem: path for path in ROOT.glob("*.py")}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (ROOT / "spectacles").rglob("*.py")
    if path.stem != "__init__"
}

SHARED_SCRIPTS = {"dataset", "model"}
"""Root scripts that stages import; only the scripts above the stages import others."""
ABOVE_STAGES = {"run_pipeline", "benchmark", "api"}
ONLY_IMPORTERS = {
    "mlflow": {"spectacles.tracking.mlflow_store", "spectacles.tracking.registry"},
    "matplotlib": {"spectacles.report.style"},
    "ray": {"spectacles.inference.ray_backend"},
    "fsspec": {"spectacles.data.remote_files"},
}
LIGHT = ("spectacles.cli", "spectacles.core.config", "spectacles.core.results", "spectacles.core.run_dir")
NO_TRAINING = (
    "torch", "torchvision", "timm", "mlflow", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib", "captum", "ray",
)  # fmt: skip
"""What requirements-serve.txt lacks."""
NO_SERVER = ("pydantic", "yaml", "jsonargparse", "fsspec", "fastapi", "uvicorn", "onnxruntime", "openvino")


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


def allowed_scripts(name: str) -> set[str]:
    if name in ABOVE_STAGES:
        return set(SCRIPTS)
    return SHARED_SCRIPTS if name in SCRIPTS and name not in SHARED_SCRIPTS else set()


def test_scripts_and_heavy_packages_are_imported_only_where_they_may_be() -> None:
    graph = {name: imported(path) for name, path in (SCRIPTS | MODULES).items()}
    packages = {name: {module.split(".")[0] for module in modules} for name, modules in graph.items()}
    for name, found in packages.items():
        assert found & set(SCRIPTS) - {name} <= allowed_scripts(name), name
    importers = {package: {name for name, found in packages.items() if package in found} for package in ONLY_IMPORTERS}
    assert importers == ONLY_IMPORTERS
    unresolved = {name: graph[name] & set(MODULES) for name in MODULES}
    while leaves := {name for name, needed in unresolved.items() if not needed}:
        unresolved = {name: needed - leaves for name, needed in unresolved.items() if name not in leaves}
    assert unresolved == {}, "these modules import each other in a circle"


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
    assert imported_of(LIGHT, ("numpy", "PIL", *NO_TRAINING), tmp_path) == "[]\n"


def imported_of(modules: tuple[str, ...], heavy: tuple[str, ...], folder: Path) -> str:
    code = f"import sys, {', '.join(modules)}; print([name for name in {heavy} if name in sys.modules])"
    return python(code, folder)


@pytest.mark.process
def test_predicting_and_serving_import_nothing_that_only_training_needs(tmp_path):
    assert imported_of(("predict",), (*NO_TRAINING, "fastapi", "fsspec"), tmp_path) == "[]\n"
    assert imported_of(("spectacles.server.app",), (*NO_TRAINING, "jsonargparse", "fsspec"), tmp_path) == "[]\n"


@pytest.mark.process
def test_decoders_import_numpy_and_pillow_only(tmp_path):
    assert imported_of(("spectacles.server.decoders",), (*NO_TRAINING, *NO_SERVER), tmp_path) == "[]\n"
    code = "import runpy, sys; runpy.run_path('api.py', run_name='__mp_main__'); print('numpy' in sys.modules)"
    assert python(f"import os; os.chdir({str(ROOT)!r}); {code}", tmp_path) == "False\n"


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

import spectacles  # switches off what other libraries report: they read that when they are imported
before = state()
for name in MODULES:
    importlib.import_module(name)
after = state()
changed = [key for key in before if before[key] != after[key]]
print(json.dumps({"changed": changed, "mlflow": "mlflow" in sys.modules}))
"""


@pytest.mark.process
def test_importing_everything_does_nothing_else(tmp_path):
    output = python(SIDE_EFFECTS.replace("MODULES", repr(sorted(SCRIPTS | MODULES))), tmp_path)
    assert json.loads(output) == {"changed": [], "mlflow": False}
    assert list(tmp_path.iterdir()) == []
