"""The inputs of predict (files, folders, globs, a table, addresses) as one list, in order, none dropped."""

import glob
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from spectacles.core.config import PredictCommand
from spectacles.core.errors import UserError
from spectacles.data import remote_files, tables
from spectacles.data.folders import as_text, files_below
from spectacles.data.table_files import is_table, read_table
from spectacles.data.table_paths import locate_files

log = logging.getLogger("spectacles")


@dataclass(frozen=True)
class Inputs:
    """Paths or addresses, the names as given by the person, and ids where the table has them."""

    paths: list[str]
    names: list[str]
    ids: list[str]
    id_column: str = ""

    def part(self, start: int, stop: int) -> "Inputs":
        return Inputs(self.paths[start:stop], self.names[start:stop], self.ids[start:stop], self.id_column)

    def shard(self, number: int, of: int) -> "Inputs":
        """Shard `number`, from 1, of `of` consecutive shards whose sizes differ by at most one."""
        rows = len(self.paths)
        return self.part(rows * (number - 1) // of, rows * number // of)


def collect(arguments: list[str], config: PredictCommand) -> Inputs:
    """Arguments as a flat list of files, in the order given. Raises UserError for one that matches nothing."""
    if len(arguments) == 1 and is_table(remote_files.name_of(arguments[0])):
        return _from_table(arguments[0], config)
    paths = [path for argument in arguments for path in _expand(argument)]
    return Inputs(paths, list(map(as_text, paths)), [])


def parse_shard(text: str) -> tuple[int, int]:
    """'3/8' -> (3, 8). Raises UserError."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text!r} is not a shard: write 1/8 for the first of eight, 8/8 for the last.")
    return int(match[1]), int(match[2])


def _expand(argument: str) -> Iterator[str]:
    if remote_files.is_address(argument):
        yield from tables.natural_sort(remote_files.files_below(argument))
    elif os.path.isdir(argument):  # False, not an exception, for a name that is too long
        yield from map(str, files_below(Path(argument)))
    elif os.path.exists(argument):
        yield str(Path(argument))
    elif matches := sorted(glob.glob(argument, recursive=True)):
        yield from (str(Path(match)) for match in matches if Path(match).is_file())
    else:
        raise UserError(f"{argument} is neither a file nor a folder and matches nothing.")


def _from_table(argument: str, config: PredictCommand) -> Inputs:
    table = _read(argument)
    files = tables.file_names(table, argument, config.file_column, config.filename_template)
    id_column = tables.find_id_column(table, str(files.name))
    ids = table[id_column].tolist() if id_column else []
    start = config.image_dir or (
        remote_files.parent(argument) if remote_files.is_address(argument) else os.path.dirname(argument)
    )
    return Inputs(_paths(files, start), files.tolist(), ids, id_column)


def _read(argument: str) -> pd.DataFrame:
    if not remote_files.is_address(argument):
        return read_table(Path(argument))
    with TemporaryDirectory() as folder:
        copy = remote_files.fetch(argument, Path(folder))
        try:
            return read_table(copy)
        except UserError as error:
            raise UserError(str(error).replace(str(copy), argument)) from error


def _paths(files: "pd.Series[str]", start: str) -> list[str]:
    if remote_files.is_address(start):
        return [remote_files.join(start, name.strip()) for name in files]
    here = [not remote_files.is_address(name) for name in files]
    located = locate_files(files[here], Path(start))
    for note in located.notes:
        log.info("  %s", note)
    local = iter(located.paths)
    return [next(local) if is_local else name.strip() for name, is_local in zip(files, here, strict=True)]
