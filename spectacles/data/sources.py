"""The user's data (tables and folders) as one table of rows, none dropped."""

import os
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from spectacles.core.config import DatasetConfig
from spectacles.core.errors import UserError
from spectacles.data import label_columns
from spectacles.data.folder_rows import read_folder, read_test_folder, split_of
from spectacles.data.label_columns import blank_missing, clean_labels, match_labels, merged_spellings
from spectacles.data.label_text import NONE, missing_words
from spectacles.data.schemas import SLICE_PREFIX
from spectacles.data.table_files import read_table
from spectacles.data.table_paths import locate_files
from spectacles.data.tables import file_names, find_id_column, find_label_columns, require


@dataclass(frozen=True)
class Rows:
    """`frame` has the columns schemas.GIVEN and a slice_<name> for each of --slice_columns; unknown text is ''."""

    frame: pd.DataFrame
    label_column: str
    """Several are separated by commas."""
    id_column: str
    multi_label: bool = False
    """Whether an image may have several labels: each is then a text as `label_sets.join` returns it."""
    notes: list[str] = field(default_factory=list)
    """Sentences on how the data were understood, where that is not obvious."""


@dataclass(frozen=True)
class _Table:
    """What a table, or a folder, adds to Rows."""

    frame: pd.DataFrame
    label_columns: Sequence[str]
    id_column: str
    columns: Sequence[str]
    """Of the file."""
    notes: list[str]


def read_rows(config: DatasetConfig) -> Rows:
    """Every row of the training and test data. Raises UserError where the data cannot be understood."""
    if config.train_csv is not None:
        if config.label_from != "auto":
            raise UserError("--label_from applies to folders, and there is --train_csv: leave one of them out.")
        train = _read_table(config, config.train_csv, config.image_dir or config.train_csv.parent)
    elif config.image_dir is not None:
        _reject_column_flags(config)
        frame, notes = read_folder(config.image_dir, config.label_from)
        train = _Table(frame, ["label"], "", [], notes)
    else:
        raise UserError("no training data: give --train_csv FILE (with --image_dir), or --image_dir FOLDER alone.")
    tables = [train]
    if config.test_csv is not None:
        folder = config.test_dir or config.image_dir or config.test_csv.parent
        tables.append(_read_table(config, config.test_csv, folder, train))
    elif config.test_dir is not None:
        frame, notes = read_test_folder(config.test_dir, set(train.frame["label"]), config.label_from)
        tables.append(_Table(frame, [], train.id_column, [], notes))
    frame = pd.concat([table.frame for table in tables], ignore_index=True)
    slices = [SLICE_PREFIX + name for name in slice_names(config)]
    frame = frame.fillna(dict.fromkeys(slices, ""))
    multi_label = config.multi_label or len(train.label_columns) > 1
    notes = list(dict.fromkeys(note for table in tables for note in table.notes))
    return Rows(frame, ",".join(train.label_columns), tables[-1].id_column, multi_label, notes)


def slice_names(config: DatasetConfig) -> list[str]:
    """The columns of --slice_columns, each once."""
    names = (name.strip() for name in (config.slice_columns or "").split(","))
    return list(dict.fromkeys(name for name in names if name))


def _reject_column_flags(config: DatasetConfig) -> None:
    flags = ("label_column", "multi_label", "group_column", "split_column", "file_column", "filename_template",
             "slice_columns", "na_labels")  # fmt: skip
    for flag in flags:
        if getattr(config, flag) not in (None, False):
            raise UserError(f"--{flag} applies to a table, and there is none: add --train_csv, or leave it out.")


def _read_table(config: DatasetConfig, path: Path, folder: Path, train: _Table | None = None) -> _Table:
    """`train`: that of the training data, for a table of test data."""
    table = read_table(path)
    files = file_names(table, path, config.file_column, config.filename_template)
    file_column = str(files.name)
    id_column = find_id_column(table, file_column)
    slices = slice_names(config)
    known = {file_column, id_column, config.group_column or "", config.split_column or "", *slices}
    if train is None:
        label_columns = find_label_columns(table, path, config.label_column, known)
        require(table, path, [config.group_column or ""], "--group_column")
        require(table, path, slices, "--slice_columns")
    else:
        label_columns = _test_label_columns(table, path, train.label_columns)
        if not label_columns:
            _check_renamed_labels(table, path, known, train)

    def text(column: str | None) -> "pd.Series[str]":
        return table[column].str.strip() if column and column in table.columns else pd.Series([""] * len(table))

    located = locate_files(files, folder)
    labels, notes = text(None), located.notes
    if label_columns:
        classes = None if train is None else set(train.frame["label"]) - {""}
        labels, label_notes = _label_texts(table, path, label_columns, config, classes)
        notes = [*notes, *label_notes]
    frame = pd.DataFrame(
        {
            "source": "train" if train is None else "test",
            "row": range(len(table)),
            "file": files.str.strip(),
            "path": located.paths,
            "label": labels,
            "group": text(config.group_column),
            "id": table[id_column] if id_column else "",
            "given_split": "test" if train else _given_splits(table, path, config.split_column),
            **{SLICE_PREFIX + name: text(name) for name in slices},
        }
    )
    _check_folder(frame, folder, path)
    return _Table(frame, label_columns, id_column, list(table.columns), notes)


def _test_label_columns(table: pd.DataFrame, path: Path, of_train: Sequence[str]) -> list[str]:
    """The training table's label columns, or none where all are missing. Raises UserError where some are missing."""
    missing = [column for column in of_train if column not in table.columns]
    if missing and len(missing) < len(of_train):
        raise UserError(
            f"{path} has no column {missing[0]!r}, but others of {', '.join(of_train)}: add it to score the test data, "
            "or take all of them out to only predict them."
        )
    return [] if missing else list(of_train)


def _label_texts(
    table: pd.DataFrame, path: Path, columns: Sequence[str], config: DatasetConfig, classes: Set[str] | None
) -> tuple["pd.Series[str]", list[str]]:
    """(labels, sentences on texts that were not taken as they stand). `classes`: those of the training data, for test
    data."""
    several = config.multi_label or len(columns) > 1
    missing = missing_words(config.na_labels) - ({NONE} if several else set())
    cells, notes = table.copy(deep=False), []
    for column in columns:
        cells[column], of_column = blank_missing(table[column], missing)
        notes += of_column
    if len(columns) > 1:
        return label_columns.of_columns(cells, path, columns), notes
    given = cells[columns[0]]
    if several:
        return label_columns.of_column(given, path), notes
    labels = clean_labels(given) if classes is None else match_labels(given, classes)
    return labels, notes + merged_spellings(given, labels)


def _given_splits(table: pd.DataFrame, path: Path, column: str | None) -> "pd.Series[str] | str":
    """train, val, test or '' for each row. Raises UserError for any other word."""
    if column is None:
        return ""
    require(table, path, [column], "--split_column")
    words = table[column].str.strip()
    splits = words.map({word: split_of(word) if word else "" for word in words.unique()})
    if splits.isna().any():
        row = int(splits.isna().to_numpy().argmax())
        raise UserError(
            f"{path}, row {row + 1}: {table[column].iloc[row]!r} in column {column!r} is not train, val or test."
        )
    return splits


def _check_renamed_labels(table: pd.DataFrame, path: Path, known: set[str], train: _Table) -> None:
    """Raises UserError for labels under another name than in training: they would silently not be scored. A column that
    the training data have as well is something else."""
    classes = set(train.frame["label"]) - {""}
    for column in table.columns:
        values = set(match_labels(table[column], classes)) - {""}
        if column not in {*known, *train.columns} and values and values <= classes:
            raise UserError(
                f"{path} has no column {','.join(train.label_columns)!r}, but {column!r} holds the same labels: rename "
                "it to score the test data, or take it out to only predict them."
            )


def _check_folder(frame: pd.DataFrame, folder: Path, table: Path) -> None:
    if not os.path.isdir(folder):
        raise UserError(f"the image folder {folder} does not exist: set --image_dir (or --test_dir).")
    if not any(map(os.path.isfile, frame["path"])):
        raise UserError(
            f"none of the {len(frame)} files listed in {table} can be found, for example {frame['path'].iloc[0]}: "
            "set --image_dir (or --test_dir) to the folder that holds them, or --filename_template."
        )
