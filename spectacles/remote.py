"""Files in object stores and on other machines, by address (s3://bucket/photo.jpg, ...), through fsspec."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import fsspec

from spectacles.errors import UserError
from spectacles.run_dir import atomic_path

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""At least two letters: C:// is a drive."""


@dataclass(frozen=True)
class RemoteFile:
    address: str

    def __str__(self) -> str:
        return self.address

    def read(self, most: int) -> bytes:
        """At most so many bytes. Raises OSError, FileNotFoundError among them."""
        with _failures(), fsspec.open(self.address, "rb") as file:
            return bytes(file.read(most))


def is_address(text: str) -> bool:
    return ADDRESS.match(text) is not None


def locate(text: str) -> Path | RemoteFile:
    return RemoteFile(text) if is_address(text) else Path(text)


def join(folder: str, name: str) -> str:
    """A name in a table, seen from the folder or address it starts from."""
    return name if is_address(name) else f"{folder.rstrip('/')}/{name.lstrip('/')}"


def parent(address: str) -> str:
    return address.rpartition("/")[0]


def suffix(text: str) -> str:
    return PurePosixPath(text).suffix.lower()


def files_below(address: str) -> list[str]:
    """A file is itself, a folder or a glob all its files, hidden ones aside. Raises UserError."""
    with explained(address), _failures():
        system, path = fsspec.url_to_fs(address)
        start = path
        if system.isfile(path):
            found = [path]
        elif system.exists(path):
            found = system.find(path)
        else:
            start = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
            found = [name for name in system.glob(path) if system.isfile(name)]
    inside = len(PurePosixPath(start).parts)
    visible = [name for name in found if not any(p.startswith(".") for p in PurePosixPath(name).parts[inside:])]
    if not found:
        raise UserError(f"{address} is no file, no folder and matches nothing.")
    before, after = _around(address.rstrip("/"), path)
    return [f"{before}{name}{after}" for name in visible]


def _around(address: str, path: str) -> tuple[str, str]:
    """What stands before and after the part of an address that a store takes for the path: its kind, perhaps the host,
    and what the store itself lies in."""
    first, chain, rest = address.partition("::")
    return first.removesuffix(path), chain + rest


def fetch(address: str, folder: Path) -> Path:
    """A copy under the same name. Raises UserError."""
    copy = folder / PurePosixPath(address).name
    with explained(address), _failures(), fsspec.open(address, "rb") as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy


def write(place: str, content: bytes) -> None:
    """`place`, a path or an address, holds all of `content` or what it held before. Raises OSError."""
    if not is_address(place):
        with atomic_path(Path(place)) as temporary:
            temporary.write_bytes(content)
        return
    with _failures():
        system, path = fsspec.url_to_fs(place)
        system.makedirs(parent(path), exist_ok=True)
        system.pipe_file(path, content)


def remove(place: str) -> None:
    """A file, if it is there. Raises OSError."""
    if not is_address(place):
        Path(place).unlink(missing_ok=True)
        return
    with _failures(), suppress(FileNotFoundError):
        system, path = fsspec.url_to_fs(place)
        system.rm_file(path)


@contextmanager
def open_file(place: str) -> Iterator[BinaryIO]:
    """A path or an address, for reading at any position. Raises OSError."""
    if not is_address(place):
        with Path(place).open("rb") as file:
            yield file
        return
    with _failures():
        file = fsspec.open(place, "rb").open()
    with file:
        yield file


def names_in(place: str) -> set[str]:
    """Of what lies in a folder, by path or address; nothing where there is no such folder. Raises OSError."""
    if not is_address(place):
        return set(os.listdir(place)) if os.path.isdir(place) else set()
    with _failures():
        system, path = fsspec.url_to_fs(place)
        system.invalidate_cache()
        return {PurePosixPath(name).name for name in system.find(path, maxdepth=1)}


@contextmanager
def explained(address: str) -> Iterator[None]:
    """What fails on the way to `address` becomes one UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{address} does not exist.") from None
    except ImportError as error:
        raise UserError(f"{address} cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"{address} cannot be reached ({error.strerror or error}).") from error


@contextmanager
def _failures() -> Iterator[None]:
    """Each kind of store has exceptions of its own for a missing key or host: all of them become OSError."""
    try:
        yield
    except (OSError, ImportError, UserError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
