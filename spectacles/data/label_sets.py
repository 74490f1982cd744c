"""Labels as text and as numbers: one class per image, or any number of labels, such as indoor|night."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from spectacles.core.wording import count_of, noun_of
from spectacles.data.label_text import NONE, SEPARATOR, escape, parts
from spectacles.data.names import natural_sort

if TYPE_CHECKING:
    import pandas as pd


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
