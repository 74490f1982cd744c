"""Columns of labels in people's tables -> one text for each row, as `label_text` reads it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
import pandas as pd

from spectacles.core.errors import UserError
from spectacles.data.label_sets import decode, join
from spectacles.data.label_text import NONE, escape, parts, pieces, some

YES, NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})
WHOLE = r"[-+]?\d+"


def blank_missing(labels: pd.Series[str], words: Set[str]) -> tuple[pd.Series[str], list[str]]:
    """(labels, '' where they are one of `words` in any case; a sentence that counts those)."""
    texts = labels.str.strip()
    counts = {text: int(count) for text, count in texts.value_counts().items() if str(text).casefold() in words}
    if not counts:
        return labels, []
    listed = ", ".join(f"{count} {text!r}" for text, count in counts.items())
    sentence = (
        f"missing labels: {listed} in column {labels.name!r}: these rows count as without label "
        "(--na_labels '' keeps such texts as classes)"
    )
    return labels.where(~texts.isin(list(counts)), ""), [sentence]


def clean_labels(values: pd.Series[str]) -> pd.Series[str]:
    """Stripped; 0.0 and 1.0, as spreadsheets write whole numbers next to gaps, become 0 and 1 where all are whole."""
    stripped = values.str.strip()
    filled = stripped[stripped != ""]
    if len(filled) and filled.str.fullmatch(rf"{WHOLE}(?:\.0*)?").all():
        return stripped.str.replace(r"\.0*$", "", regex=True)
    return stripped


def merged_spellings(given: pd.Series[str], cleaned: pd.Series[str]) -> list[str]:
    """A sentence for the texts that cleaning made one class."""
    pairs = pd.DataFrame({"given": given, "class": cleaned})[cleaned != ""].drop_duplicates()
    several = pairs[pairs.duplicated("class", keep=False)]
    groups = [f"{', '.join(map(repr, rows['given']))} as {name!r}" for name, rows in several.groupby("class")]
    if not groups:
        return []
    return [f"labels in several spellings are taken as one class: {some(groups, '; ')}"]


def match_labels(values: pd.Series[str], classes: Set[str]) -> pd.Series[str]:
    """Labels of other tables: as they stand where there is such a class, else as `clean_labels` writes them."""
    stripped = values.str.strip()
    return stripped.where(stripped.isin(list(classes)), clean_labels(values))


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
