"""The meaning of a table's columns: which holds the files, the labels and the ids; and the order of names."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from spectacles.core.errors import UserError
from spectacles.data.images import SUFFIXES

FILE_NAMES = ("file", "filename", "file_name", "image", "image_file", "image_name", "img", "path", "filepath",
              "file_path", "image_path", "photo", "picture")  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "y")
ID_NAMES = ("id", "image_id", "img_id", "index", "uid", "uuid", "unnamed: 0")


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
    """'' for none. The column of the files only where it has the name of an id and no other has."""
    named = [column for column in table.columns if column.lower() in ID_NAMES]
    return next((column for column in named if column != file_column), (named or [""])[0])


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


def columns_of(table: pd.DataFrame) -> str:
    return ", ".join(repr(column) for column in table.columns)
