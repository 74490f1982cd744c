"""The inputs of predict (files, folders, globs, a table, addresses) as one list, in order, none dropped."""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from spectacles.core.config import PredictCommand
from spectacles.core.errors import UserError
from spectacles.data import addresses
from spectacles.data.folders import as_text, files_below
from spectacles.data.names import is_table, natural_sort


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
    if len(arguments) == 1 and is_table(addresses.name_of(arguments[0])):
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
    if addresses.is_address(argument):
        from spectacles.data import remote_files  # imports fsspec

        yield from natural_sort(remote_files.files_below(argument))
    elif os.path.isdir(argument):  # False, not an exception, for a name that is too long
        yield from map(str, files_below(Path(argument)))
    elif os.path.exists(argument):
        yield str(Path(argument))
    elif matches := sorted(glob.glob(argument, recursive=True)):
        yield from (str(Path(match)) for match in matches if Path(match).is_file())
    else:
        raise UserError(f"{argument} is neither a file nor a folder and matches nothing.")


def _from_table(argument: str, config: PredictCommand) -> Inputs:
    if find_spec("pandas") is None:
        raise UserError(f"{argument} is a table, and to read one needs pandas: install requirements.txt.")
    from spectacles.inference import table_inputs  # imports pandas, which photos do not need

    return Inputs(*table_inputs.read(argument, config))
