"""Photos in folders, as archives hold them, as rows: labels and splits come from the names of folders or files."""

import logging
import os
import re
from collections.abc import Callable, Set
from pathlib import Path
from typing import Literal

import pandas as pd

from spectacles.core.errors import UserError
from spectacles.data.folders import as_text, files_below, is_text, subfolders
from spectacles.data.images import SUFFIXES
from spectacles.data.schemas import GIVEN

log = logging.getLogger("spectacles")

LabelFrom = Literal["auto", "folder", "name"]
Row = tuple[Path, str, str, str]
"""Path, name, label and given split of a file."""
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "dev": "val", "devel": "val", "development": "val", "test": "test", "testing": "test",
}  # fmt: skip
SPLIT = re.compile(
    rf"({'|'.join(SPLITS)})(?:[ _-]?(?:set|data|dataset|split|images?|imgs?|photos?|pictures?|samples?))?[ _-]?\d*",
    re.IGNORECASE,
)


def split_of(name: str) -> str | None:
    """train, val or test for a word that means it, such as Validation, train_set or test1."""
    match = SPLIT.fullmatch(name.strip())
    return SPLITS[match[1].lower()] if match else None


def read_folder(folder: Path, label_from: LabelFrom) -> tuple[pd.DataFrame, list[str]]:
    """(schemas.GIVEN, notes) of one folder per class, or of train, val and test folders with one folder per class in
    each; with `label_from` name, of files whose names begin with their label. Raises UserError."""
    inner, notes = _unwrapped(folder)
    names = subfolders(inner)
    splits = {name: split for name in names if label_from != "folder" and (split := split_of(name))}
    if label_from == "name":
        rows = _named_files(inner, folder, splits)
    else:
        splits = _with_classes(inner, names, splits)
        rows = _files_of_classes(inner, folder, names, splits)
    if not rows:
        raise UserError(f"--image_dir {folder} has no class folders with files in them; with a CSV, add --train_csv.")
    return _to_frame(rows, "train"), notes


def read_test_folder(folder: Path, labels: Set[str], label_from: LabelFrom) -> tuple[pd.DataFrame, list[str]]:
    """The same of test data: they have labels where at least one of them is among `labels`, those of training; unknown
    ones are rejected row by row later. Raises UserError."""
    inner, notes = (folder, []) if labels & set(subfolders(folder)) else _unwrapped(folder)
    names = subfolders(inner)
    if label_from == "name":
        rows = [(path, name, label, "test") for path, name, label, _ in _named_files(inner, folder, {})]
        if not labels & {label for _, _, label, _ in rows}:
            rows = [(path, name, "", "test") for path, name, _, _ in rows]
    elif labels & set(names):
        rows = _class_folders(inner, folder, "test")
        rows += _unlabelled(_strays(inner, {inner / name for name in names}), folder, lambda name: "test")
    else:
        rows = _unlabelled(files_below(folder), folder, lambda name: "test")
    if not rows:
        raise UserError(f"--test_dir {folder} holds no files.")
    return _to_frame(rows, "test"), notes


def _unwrapped(folder: Path) -> tuple[Path, list[str]]:
    """The folder itself, or the one that holds more than a single folder: archives often wrap what they hold."""
    inner = folder
    while True:
        names = subfolders(inner)
        if (
            len(names) != 1
            or split_of(names[0])
            or not subfolders(inner / names[0])
            or _strays(inner, {inner / names[0]})
        ):
            break
        inner = inner / names[0]
    if inner == folder:
        return inner, []
    within = as_text(inner.relative_to(folder).as_posix())
    return inner, [f"the classes are taken from {within!r}, the only folder in {as_text(str(folder))}"]


def _with_classes(folder: Path, names: list[str], splits: dict[str, str]) -> dict[str, str]:
    """`splits` where the folders for training hold class folders; empty where they are classes themselves. Raises
    UserError where neither is likely."""
    if "train" not in splits.values():
        return {}
    if all(subfolders(folder / name) for name, split in splits.items() if split == "train"):
        return splits
    if len(splits) == len(names) and len(set(splits.values())) > 1:
        listed = ", ".join(map(as_text, names))
        raise UserError(
            f"the folders {listed} in {as_text(str(folder))} hold photos, but no folder per class: give their labels "
            "in a table (--train_csv), or add --label_from name where the file names begin with them (cat.1.jpg); "
            f"--label_from folder takes {listed} for classes."
        )
    return {}  # a class called train


def _files_of_classes(folder: Path, root: Path, names: list[str], splits: dict[str, str]) -> list[Row]:
    if splits:
        rows = [row for name, split in splits.items() for row in _class_folders(folder / name, root, split)]
        classes = {folder / name / inner for name in splits for inner in subfolders(folder / name)}
    else:
        rows = _class_folders(folder, root, "")
        classes = {folder / name for name in names}

    def split_of_stray(name: str) -> str:
        return "test" if splits.get(name) == "test" else ""

    if rows:
        rows += _unlabelled(_strays(folder, classes), root, split_of_stray, folder)
    return rows


def _unlabelled(paths: list[Path], root: Path, split: Callable[[str], str], inside: Path | None = None) -> list[Row]:
    """`split`: of the first folder of a path below `inside`, by default `root`."""
    return [
        (path, path.relative_to(root).as_posix(), "", split(path.relative_to(inside or root).parts[0]))
        for path in paths
    ]


def _class_folders(folder: Path, root: Path, split: str) -> list[Row]:
    rows = []
    for name in subfolders(folder):
        paths = files_below(folder / name)
        if not paths:
            log.info("  the folder %s holds no files: it is not used as a class", as_text(str(folder / name)))
        rows += [(path, path.relative_to(root).as_posix(), name, split) for path in paths]
    return rows


def _named_files(folder: Path, root: Path, splits: dict[str, str]) -> list[Row]:
    return [
        (
            path,
            path.relative_to(root).as_posix(),
            label_of(path.name),
            splits.get(path.relative_to(folder).parts[0], ""),
        )
        for path in files_below(folder)
    ]


def label_of(name: str) -> str:
    """What stands before the first dot or number: cat for cat.1.jpg, cat_001.jpg and 'cat (1).jpg'; '' for 1.jpg."""
    start = re.match(r"[^.\d]*", name)
    return start[0].strip(" _-(#") if start else ""


def _strays(folder: Path, classes: set[Path]) -> list[Path]:
    """Images beside the class folders, and dangling links: they are unlabelled test data or rejected, never dropped."""
    paths = files_below(folder, skip=classes)
    return [path for path in paths if path.suffix.lower() in SUFFIXES or not os.path.exists(path)]


def _to_frame(rows: list[Row], source: str) -> pd.DataFrame:
    """A path that is not UTF-8 cannot be stored and becomes '': its file is rejected."""
    paths = [str(path.absolute()) for path, *_ in rows]
    texts = [[path if is_text(path) else "", *map(as_text, rest)] for path, (_, *rest) in zip(paths, rows, strict=True)]
    frame = pd.DataFrame(texts, columns=["path", "file", "label", "given_split"])
    return frame.assign(source=source, row=range(len(frame)), group="", id="")[list(GIVEN)]
