"""Addresses of files in object stores and on web servers (s3://bucket/photo.jpg, ...), as text; `remote_files` reads
what is there."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""At least two letters: C:// is a drive."""
READERS = 16
"""Threads that read from a store; they mostly wait."""


@dataclass(frozen=True)
class RemoteFile:
    address: str

    def __str__(self) -> str:
        return self.address


def is_address(text: str) -> bool:
    return ADDRESS.match(text) is not None


def locate(text: str) -> Path | RemoteFile:
    return RemoteFile(text) if is_address(text) else Path(text)


def readers(paths: Iterable[str], given: int | None) -> int | None:
    """Threads that decode: as given, else more where files come from a store."""
    return given or (READERS if any(map(is_address, paths)) else None)


def join(folder: str, name: str) -> str:
    """A name from a table, relative to the address `folder`."""
    first, chain, rest = folder.partition("::")
    start = first if first.endswith("://") else first.rstrip("/") + "/"
    return name if is_address(name) else f"{start}{name.lstrip('/')}{chain}{rest}"


def parent(address: str) -> str:
    first, chain, rest = address.partition("::")
    kind, _, path = first.partition("://")
    return f"{kind}://{path.rpartition('/')[0]}{chain}{rest}"


def name_of(text: str) -> str:
    """The last part of a path or address, without the query of a web address."""
    first = text.partition("::")[0] if is_address(text) else text
    return PurePosixPath(first.partition("?")[0] if first.lower().startswith("http") else first).name
