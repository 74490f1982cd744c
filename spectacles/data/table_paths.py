"""Where the files that a table names are: tables are also written on other machines, and under Windows."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ABSOLUTE = re.compile(r"/|[A-Za-z]:/")


@dataclass(frozen=True)
class Located:
    paths: list[str]
    """Absolute, of every name in order, whether there is such a file or not."""
    notes: list[str]
    """Sentences on names that are not found as they stand."""


def locate_files(names: "pd.Series[str]", folder: Path) -> Located:
    """Of the file names in a table; surrounding spaces belong to a name where there is such a file.

    Where there is no such file, backslashes separate folders. Names from another machine are looked for below `folder`:
    the longest tail that exists there is taken. Names that share their first folders lose the same ones, so that a
    missing file is not taken for another of the same name.
    """
    exact = [_exact(name, folder) for name in names]
    cut = _foreign_folders(exact, folder)
    local = [_tail(name, cut, folder) for name in exact]
    paths = [str((folder / name).absolute()) for name in local]
    moved = [(name, path) for name, path, tail in zip(exact, paths, local, strict=True) if name != tail]
    if not moved:
        return Located(paths, [])
    name, path = moved[0]
    listed = ", ".join(sorted(cut)[:3])
    return Located(
        paths,
        [f"{len(moved):,} files of another machine (in {listed}) are found in {folder}, such as {name} in {path}"],
    )


def _exact(name: str, folder: Path) -> str:
    stripped = name.strip()
    if name != stripped and os.path.isfile(folder / name):
        return name
    if "\\" in stripped and not os.path.isfile(folder / stripped):
        return stripped.replace("\\", "/")
    return stripped


def _foreign_folders(names: Sequence[str], folder: Path) -> set[str]:
    """The folders, each with '/' at its end, that have to be cut off names before they exist below `folder`. Relative
    names are only looked for where none of them exists."""
    relative, absolute = ([name for name in names if bool(ABSOLUTE.match(name)) is kind] for kind in (False, True))
    if any(os.path.isfile(folder / name) for name in relative):
        relative = []
    found: set[str] = set()
    for name in [*relative, *absolute]:
        if not os.path.isfile(folder / _tail(name, found, folder)):
            tail = next((tail for tail in _tails(name) if os.path.isfile(folder / tail)), None)
            found |= {name[: -len(tail)]} if tail else set()
    return found


def _tails(name: str) -> list[str]:
    """What follows each '/' of a name, the longest first, as far as it stays below a folder."""
    tails = [name[match.end() :] for match in re.finditer("/+", name)]
    return [tail for tail in tails if tail and ".." not in tail.split("/")]


def _tail(name: str, cut: set[str], folder: Path) -> str:
    """The name without the first folder among `cut`; as it is where there is such a file."""
    if not cut or os.path.isfile(folder / name):
        return name
    return next((tail for tail in _tails(name) if name[: -len(tail)] in cut), name)
