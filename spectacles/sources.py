"""What the person gave (CSV, JSON, JSONL, folders) as one table of rows, none dropped."""

import json
import os
import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from spectacles.config import DatasetConfig
from spectacles.errors import UserError
from spectacles.images import SUFFIXES

FILE_NAMES = ("file", "filename", "file_name", "image", "image_file", "image_name", "img", "path", "filepath",
              "file_path", "image_path", "photo", "picture")  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "y")
ID_NAMES = ("id", "image_id", "img_id", "index", "uid", "uuid", "")
SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "test": "test", "testing": "test"}  # fmt: skip
COLUMNS = ["source", "row", "file", "path", "label", "group", "id", "given_split"]


@dataclass(frozen=True)
class Rows:
    """`frame` has COLUMNS, all text but `row`; what is unknown is ''."""

    frame: pd.DataFrame
    label_column: str
    id_column: str


def read_rows(config: DatasetConfig) -> Rows:
    """Every row of the training and test data as given. Raises UserError where the data cannot be understood."""
    if config.train_csv is not None:
        train, label_column, id_column = _read_table(config, config.train_csv, _image_dir(config), "train")
    elif config.image_dir is not None:
        _refuse_column_flags(config)
        train, label_column, id_column = _read_folder(config.image_dir), "label", ""
    else:
        raise UserError("no training data: give --train_csv FILE (with --image_dir), or --image_dir FOLDER alone.")
    tables = [train]
    if config.test_csv is not None:
        folder = config.test_dir or config.image_dir or config.test_csv.parent
        labels = set(train["label"]) - {""}
        test, _, id_column = _read_table(config, config.test_csv, folder, "test", label_column, labels)
        tables.append(test)
    elif config.test_dir is not None:
        tables.append(_read_test_folder(config.test_dir, set(train["label"])))
    return Rows(pd.concat(tables, ignore_index=True), label_column, id_column)


def _refuse_column_flags(config: DatasetConfig) -> None:
    for flag in ("label_column", "group_column", "split_column", "file_column", "filename_template"):
        if getattr(config, flag) is not None:
            raise UserError(f"--{flag} speaks of a table, and folders have none: add --train_csv, or leave it out.")


def read_table(path: Path) -> pd.DataFrame:
    """A CSV (comma, semicolon or tab), JSON or JSONL file as text columns, '' for missing. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
            frame = pd.DataFrame(_json_records(path))
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, sep=_delimiter(path), encoding="utf-8-sig",
                                skipinitialspace=True)  # fmt: skip
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path} cannot be read as a table: {error}.") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    if any(column.lower().endswith(SUFFIXES) for column in frame.columns):
        raise UserError(f"the first line of {path} is data, not a header: put one above it, such as 'file,label'.")
    if not isinstance(frame.index, pd.RangeIndex):
        raise UserError(f"{path} has rows with more cells than its header: give every column a name.")
    if frame.empty:
        raise UserError(f"{path} has no rows.")
    return frame.astype(object).where(frame.notna(), "").astype(str)


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
    """{file: label, file: label, ...} rather than {column: value, ...}."""
    return bool(item) and all(str(key).lower().endswith(SUFFIXES) for key in item)


def _read_table(
    config: DatasetConfig, path: Path, folder: Path, source: str, train_label: str = "", labels: Set[str] = frozenset()
) -> tuple[pd.DataFrame, str, str]:
    table = read_table(path)
    files = file_names(table, path, config.file_column, config.filename_template)
    file_column = str(files.name)
    id_column = find_id_column(table, file_column)
    known = {file_column, id_column, config.group_column or "", config.split_column or ""}
    if source == "train":
        label_column = _find_label_column(table, path, config.label_column, known)
    else:
        label_column = train_label if train_label in table.columns else ""
        _check_renamed_labels(table, path, label_column or train_label, known, labels)
    if config.group_column and config.group_column not in table.columns and source == "train":
        raise UserError(f"{path} has no column {config.group_column!r} (--group_column); it has {_list(table)}.")
    empty = pd.Series([""] * len(table))
    frame = pd.DataFrame(
        {
            "source": source,
            "row": range(len(table)),
            "file": files.str.strip(),
            "path": [str((folder / name).absolute()) for name in files.str.strip()],
            "label": _clean_labels(table[label_column]) if label_column else empty,
            "group": table[config.group_column].str.strip() if config.group_column in table.columns else empty,
            "id": table[id_column].str.strip() if id_column else empty,
            "given_split": "test" if source == "test" else _given_splits(table, path, config.split_column),
        }
    )
    _check_folder(frame, folder, path)
    return frame, label_column, id_column


def _given_splits(table: pd.DataFrame, path: Path, column: str | None) -> "pd.Series[str] | str":
    """train, val, test or '' for each row. Raises UserError for another word."""
    if column is None:
        return ""
    if column not in table.columns:
        raise UserError(f"{path} has no column {column!r} (--split_column); it has {_list(table)}.")
    words = table[column].str.strip().str.lower()
    splits = words.map({**SPLIT_FOLDERS, "": ""})
    if splits.isna().any():
        row = int(splits.isna().to_numpy().argmax())
        raise UserError(
            f"{path}, row {row + 1}: {table[column].iloc[row]!r} in column {column!r} is none of train, val, test."
        )
    return splits


def _check_renamed_labels(
    table: pd.DataFrame, path: Path, label_column: str, known: set[str], labels: Set[str]
) -> None:
    """Labels under another name than in training would silently not be scored. Raises UserError."""
    if label_column in table.columns:
        return
    for column in table.columns:
        values = set(_clean_labels(table[column])) - {""}
        if column not in known and values and values <= labels:
            raise UserError(
                f"{path} has no column {label_column!r}, but {column!r} holds the same labels: call it so "
                "to have the test data scored, or take it out to have them predicted only."
            )


def file_names(table: pd.DataFrame, path: Path, file_column: str | None, template: str | None) -> "pd.Series[str]":
    """The file of each row; the series is named after its column ('' for a template). Raises UserError."""
    if template is not None:
        try:
            names = [template.format(**{str(k): v for k, v in row.items()}) for row in table.to_dict("records")]
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"--filename_template {template!r} does not fit {path}: {error}; it has {_list(table)}."
            ) from error
        return pd.Series(names, name="", dtype=str)
    if file_column is not None:
        if file_column not in table.columns:
            raise UserError(f"{path} has no column {file_column!r} (--file_column); it has {_list(table)}.")
        return table[file_column]
    by_name = {column.lower(): column for column in reversed(table.columns)}
    for name in FILE_NAMES:
        if name in by_name:
            return table[by_name[name]]
    for column in table.columns:
        if table[column].head(50).str.lower().str.endswith(SUFFIXES).mean() > 0.5:
            return table[column]
    raise UserError(
        f"no column of {path} looks like image files; it has {_list(table)}. "
        "Name it with --file_column, or build names with --filename_template, e.g. 'face-{id}.png'."
    )


def find_id_column(table: pd.DataFrame, file_column: str) -> str:
    return next((c for c in table.columns if c.lower() in ID_NAMES and c != file_column), "")


def _find_label_column(table: pd.DataFrame, path: Path, given: str | None, known: set[str]) -> str:
    if given is not None:
        if given not in table.columns:
            raise UserError(f"{path} has no column {given!r} (--label_column); it has {_list(table)}.")
        return given
    candidates = [column for column in table.columns if column not in known]
    by_name = [column for column in candidates if column.lower() in LABEL_NAMES and _comes_back(table[column])]
    by_content = [column for column in candidates if _looks_like_labels(table[column])]
    for found in (by_name, candidates, by_content):
        if len(found) == 1:
            return found[0]
    raise UserError(f"which column of {path} is the label? It has {_list(table)}: name it with --label_column.")


def _comes_back(values: "pd.Series[str]") -> bool:
    """Values that hardly ever recur are measurements or names, whatever their column is called."""
    return values.nunique() <= max(2, len(values) // 2)


def _looks_like_labels(values: "pd.Series[str]") -> bool:
    """Few distinct values that come back often, and no measurements with decimals."""
    distinct = values.unique()
    measured = any(re.fullmatch(r"-?\d*\.\d*[1-9]\d*", value) for value in distinct)
    return 2 <= len(distinct) <= max(2, len(values) // 5) and not measured


def _clean_labels(values: "pd.Series[str]") -> "pd.Series[str]":
    """Stripped; 0.0 and 1.0, as spreadsheets write integers next to gaps, become 0 and 1."""
    stripped = values.str.strip()
    filled = stripped[stripped != ""]
    if len(filled) and filled.str.fullmatch(r"-?\d+\.0*").all():
        return stripped.str.replace(r"\.0*$", "", regex=True)
    return stripped


def _read_folder(folder: Path) -> pd.DataFrame:
    """A folder a class, or train/val/test folders with a folder a class in each."""
    names = _subfolders(folder)
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in SPLIT_FOLDERS}
    if not all(_subfolders(folder / name) for name, split in splits.items() if split == "train"):
        splits = {}  # pictures of trains
    if "train" in splits.values():
        rows = [row for name, split in splits.items() for row in _class_folders(folder / name, folder, split)]
    else:
        rows = _class_folders(folder, folder, "")
    if not rows:
        raise UserError(f"--image_dir {folder} has no folder a class with files in it; with a CSV, add --train_csv.")
    listed = {row[0] for row in rows}
    for path in files_below(folder):  # pictures without a class: unlabelled test data, or refused, but never dropped
        if path not in listed and path.suffix.lower() in SUFFIXES:
            name = path.relative_to(folder)
            rows.append((path, name.as_posix(), "", "test" if splits.get(name.parts[0]) == "test" else ""))
    return _folder_frame(rows, "train")


def _read_test_folder(folder: Path, labels: set[str]) -> pd.DataFrame:
    names = _subfolders(folder)
    if labels & set(names):  # a class that training does not know is refused row by row, not guessed
        return _folder_frame(_class_folders(folder, folder, "test"), "test")
    rows = [(path, path.relative_to(folder).as_posix(), "", "test") for path in files_below(folder)]
    if not rows:
        raise UserError(f"--test_dir {folder} holds no files.")
    return _folder_frame(rows, "test")


def _class_folders(folder: Path, root: Path, split: str) -> list[tuple[Path, str, str, str]]:
    return [
        (path, path.relative_to(root).as_posix(), name, split)
        for name in _subfolders(folder)
        for path in files_below(folder / name)
    ]


def _folder_frame(rows: list[tuple[Path, str, str, str]], source: str) -> pd.DataFrame:
    texts = [[_text(str(path.absolute())), *map(_text, rest)] for path, *rest in rows]
    frame = pd.DataFrame(texts, columns=["path", "file", "label", "given_split"])
    return frame.assign(source=source, row=range(len(frame)), group="", id="")[COLUMNS]


def _text(name: str) -> str:
    """A file name that is not UTF-8 with its odd bytes spelled out: such a file is then refused as not found."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist.")
    return natural_sort([p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")])


def files_below(folder: Path) -> list[Path]:
    """All files below, hidden ones aside, whatever their suffix: what is no picture is refused by name later."""
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist.")
    found = [p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return sorted((p for p in found if p.is_file()), key=lambda p: natural_key(p.as_posix()))


def _image_dir(config: DatasetConfig) -> Path:
    assert config.train_csv is not None
    return config.image_dir or config.train_csv.parent


def _check_folder(frame: pd.DataFrame, folder: Path, table: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"the image folder {folder} does not exist: set --image_dir (or --test_dir).")
    if not any(Path(path).is_file() for path in frame["path"]):
        raise UserError(
            f"none of the {len(frame)} files that {table} names exists, for example {frame['path'].iloc[0]}: "
            "set --image_dir (or --test_dir) to the folder they are in, or --filename_template."
        )


def _list(table: pd.DataFrame) -> str:
    return ", ".join(repr(column) for column in table.columns)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """'10' sorts after '9', and 'class 2' before 'class 10'."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts if part]


def natural_sort(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (natural_key(name), name))
