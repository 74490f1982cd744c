"""Files that hold a table (CSV, JSON, JSONL, Parquet, Excel; compressed or not) as text columns."""

import bz2
import gzip
import json
import lzma
import os
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import ArrowException, parquet

from spectacles.core.errors import UserError
from spectacles.core.wording import count_of
from spectacles.data.images import SUFFIXES
from spectacles.data.label_text import from_list
from spectacles.data.names import COMPRESSED_SUFFIXES

COMPRESSED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
"""First bytes -> what unpacks the rest."""
OTHER_KINDS = {
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF document",
    b"ARROW1": "a Feather file",
    b"\x89HDF": "an HDF5 file",
    b"ORC": "an ORC file",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML document",
}
"""First bytes -> what the file is, of those that are not read."""
OLD_EXCEL, ZIP = b"\xd0\xcf\x11\xe0", b"PK\x03\x04"
TAR_AT, TAR = 257, b"ustar"
INSTEAD = "save the table as CSV (UTF-8)"


def read_table(path: Path) -> pd.DataFrame:
    """A table as text, '' for missing: numbers digit by digit as they stand in the file. Raises UserError."""
    if not os.path.isfile(path):  # False, not an exception, for a name that is too long
        raise UserError(f"{path} {'is a folder, not a table' if os.path.isdir(path) else 'does not exist'}.")
    try:
        names, cells = _read(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except (ValueError, EOFError, lzma.LZMAError, zipfile.BadZipFile, pd.errors.ParserError, pd.errors.EmptyDataError,
            ArrowException) as error:  # fmt: skip
        raise UserError(f"{path} cannot be read as a table: {_sentence(error)}.") from error
    names = _named(names, path)
    if cells.empty:
        raise UserError(f"{path} has no rows.")
    table = cells.astype(object).where(cells.notna(), "").astype(str).reset_index(drop=True)
    table.columns = pd.Index(names, dtype=object)
    _check_separators(table, path)
    return table


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _named(names: Sequence[Any], path: Path) -> list[str]:
    """Names of the columns without surrounding spaces; Unnamed: 0, 1, ... for those without one, as pandas calls them.
    Raises UserError for a name that occurs twice, or a first line that is not a header."""
    texts = ["" if pd.isna(name) else str(name).strip() for name in names]
    if any(word.lower().endswith(SUFFIXES) for text in texts for word in (text, *text.split())):
        raise UserError(
            f"the first line of {path} is data, not a header: put one above it, such as 'file,label', and separate the "
            "cells by commas."
        )
    if twice := next((name for name in texts if name and texts.count(name) > 1), None):
        raise UserError(f"two columns are called {twice!r} in {path}: rename one of them, or take it out.")
    return [text or f"Unnamed: {place}" for place, text in enumerate(texts)]


def _check_separators(table: pd.DataFrame, path: Path) -> None:
    """Raises UserError for lines such as 'photo.jpg cat', which are a single column."""
    endings = "|".join(suffix.removeprefix(".") for suffix in SUFFIXES)
    if len(table.columns) == 1 and table.iloc[:50, 0].str.contains(rf"\.(?:{endings})\s+\S", case=False).mean() > 0.5:
        raise UserError(f"{path} separates its cells by spaces: separate them by commas, such as 'photo.jpg,cat'.")


def _read(path: Path) -> tuple[Sequence[Any], pd.DataFrame]:
    """(names of the columns, cells)."""
    content, name = _unpacked(path.read_bytes(), path.name.lower(), path)
    if content.startswith(OLD_EXCEL) or _is_workbook(content):
        return _read_excel(content, path)
    if content.startswith(b"PAR1") or name.endswith(".parquet"):
        return _read_parquet(content)
    start = content[:16].lstrip(b"\xef\xbb\xbf \r\n\t")
    kind = next((kind for magic, kind in OTHER_KINDS.items() if start.lower().startswith(magic.lower())), None)
    kind = "a tar archive" if content[TAR_AT:].startswith(TAR) else kind
    if kind is not None:
        raise UserError(f"{path} is {kind}, which is not read as a table: {INSTEAD}.")
    text = content.decode("utf-8-sig")
    if name.endswith((".json", ".jsonl", ".ndjson")):
        frame = pd.DataFrame(_json_records(text, is_lines=not name.endswith(".json")), dtype=object).map(_text)
        return list(frame.columns), frame
    return _read_csv(text)


def _unpacked(content: bytes, name: str, path: Path) -> tuple[bytes, str]:
    """The content without compression, and the name that it has then. Raises UserError for an archive of several
    files."""
    if content.startswith(ZIP) and not _is_office(content):
        return _unzipped(content, path)
    for magic, unpack in COMPRESSED.items():
        if content.startswith(magic):
            stem, suffix = os.path.splitext(name)
            return unpack(content), stem if suffix in COMPRESSED_SUFFIXES else name
    return content, name


def _unzipped(content: bytes, path: Path) -> tuple[bytes, str]:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        files = [
            member
            for member in archive.infolist()
            if not member.is_dir() and not member.filename.startswith(("__MACOSX/", "."))
        ]
        if len(files) != 1:
            raise UserError(
                f"{path} is a zip archive of {count_of(len(files), 'file')}: unpack it, and name the table."
            )
        try:
            return archive.read(files[0]), files[0].filename.lower()
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or compressed in an uncommon way
            raise UserError(
                f"{path} cannot be unpacked ({_sentence(error)}): unpack it, and name the table."
            ) from error


def _members(content: bytes) -> list[str]:
    if not content.startswith(ZIP):
        return []
    with zipfile.ZipFile(BytesIO(content)) as archive:
        return archive.namelist()


def _is_workbook(content: bytes) -> bool:
    return any(name.startswith("xl/") for name in _members(content))


def _is_office(content: bytes) -> bool:
    return "[Content_Types].xml" in _members(content)


def _read_excel(content: bytes, path: Path) -> tuple[Sequence[Any], pd.DataFrame]:
    """The only sheet with cells in it. Raises UserError."""
    try:
        sheets = pd.read_excel(BytesIO(content), sheet_name=None, header=None, dtype=object, keep_default_na=False)
    except ImportError as error:
        raise UserError(
            f"{path} is an Excel workbook, for which pandas needs another package ({_sentence(error)}): {INSTEAD}."
        ) from error
    filled = {str(name): sheet for name, sheet in sheets.items() if not sheet.empty}
    if len(filled) > 1:
        raise UserError(f"{path} is an Excel workbook with {len(filled)} sheets ({', '.join(filled)}): {INSTEAD}.")
    if not filled:
        raise UserError(f"{path} has no rows.")
    return _with_header(next(iter(filled.values())).map(_text))


def _with_header(cells: pd.DataFrame) -> tuple[Sequence[Any], pd.DataFrame]:
    return cells.iloc[0].tolist(), cells.iloc[1:]


def _read_csv(text: str) -> tuple[Sequence[Any], pd.DataFrame]:
    # The header is read as a row: pandas would rename columns of one name, and shift rows that are longer.
    return _with_header(
        pd.read_csv(
            StringIO(text, newline=""),
            header=None,
            dtype=str,
            keep_default_na=False,
            sep=_delimiter(text),
            skipinitialspace=True,
        )
    )


def _delimiter(text: str) -> str:
    header = text.lstrip("\r\n").partition("\n")[0]
    counts = {delimiter: header.count(delimiter) for delimiter in (",", ";", "\t", "|")}
    best = max(counts, key=lambda delimiter: counts[delimiter])
    return best if counts[best] else ","


def _read_parquet(content: bytes) -> tuple[Sequence[Any], pd.DataFrame]:
    # Through pandas, whole numbers beside a gap would become floats.
    table = parquet.read_table(BytesIO(content))
    columns = {place: _column(column) for place, column in enumerate(table.columns)}
    return table.column_names, pd.DataFrame(columns, dtype=object)


def _column(column: pa.ChunkedArray) -> list[object]:
    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):  # 0.1, not 0.10000000149011612
        kind = np.float32 if pa.types.is_float32(column.type) else np.float16
        return [None if cell is None else str(kind(cell)) for cell in column.to_pylist()]
    return [_text(cell) for cell in column.to_pylist()]


def _text(cell: Any) -> object:
    """None for missing."""
    if isinstance(cell, list):
        return from_list([str(_text(item)) for item in cell if item is not None])
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "backslashreplace")
    return None if cell is None or cell != cell else str(cell)


def _json_records(text: str, is_lines: bool) -> list[dict[str, object]]:
    """Numbers stay the text that they are in the file."""
    lines = [line for line in text.split("\n") if line.strip()] if is_lines else [text]
    content = [json.loads(line, parse_int=str, parse_float=str) for line in lines]
    items = content if is_lines else content[0]
    if isinstance(items, dict):
        return [{"file": file, "label": label} for file, label in items.items()]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("expected objects: {file: label}, or a list (JSONL: lines) of them")
    if all(_is_mapping(item) for item in items):
        return [{"file": file, "label": label} for item in items for file, label in item.items()]
    return items


def _is_mapping(item: dict[str, object]) -> bool:
    """Whether it is {file: label, ...} rather than {column: value, ...}."""
    return bool(item) and all(str(key).lower().endswith(SUFFIXES) for key in item)
