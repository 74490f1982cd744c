"""What only Linux or only POSIX has is guarded: everything runs where those modules, calls and files are hidden."""

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT

pytestmark = pytest.mark.process

HIDE = """
import builtins, ctypes, io, multiprocessing, os, pathlib, subprocess, sys, tempfile, threading
import captum.attr, fastapi, matplotlib.figure, numpy, pandas, sklearn, timm, torch, uvicorn  # theirs is theirs

for name in ("resource", "fcntl", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "posix_fallocate", "nice", "fork", "getuid", "geteuid", "register_at_fork"):
    if hasattr(os, name):
        delattr(os, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]

def missing(*_, **__):
    raise OSError("not on this system")

def hiding(call):
    def guarded(file, *arguments, **options):
        if str(file).startswith(("/proc", "/sys")):
            raise FileNotFoundError(2, "not on this system", str(file))
        return call(file, *arguments, **options)
    return guarded

ctypes.CDLL = missing
builtins.open = io.open = hiding(io.open)
os.stat = hiding(os.stat)
"""
"""The process as a part of it would be on Windows; what it starts is not affected."""

IMPORT = """
import importlib
for name in MODULES:
    importlib.import_module(name)
"""

USE = """
import torch
from spectacles.core import device, fileio
from spectacles.core.run_dir import create_run
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import engine_choice
from spectacles.tracking import delivery, event_log
from spectacles.training import profiling

if __name__ == "__main__":
    assert device.cpu_count() >= 1 and profiling.peak_memory(torch.device("cpu")) is None
    assert engine_choice.machine()["cores"] >= 1
    sys.platform = "win32"
    device.keep_freed_memory()
    device.release_freed_memory()
    folder = pathlib.Path(tempfile.mkdtemp())
    with event_log.writing(folder):
        event_log.close_dead(folder)
    delivery.set_group_niceness(os.getpid(), 5)
    fileio.atomic_write(folder / "a.txt", "text")
    with (folder / "a.txt").open("r+b") as file:
        fileio.allocate(file.fileno(), folder / "a.txt")
    sys.platform = "linux"

    from spectacles.server.decoders import Decoders, limit_memory
    from io import BytesIO
    from PIL import Image
    buffer = BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "PNG")
    preprocessing = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
    with Decoders(1, 10**6) as decoders:
        assert decoders(buffer.getvalue(), preprocessing).pixels.shape == (16, 16, 3)
    print("finished")
"""


def run(folder: Path, code: str) -> str:
    (folder / "main.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_runs_without_what_only_linux_has(tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in [*ROOT.glob("*.py"), *(ROOT / "spectacles").rglob("*.py")]
        if path.stem not in ("__init__", "__main__")
    ]
    # What is spawned runs the file again: only what follows __main__ is hidden from itself.
    hide = 'if __name__ == "__main__":\n' + "".join(f"    {line}\n" for line in HIDE.splitlines())
    imports = 'if __name__ == "__main__":\n' + "".join(
        f"    {line}\n" for line in IMPORT.replace("MODULES", repr(modules)).splitlines()
    )
    assert run(tmp_path, hide + imports + USE).endswith("finished\n")


def test_a_command_is_watched_by_its_pipe_where_a_process_keeps_its_parent() -> None:
    code = (
        "import os, sys, time; from spectacles.tracking.delivery import Command\n"
        "command = Command(os.getppid(), watch_stdin=True)\n"
        "print(command.has_ended(), flush=True)\n"
        "assert command.closed.wait(60)\n"
        "print(command.has_ended())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "False\n"
        process.stdin.close()
        assert process.stdout.readline() == "True\n"
