"""Atomic writes: a file holds its old content or its new one, never a part."""

import glob
import json
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from spectacles.core.errors import UserError

TRIAL_BYTES = 1 << 20


def temporary_prefix() -> str:
    """Names the process that writes a temporary file, so that no other one removes it meanwhile."""
    return f".tmp-{platform.node()}-{os.getpid()}-"


def sweep(folder: Path) -> None:
    """Removes temporary files that killed processes of this machine left behind."""
    if os.name == "nt":  # there, asking for a process ends it
        return
    for path in folder.rglob(f".tmp-{glob.escape(platform.node())}-*"):
        owner = path.name.removeprefix(f".tmp-{platform.node()}-").partition("-")[0]
        if owner.isdecimal() and not _alive(int(owner)):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another person's
        return True
    return True


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on a clean exit it is synced and takes `path`'s name, else it is removed.

    The temporary name keeps the suffix, so that writers which look at it (pandas, Pillow) behave.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(), suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; results should be readable like any other file the person writes.
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: str) -> None:
    """Writes UTF-8 text so that `path` holds either the old content or the new, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def allocate(descriptor: int, path: Path) -> None:
    """Takes the disk space of a file that is to be mapped into memory: where a map finds none later, the process ends
    (SIGBUS). Raises OSError."""
    size = os.fstat(descriptor).st_size
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            error.filename = str(path)
            raise


def safe_name(text: str) -> str:
    """A name given by a person (class, model, photo) as part of a file name that any file system, URL and shell takes.

    At most 60 characters. Different names may become the same: where that matters, number the files.
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.-")[:60] or "unnamed"


def new_folder(parent: Path, name: str) -> Path:
    """Makes a folder that no other command has: `name`, or name-2, name-3, ... where that exists. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("unreachable")


def check_writable(folder: Path) -> None:
    """Writes a trial file before work begins whose results could not be saved. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=temporary_prefix()) as file:
            file.write(bytes(TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}): make room, allow it, or choose another --output_dir."
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder for syncing
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Strict JSON: NaN and infinities are rejected (ValueError), so every reader can read it."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
