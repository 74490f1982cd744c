"""The user's data (CSV, JSON, JSONL, Parquet, folders) as one table of rows, none dropped."""

import logging
import os
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from spectacles.core.config import DatasetConfig
from spectacles.core.errors import UserError
from spectacles.data import label_sets
from spectacles.data.folders import as_text, files_below, is_text, subfolders
from spectacles.data.images import SUFFIXES
from spectacles.data.schemas import GIVEN, SLICE_PREFIX
from spectacles.data.tables import clean_labels, file_names, find_id_column, find_label_columns, read_table, require

log = logging.getLogger("spectacles")

SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """`frame` has the columns schemas.GIVEN and a slice_<name> for each of --slice_columns; unknown text is ''."""

    frame: pd.DataFrame
    label_column: str
    """Several are separated by commas."""
    id_column: str
    multi_label: bool = False
    """Whether an image may have several labels: each is then a text as `label_sets.join` returns it."""


def read_rows(config: DatasetConfig) -> Rows:
    """Every row of the training and test data. Raises UserError where the data cannot be understood."""
    if config.train_csv is not None:
        train, label_columns, id_column = _read_table(config, config.train_csv, _image_dir(config), "train")
    elif config.image_dir is not None:
        _reject_column_flags(config)
        train, label_columns, id_column = _read_folder(config.image_dir), ["label"], ""
    else:
        raise UserError("no training data: give --train_csv FILE (with --image_dir), or --image_dir FOLDER alone.")
    tables = [train]
    if config.test_csv is not None:
        folder = config.test_dir or config.image_dir or config.test_csv.parent
        labels = set(train["label"]) - {""}
        test, _, id_column = _read_table(config, config.test_csv, folder, "test", label_columns, labels)
        tables.append(test)
    elif config.test_dir is not None:
        tables.append(_read_test_folder(config.test_dir, set(train["label"])))
    frame = pd.concat(tables, ignore_index=True)
    slices = [SLICE_PREFIX + name for name in slice_names(config)]
    frame = frame.fillna(dict.fromkeys(slices, ""))
    return Rows(frame, ",".join(label_columns), id_column, config.multi_label or len(label_columns) > 1)


def slice_names(config: DatasetConfig) -> list[str]:
    """The columns of --slice_columns, each once."""
    names = (name.strip() for name in (config.slice_columns or "").split(","))
    return list(dict.fromkeys(name for name in names if name))


def _reject_column_flags(config: DatasetConfig) -> None:
    flags = ("label_column", "multi_label", "group_column", "split_column", "file_column", "filename_template",
             "slice_columns")  # fmt: skip
    for flag in flags:
        if getattr(config, flag) not in (None, False):
            raise UserError(f"--{flag} applies to a table, and there is none: add --train_csv, or leave it out.")


def _read_table(
    config: DatasetConfig, path: Path, folder: Path, source: str, of_train: Sequence[str] = (),
    labels: Set[str] = frozenset(),
) -> tuple[pd.DataFrame, list[str], str]:  # fmt: skip
    table = read_table(path)
    files = file_names(table, path, config.file_column, config.filename_template)
    file_column = str(files.name)
    id_column = find_id_column(table, file_column)
    slices = slice_names(config)
    known = {file_column, id_column, config.group_column or "", config.split_column or "", *slices}
    if source == "train":
        label_columns = find_label_columns(table, path, config.label_column, known)
        require(table, path, [config.group_column or ""], "--group_column")
        require(table, path, slices, "--slice_columns")
    else:
        label_columns = _test_label_columns(table, path, of_train)
        if not label_columns:
            _check_renamed_labels(table, path, ",".join(of_train), known, labels)

    def text(column: str | None) -> "pd.Series[str]":
        return table[column].str.strip() if column and column in table.columns else pd.Series([""] * len(table))

    frame = pd.DataFrame(
        {
            "source": source,
            "row": range(len(table)),
            "file": files.str.strip(),
            "path": paths_of(files, folder),
            "label": _label_texts(table, path, label_columns, config.multi_label) if label_columns else text(None),
            "group": text(config.group_column),
            "id": text(id_column),
            "given_split": "test" if source == "test" else _given_splits(table, path, config.split_column),
            **{SLICE_PREFIX + name: text(name) for name in slices},
        }
    )
    _check_folder(frame, folder, path)
    return frame, label_columns, id_column


def _test_label_columns(table: pd.DataFrame, path: Path, of_train: Sequence[str]) -> list[str]:
    """The training table's label columns, or none where all are missing. Raises UserError where some are missing."""
    missing = [column for column in of_train if column not in table.columns]
    if missing and len(missing) < len(of_train):
        raise UserError(
            f"{path} has no column {missing[0]!r}, but others of {', '.join(of_train)}: add it to score the test data, "
            "or take all of them out to only predict them."
        )
    return [] if missing else list(of_train)


def _label_texts(table: pd.DataFrame, path: Path, columns: Sequence[str], multi_label: bool) -> "pd.Series[str]":
    if len(columns) > 1:
        return label_sets.of_columns(table, path, columns)
    [column] = columns
    return label_sets.of_column(table[column], path) if multi_label else clean_labels(table[column])


def _given_splits(table: pd.DataFrame, path: Path, column: str | None) -> "pd.Series[str] | str":
    """train, val, test or '' for each row. Raises UserError for any other word."""
    if column is None:
        return ""
    require(table, path, [column], "--split_column")
    words = table[column].str.strip().str.lower()
    splits = words.map({**SPLIT_FOLDERS, "": ""})
    if splits.isna().any():
        row = int(splits.isna().to_numpy().argmax())
        raise UserError(
            f"{path}, row {row + 1}: {table[column].iloc[row]!r} in column {column!r} is not train, val or test."
        )
    return splits


def _check_renamed_labels(
    table: pd.DataFrame, path: Path, label_column: str, known: set[str], labels: Set[str]
) -> None:
    """Raises UserError for labels under another name than in training: they would silently not be scored."""
    for column in table.columns:
        values = set(clean_labels(table[column])) - {""}
        if column not in known and values and values <= labels:
            raise UserError(
                f"{path} has no column {label_column!r}, but {column!r} holds the same labels: rename it to score the "
                "test data, or take it out to only predict them."
            )


def _read_folder(folder: Path) -> pd.DataFrame:
    """One folder per class, or train, val and test folders with one folder per class in each."""
    names = subfolders(folder)
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in SPLIT_FOLDERS}
    if not all(subfolders(folder / name) for name, split in splits.items() if split == "train"):
        splits = {}  # a class called train
    if "train" in splits.values():
        rows = [row for name, split in splits.items() for row in _class_folders(folder / name, folder, split)]
        classes = {folder / name / inner for name in splits for inner in subfolders(folder / name)}
    else:
        rows = _class_folders(folder, folder, "")
        classes = {folder / name for name in names}
    if not rows:
        raise UserError(f"--image_dir {folder} has no class folders with files in them; with a CSV, add --train_csv.")
    for path in _strays(folder, classes):
        name = path.relative_to(folder)
        rows.append((path, name.as_posix(), "", "test" if splits.get(name.parts[0]) == "test" else ""))
    return _folder_frame(rows, "train")


def _read_test_folder(folder: Path, labels: set[str]) -> pd.DataFrame:
    names = subfolders(folder)
    if labels & set(names):  # unknown classes are rejected row by row
        paths = _strays(folder, {folder / name for name in names})
        rows = _class_folders(folder, folder, "test")
    else:
        paths, rows = files_below(folder), []
    rows += [(path, path.relative_to(folder).as_posix(), "", "test") for path in paths]
    if not rows:
        raise UserError(f"--test_dir {folder} holds no files.")
    return _folder_frame(rows, "test")


def _class_folders(folder: Path, root: Path, split: str) -> list[tuple[Path, str, str, str]]:
    rows = []
    for name in subfolders(folder):
        paths = files_below(folder / name)
        if not paths:
            log.info("  the folder %s holds no files: it is not used as a class", as_text(str(folder / name)))
        rows += [(path, path.relative_to(root).as_posix(), name, split) for path in paths]
    return rows


def _strays(folder: Path, classes: set[Path]) -> list[Path]:
    """Images beside the class folders, and dangling links: they are unlabelled test data or rejected, never dropped."""
    paths = files_below(folder, skip=classes)
    return [path for path in paths if path.suffix.lower() in SUFFIXES or not os.path.exists(path)]


def _folder_frame(rows: list[tuple[Path, str, str, str]], source: str) -> pd.DataFrame:
    """A path that is not UTF-8 cannot be stored and becomes '': its file is rejected."""
    paths = [str(path.absolute()) for path, *_ in rows]
    texts = [[path if is_text(path) else "", *map(as_text, rest)] for path, (_, *rest) in zip(paths, rows, strict=True)]
    frame = pd.DataFrame(texts, columns=["path", "file", "label", "given_split"])
    return frame.assign(source=source, row=range(len(frame)), group="", id="")[list(GIVEN)]


def paths_of(names: "pd.Series[str]", folder: Path) -> list[str]:
    """Absolute paths of names from a table: surrounding spaces belong to a name where there is such a file."""
    return [str((folder / _exact(name, folder)).absolute()) for name in names]


def _exact(name: str, folder: Path) -> str:
    stripped = name.strip()
    return name if name != stripped and os.path.isfile(folder / name) else stripped


def _image_dir(config: DatasetConfig) -> Path:
    assert config.train_csv is not None
    return config.image_dir or config.train_csv.parent


def _check_folder(frame: pd.DataFrame, folder: Path, table: Path) -> None:
    if not os.path.isdir(folder):
        raise UserError(f"the image folder {folder} does not exist: set --image_dir (or --test_dir).")
    if not any(map(os.path.isfile, frame["path"])):
        raise UserError(
            f"none of the {len(frame)} files listed in {table} can be found, for example {frame['path'].iloc[0]}: "
            "set --image_dir (or --test_dir) to the folder that holds them, or --filename_template."
        )
