"""Files in object stores and on web servers, by address, through fsspec."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from uuid import uuid4

import fsspec

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path
from spectacles.data.addresses import is_address, name_of

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss"}
"""They write an object completely or not at all, and have no folders; making one could create a bucket."""
UNFINISHED = ".tmp-"
"""Prefix of a file that is being written."""
GONE = (404, 410)


def read(address: str, most: int) -> bytes:
    """At most `most` bytes. Raises FileNotFoundError or IsADirectoryError where there is no such file, and UserError
    where the store does not answer: the next try may find the file."""
    with explained(address, missing=True), _failures(), fsspec.open(address, "rb") as file:
        content = b""
        while len(content) < most and (more := file.read(most - len(content))):
            content += more
        return content


def files_below(address: str) -> list[str]:
    """The file itself, or all files of a folder (on a web server: with a slash at the end) or a glob but hidden ones.
    Raises UserError."""
    with explained(address), _failures():
        system, path = fsspec.url_to_fs(address)
        start = path
        if system.isfile(path) and not address.endswith("/"):  # to a web server, a folder is a file too
            found = [path]
        elif system.exists(path):
            found = system.find(path)
        else:
            start = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
            found = [name for name in system.glob(path) if system.isfile(name)]
    if not found:
        raise UserError(f"{address} is neither a file nor a folder and matches nothing.")
    inside = len(PurePosixPath(start).parts)
    visible = [name for name in found if not any(p.startswith(".") for p in PurePosixPath(name).parts[inside:])]
    files = [name for name in visible if not name.endswith("/")]  # "/": a folder's marker
    return [_address(system, address, path, name) for name in files]


def _address(system: Any, address: str, path: str, name: str) -> str:
    """The address of `name`, the store's name for a file that it listed for `address`, whose name in the store is
    `path`. Raises UserError for a name that has no address."""
    first, chain, rest = address.rstrip("/").partition("::")
    for start in (first.removesuffix(path.rstrip("/")) + name, str(system.unstrip_protocol(name))):
        with suppress(Exception):  # stores raise anything for an odd name
            if fsspec.url_to_fs(candidate := f"{start}{chain}{rest}")[1] == name:
                return candidate
    raise UserError(f"{address} holds {name!r}, which has no address of its own: rename it.")


def fetch(address: str, folder: Path) -> Path:
    """Copies the file into `folder` under its name. Raises UserError."""
    copy = folder / name_of(address)
    with explained(address), _failures(), fsspec.open(address, "rb") as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy


def write(place: str, content: bytes) -> None:
    """Atomic: `place`, a path or an address, holds the new content or the old one. Raises OSError."""
    if not is_address(place):
        with atomic_path(Path(place)) as temporary:
            temporary.write_bytes(content)
        return
    with _failures():
        system, path = fsspec.url_to_fs(place)
        if OBJECT_STORES.intersection([system.protocol] if isinstance(system.protocol, str) else system.protocol):
            system.pipe_file(path, content)
            return
        folder, _, name = path.rpartition("/")
        unfinished = f"{folder}/{UNFINISHED}{uuid4().hex}-{name}"
        system.makedirs(folder, exist_ok=True)
        system.pipe_file(unfinished, content)
        system.mv(unfinished, path)


def remove(place: str) -> None:
    """Removes a file if it exists. Raises OSError."""
    if not is_address(place):
        Path(place).unlink(missing_ok=True)
        return
    with _failures(), suppress(FileNotFoundError):
        system, path = fsspec.url_to_fs(place)
        system.rm_file(path)


def file_system(folder: str) -> tuple[Any, str]:
    """fsspec's file system, None for that of this machine, and the folder's path in it. Raises OSError."""
    if not is_address(folder):
        return None, folder
    with _failures():
        system, path = fsspec.url_to_fs(folder)
    return system, path


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
    """Names in a folder, by path or address; empty where there is none. Raises OSError."""
    if not is_address(place):
        return set(os.listdir(place)) if os.path.isdir(place) else set()
    with _failures():
        system, path = fsspec.url_to_fs(place)
        system.invalidate_cache()
        return {PurePosixPath(name).name for name in system.find(path, maxdepth=1) if not name.endswith("/")}


@contextmanager
def explained(address: str, missing: bool = False) -> Iterator[None]:
    """Failures to reach `address` become one UserError, except, with `missing`, that there is no such file."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        status = getattr(error.__cause__, "status", GONE[0])  # a web server may just have failed
        if missing and status in GONE:
            raise
        reason = "does not exist" if status in GONE else f"cannot be reached (status {status})"
        raise UserError(f"{address} {reason}.") from error
    except ImportError as error:
        raise UserError(f"{address} cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"{address} cannot be reached ({error.strerror or error}).") from error


@contextmanager
def _failures() -> Iterator[None]:
    """Every kind of store has its own exceptions for a missing key or host: all become OSError."""
    try:
        yield
    except (OSError, ImportError, UserError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
