"""Real faults in the middle of a save: whatever fails, the old content or the new one is there, whole."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spectacles.core.errors import UserError
from spectacles.core.fileio import allocate, atomic_write, check_writable, sweep, temporary_prefix

OLD, NEW = "old\n" * 1000, "new!\n" * 2000
SAVE = """
import sys
from pathlib import Path
from spectacles.core.fileio import atomic_write
try:
    atomic_write(Path(sys.argv[1]), "new!\\n" * 2000)
except OSError as error:
    sys.exit(3 if error.filename else 4)
"""
CALLS = ("write", "fsync", "rename", "chmod")
FAULTS = ("error=ENOSPC", "error=EIO", "signal=SIGKILL")

pytestmark = pytest.mark.process
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def save(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Under strace, which tells of the calls that matter."""
    command = ["strace", "-f", "-qq", "-e", f"trace={','.join(CALLS)}", *options, sys.executable, "-c", SAVE, str(path)]
    without_coverage = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=without_coverage)


@needs_strace
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_save_that_fails_anywhere_leaves_the_old_or_the_new(tmp_path: Path, call: str, fault: str) -> None:
    counted = save(tmp_path / "counted.txt")
    calls = len(re.findall(rf"\b{call}\(", counted.stderr))
    assert counted.returncode == 0 and calls > 0
    for number in range(1, calls + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "result.json"
        path.write_text(OLD, encoding="utf-8")
        failed = save(path, "-e", f"inject={call}:{fault}:when={number}")
        assert failed.returncode == (-9 if "SIGKILL" in fault else 3), failed.stderr
        # A rename that is done is done: only the folder's own fsync comes after it.
        assert path.read_text(encoding="utf-8") in ((OLD, NEW) if call == "fsync" and number == calls else (OLD,))
        sweep(folder)
        assert list(folder.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written to .No space left on device"):
        check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_a_living_process_writes_is_not_swept(tmp_path: Path) -> None:
    own = tmp_path / f"{temporary_prefix()}x.json"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = tmp_path / own.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-")
    elsewhere = tmp_path / f".tmp-another-machine-{gone.pid}-x.json"
    for path in (own, dead, elsewhere):
        path.write_text("half", encoding="utf-8")
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, elsewhere])


@pytest.fixture
def tiny_disk(mount_disk: Callable[[str], Path]) -> Path:
    """Two megabytes."""
    return mount_disk("2m")


def test_a_full_disk_is_found_by_the_trial_and_spoils_no_file(tiny_disk: Path) -> None:
    path = tiny_disk / "result.json"
    path.write_text(OLD, encoding="utf-8")
    (tiny_disk / "ballast").write_bytes(bytes(1_500_000))
    with pytest.raises(UserError, match=f"{tiny_disk} cannot be written to"):
        check_writable(tiny_disk)
    with pytest.raises(OSError, match="No space left") as failed:
        atomic_write(path, "x" * 1_000_000)
    assert failed.value.filename == str(path)
    assert path.read_text(encoding="utf-8") == OLD
    descriptor = os.open(tiny_disk / "map", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, 3_000_000)
    with pytest.raises(OSError, match="No space left"):
        allocate(descriptor, tiny_disk / "map")
    os.close(descriptor)


def test_a_disk_that_may_only_be_read_is_named(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(UserError, match=f"{tiny_disk} cannot be written to .Read-only file system"):
        check_writable(tiny_disk)
