"""A table of photos as inputs of predict, with their ids where it has some."""

import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from spectacles.core.config import PredictCommand
from spectacles.core.errors import UserError
from spectacles.data import addresses, remote_files, tables
from spectacles.data.table_files import read_table
from spectacles.data.table_paths import locate_files

log = logging.getLogger("spectacles")


def read(argument: str, config: PredictCommand) -> tuple[list[str], list[str], list[str], str]:
    """(paths or addresses, file names, ids or none, the column that holds these or '') of the table at a path or an
    address. Raises UserError."""
    table = _read(argument)
    files = tables.file_names(table, argument, config.file_column, config.filename_template)
    id_column = tables.find_id_column(table, str(files.name))
    ids = table[id_column].tolist() if id_column else []
    folder = addresses.parent(argument) if addresses.is_address(argument) else os.path.dirname(argument)
    return _paths(files, config.image_dir or folder), files.tolist(), ids, id_column


def _read(argument: str) -> pd.DataFrame:
    if not addresses.is_address(argument):
        return read_table(Path(argument))
    with TemporaryDirectory() as folder:
        copy = remote_files.fetch(argument, Path(folder))
        try:
            return read_table(copy)
        except UserError as error:
            raise UserError(str(error).replace(str(copy), argument)) from error


def _paths(files: "pd.Series[str]", start: str) -> list[str]:
    if addresses.is_address(start):
        return [addresses.join(start, name.strip()) for name in files]
    here = [not addresses.is_address(name) for name in files]
    located = locate_files(files[here], Path(start))
    for note in located.notes:
        log.info("  %s", note)
    local = iter(located.paths)
    return [next(local) if is_local else name.strip() for name, is_local in zip(files, here, strict=True)]
