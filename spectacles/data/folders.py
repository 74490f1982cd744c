"""The files in a folder, without dropping any: links are followed, loops end, unreadable folders are an error."""

import logging
import os
from collections import deque
from collections.abc import Set
from pathlib import Path

from spectacles.core.errors import UserError
from spectacles.data.names import natural_key, natural_sort

log = logging.getLogger("spectacles")

Identity = tuple[int, int]
"""Device and inode: identify a folder, whatever path leads to it."""


def subfolders(folder: Path) -> list[str]:
    """Names in natural order, without hidden ones and links back to `folder` or above it. Raises UserError."""
    above = _ancestors(folder)
    inside = (entry for entry in _entries(folder) if not entry.name.startswith(".") and _is_folder(entry))
    return natural_sort([entry.name for entry in inside if _identity(folder / entry.name) not in above])


def files_below(folder: Path, skip: Set[Path] = frozenset()) -> list[Path]:
    """All files below except hidden ones, of whatever kind: those that are not images are rejected later, by name, and
    so are dangling links. Folders of `skip` are left out.

    Links to folders are followed after all real folders, and every folder is listed once, so that loops end. Raises
    UserError for a folder that cannot be read: its files would be missing silently.
    """
    found: list[Path] = []
    real, links = list[Path](), deque[Path]()
    seen, current = _ancestors(folder), folder
    while True:
        for entry in _entries(current):
            path = current / entry.name
            if entry.name.startswith(".") or path in skip:
                continue
            if not _is_folder(entry):
                found.append(path)
            elif entry.is_symlink():
                links.append(path)
            else:
                real.append(path)
        following = _next(real, links, seen)
        if following is None:
            return sorted(found, key=lambda path: natural_key(path.as_posix()))
        current = following


def _next(real: list[Path], links: deque[Path], seen: set[Identity]) -> Path | None:
    """A folder that is not in `seen`, and is added to it; None at the end."""
    while real or links:
        path = real.pop() if real else links.popleft()
        identity = _identity(path)
        if identity not in seen:
            seen.add(identity)
            return path
        log.info("  the link %s is not followed: its target is listed already", as_text(str(path)))
    return None


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; names from the file system need not be."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def as_text(name: str) -> str:
    """The name; where it is not UTF-8, invalid bytes are written as escapes."""
    return name if is_text(name) else os.fsencode(name).decode("utf-8", "backslashreplace")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """By name. Raises UserError."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        raise UserError(f"the folder {as_text(str(folder))} does not exist.") from None
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> UserError:
    name = as_text(str(folder))
    if isinstance(error, NotADirectoryError):
        return UserError(f"{name} is a file, not a folder.")
    return UserError(
        f"the folder {name} cannot be read ({error.strerror}): change its permissions, or take it out of the data."
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself or to a forbidden place: reading it as a file gives the reason
        return False


def _identity(folder: Path) -> Identity:
    try:
        found = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from error
    return found.st_dev, found.st_ino


def _ancestors(folder: Path) -> set[Identity]:
    """The folder and all folders above it."""
    try:
        resolved = folder.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links; _entries raises for it
        return set()
    return {_identity(place) for place in (resolved, *resolved.parents)}
