"""Tables from CSV, JSON and Parquet files as text columns, and the meaning of their columns."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pyarrow import ArrowException, parquet

from spectacles.core.errors import UserError
from spectacles.data.images import SUFFIXES

FILE_NAMES = ("file", "filename", "file_name", "image", "image_file", "image_name", "img", "path", "filepath",
              "file_path", "image_path", "photo", "picture")  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "y")
SEPARATOR, NONE = "|", "none"
"""Between several labels of one image; and the text for an image without any label."""
ID_NAMES = ("id", "image_id", "img_id", "index", "uid", "uuid", "")


def read_table(path: Path) -> pd.DataFrame:
    """A CSV (comma, semicolon or tab), JSON, JSONL or Parquet file as text, '' for missing. Raises UserError."""
    if not os.path.isfile(path):  # False, not an exception, for a name that is too long
        raise UserError(f"{path} {'is a folder, not a table' if os.path.isdir(path) else 'does not exist'}.")
    try:
        if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
            frame = pd.DataFrame(_json_records(path)).map(_joined)
        elif path.suffix.lower() == ".parquet":
            columns = parquet.read_table(path).to_pydict()  # through pandas, whole numbers beside a gap become floats
            frame = pd.DataFrame({name: list(map(_joined, cells)) for name, cells in columns.items()}, dtype=object)
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, sep=_delimiter(path), encoding="utf-8-sig",
                                skipinitialspace=True)  # fmt: skip
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError, ArrowException) as error:
        raise UserError(f"{path} cannot be read as a table: {error}.") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    if any(column.lower().endswith(SUFFIXES) for column in frame.columns):
        raise UserError(f"the first line of {path} is data, not a header: put one above it, such as 'file,label'.")
    if not isinstance(frame.index, pd.RangeIndex):
        raise UserError(f"{path} has rows with more cells than its header: give every column a name.")
    if frame.empty:
        raise UserError(f"{path} has no rows.")
    return frame.astype(object).where(frame.notna(), "").astype(str)


def _joined(cell: object) -> object:
    """JSON and Parquet may hold lists of labels."""
    return (SEPARATOR.join(map(str, cell)) or NONE) if isinstance(cell, list) else cell


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    counts = {delimiter: header.count(delimiter) for delimiter in (",", ";", "\t", "|")}
    best = max(counts, key=lambda delimiter: counts[delimiter])
    return best if counts[best] else ","


def _json_records(path: Path) -> list[dict[str, object]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        content = json.loads(text)
        if isinstance(content, dict):
            return [{"file": file, "label": label} for file, label in content.items()]
        items = content
    else:
        items = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("expected objects: {file: label}, or a list (JSONL: lines) of them")
    if all(_is_mapping(item) for item in items):
        return [{"file": file, "label": label} for item in items for file, label in item.items()]
    return items


def _is_mapping(item: dict[str, object]) -> bool:
    """Whether it is {file: label, ...} rather than {column: value, ...}."""
    return bool(item) and all(str(key).lower().endswith(SUFFIXES) for key in item)


def file_names(
    table: pd.DataFrame, path: Path | str, file_column: str | None, template: str | None
) -> "pd.Series[str]":
    """The file name of each row; the series is named after its column ('' for a template). Raises UserError."""
    if template is not None:
        try:
            names = [template.format(**{str(k): v for k, v in row.items()}) for row in table.to_dict("records")]
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"--filename_template {template!r} does not fit {path}: {error}; it has {columns_of(table)}."
            ) from error
        return pd.Series(names, name="", dtype=str)
    if file_column is not None:
        require(table, path, [file_column], "--file_column")
        return table[file_column]
    by_name = {column.lower(): column for column in reversed(table.columns)}
    for name in FILE_NAMES:
        if name in by_name:
            return table[by_name[name]]
    for column in table.columns:
        if table[column].head(50).str.lower().str.endswith(SUFFIXES).mean() > 0.5:
            return table[column]
    raise UserError(
        f"no column of {path} looks like image files; it has {columns_of(table)}. "
        "Name it with --file_column, or build names with --filename_template, e.g. 'face-{id}.png'."
    )


def require(table: pd.DataFrame, path: Path | str, columns: Sequence[str], flag: str) -> None:
    """Raises UserError where the table lacks a column that `flag` names; '' stands for none."""
    for column in columns:
        if column and column not in table.columns:
            raise UserError(f"{path} has no column {column!r} ({flag}); it has {columns_of(table)}.")


def find_id_column(table: pd.DataFrame, file_column: str) -> str:
    return next((c for c in table.columns if c.lower() in ID_NAMES and c != file_column), "")


def find_label_columns(table: pd.DataFrame, path: Path, given: str | None, known: set[str]) -> list[str]:
    """One column, or those that `given` lists, separated by commas. Raises UserError where it is ambiguous."""
    if given is not None:
        columns = [given] if given in table.columns else list(dict.fromkeys(name.strip() for name in given.split(",")))
        require(table, path, columns, "--label_column")
        return columns
    candidates = [column for column in table.columns if column not in known]
    by_name = [column for column in candidates if column.lower() in LABEL_NAMES and _values_recur(table[column])]
    by_content = [column for column in candidates if _looks_like_labels(table[column])]
    for columns in (by_name, candidates, by_content):
        if len(columns) == 1:
            return columns
    raise UserError(f"which column of {path} is the label? It has {columns_of(table)}: name it with --label_column.")


def _values_recur(values: "pd.Series[str]") -> bool:
    """Values that hardly recur are measurements or names, whatever the column is called."""
    return values.nunique() <= max(2, len(values) // 2)


def _looks_like_labels(values: "pd.Series[str]") -> bool:
    """Few distinct values that recur often, and no decimals."""
    distinct = values.unique()
    measured = any(re.fullmatch(r"-?\d*\.\d*[1-9]\d*", value) for value in distinct)
    return 2 <= len(distinct) <= max(2, len(values) // 5) and not measured


def clean_labels(values: "pd.Series[str]") -> "pd.Series[str]":
    """Stripped; 0.0 and 1.0, as spreadsheets write integers next to gaps, become 0 and 1."""
    stripped = values.str.strip()
    filled = stripped[stripped != ""]
    if len(filled) and filled.str.fullmatch(r"-?\d+\.0*").all():
        return stripped.str.replace(r"\.0*$", "", regex=True)
    return stripped


def columns_of(table: pd.DataFrame) -> str:
    return ", ".join(repr(column) for column in table.columns)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """'10' sorts after '9', and 'class 2' before 'class 10'."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts if part]


def natural_sort(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (natural_key(name), name))
