"""Every root script explains itself at once: its flags are read before anything heavy is imported."""

import subprocess
import sys

import pytest
from command_line import ROOT

pytestmark = pytest.mark.process

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "mlflow",
    "pandas",
    "numpy",
    "scipy",
    "sklearn",
    "matplotlib",
    "fastapi",
    "PIL",
}
HELP = """
import runpy, sys
script, heavy = sys.argv[1], set(sys.argv[2].split(","))
sys.argv = [script, "--help"]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    print("imported:", *sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script: str) -> None:
    command = [sys.executable, "-c", HELP, script, ",".join(HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {script}")
    assert done.stdout.endswith("imported:\n")
