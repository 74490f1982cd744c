"""Labels as text and as numbers: one class per image, or any number of labels, such as indoor|night."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from spectacles.core.errors import UserError
from spectacles.core.wording import count_of, noun_of
from spectacles.data.label_text import NONE, SEPARATOR, clean_labels, escape, parts, pieces
from spectacles.data.tables import natural_sort

YES, NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})


def join(names: Iterable[str]) -> str:
    """Each label once, in natural order, as `parts` reads them; NONE without any."""
    return SEPARATOR.join(map(escape, natural_sort(list(set(names))))) or NONE


def columns_of(label_column: str, classes: Sequence[str], multi_label: bool) -> list[str]:
    """The columns of 0 and 1 that the labels were given in, or the one column of labels."""
    columns = label_column.split(",")
    return columns if multi_label and len(columns) > 1 and set(columns) == set(classes) else [label_column]


def added(text: str, given: str) -> str:
    """Labels of `text` that `given` lacks, joined; '' where there are none."""
    more = set(parts(text)) - set(parts(given))
    return join(more) if more else ""


def names(texts: Iterable[str]) -> list[str]:
    """Every label that occurs, in natural order."""
    return natural_sort(list({name for text in set(texts) for name in parts(text)}))


def of_column(values: pd.Series[str], path: Path) -> pd.Series[str]:
    """Cells such as 'night | indoor' as `join` writes them, 'None' as NONE; '' stays ''. Raises UserError for NONE
    beside a label."""
    texts = values.str.strip()
    joined = {"": ""}
    for text in texts.unique():
        names = pieces(text)
        has_none = any(name.casefold() == NONE for name in names)
        if has_none and len(names) > 1:
            row = int((texts == text).to_numpy().argmax())
            raise UserError(
                f"{path}, row {row + 1}: {text!r}: {NONE!r} means no label, so it cannot stand beside one; a label of "
                f"that name is written {escape(NONE)}."
            )
        joined.setdefault(text, NONE if has_none else join(parts(text)) if names else "")
    return texts.map(joined)


def of_columns(table: pd.DataFrame, path: Path, columns: Sequence[str]) -> pd.Series[str]:
    """Columns of 0 and 1, one per label, as one text per row; '' where a cell is empty. Raises UserError."""
    words = pd.DataFrame({column: clean_labels(table[column]).str.lower() for column in columns})
    invalid = ~words.isin([*YES, *NO, ""])
    if invalid.to_numpy().any():
        row, number = np.argwhere(invalid.to_numpy())[0]
        column = columns[number]
        raise UserError(f"{path}, row {row + 1}: {table[column].iloc[row]!r} in column {column!r} is neither 0 nor 1.")
    texts = pd.Series(decode(words.isin(list(YES)).to_numpy().astype(np.int64), columns), index=table.index, dtype=str)
    return texts.mask((words == "").any(axis=1), "")


def encode(texts: Iterable[str], classes: Sequence[str], multi_label: bool) -> np.ndarray:
    """(N,) int64 class indices; with `multi_label` (N, K) int64 of 0 and 1."""
    numbers = {name: number for number, name in enumerate(classes)}
    if not multi_label:
        return np.array([numbers[text] for text in texts], dtype=np.int64)
    rows = [[numbers[name] for name in parts(text)] for text in texts]
    flags = np.zeros((len(rows), len(classes)), dtype=np.int64)
    flags[np.repeat(np.arange(len(rows)), [len(row) for row in rows]), [place for row in rows for place in row]] = 1
    return flags


def decode(numbers: np.ndarray, classes: Sequence[str]) -> list[str]:
    """The inverse of `encode`."""
    if numbers.ndim == 1:
        return [classes[number] for number in numbers]
    return [join(classes[place] for place in np.flatnonzero(row).tolist()) for row in numbers]


def has(texts: pd.Series[str], name: str, multi_label: bool) -> pd.Series[bool]:
    """Which rows belong to a class, or have a label."""
    return texts.map({text: name in parts(text) for text in texts.unique()}) if multi_label else texts == name


def belongs(texts: pd.Series[str], text: str, multi_label: bool) -> pd.Series[bool]:
    """The same for a label as `join` writes it alone, which differs from NONE: the images without any."""
    return has(texts, parts(text)[0], multi_label) if multi_label and text != NONE else texts == text


def count_splits(
    rows: pd.DataFrame, splits: Sequence[str], classes: Sequence[str], multi_label: bool
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """(split -> class -> images, split -> images) of labelled rows (split, label)."""
    of_split = {split: rows.loc[rows["split"] == split, "label"] for split in splits}
    counts = {split: count(texts, classes, multi_label) for split, texts in of_split.items()}
    return counts, {split: len(texts) for split, texts in of_split.items()}


def count(texts: pd.Series[str], classes: Sequence[str], multi_label: bool) -> dict[str, int]:
    """Images of each class, or with each label."""
    totals = dict.fromkeys(classes, 0)
    for text, images in texts.value_counts().items():
        for name in parts(str(text)) if multi_label else [str(text)]:
            totals[name] += int(images)
    return totals


def rare(counts: Mapping[str, Mapping[str, int]], multi_label: bool) -> list[str]:
    """Sentences about classes or labels that are too rare to be learnt or scored; `counts` as `count_splits` returns
    them."""
    noun = noun_of(multi_label)
    single = [name for name in counts["train"] if sum(of[name] for of in counts.values()) == 1]
    unseen = [name for name, images in counts["train"].items() if not images]
    lines = []
    if single:
        lines.append(
            f"{count_of(len(single), noun)} with a single image ({_some(single)}): it cannot be used both for training "
            "and for scoring, so recognition is not measured; give at least three images of each"
        )
    if unseen:
        lines.append(
            f"{count_of(len(unseen), noun)} without a training image ({_some(unseen)}): the model cannot learn to "
            "recognise it; give training images, or take it out"
        )
    for split in ("val", "test"):
        absent = [name for name, images in counts[split].items() if not images and name not in (*single, *unseen)]
        if absent and any(counts[split].values()):
            lines.append(
                f"{count_of(len(absent), noun)} without a {split} image ({_some(absent)}): how well the model "
                "does there is not known, and means are over the others"
            )
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (" ..." if len(names) > 5 else "")


def most_probable(text: str, probabilities: Sequence[float], classes: Sequence[str], multi_label: bool) -> int:
    """Index of the class `text`; with several labels, of the most probable one among them, without any, of all."""
    if not multi_label:
        return classes.index(text)
    candidates = [classes.index(name) for name in parts(text)] or range(len(classes))
    return max(candidates, key=lambda place: probabilities[place])
