"""Decisions of a person about doubtful labels, applied to the rows; the person's own table stays as it is."""

from pathlib import Path

import pandas as pd

from spectacles import label_sets
from spectacles.errors import UserError
from spectacles.tables import clean_labels, read_table, require

COLUMNS = ["file", "given_label", "fixed_label", "decision", "run"]
DECISIONS = ("changed", "confirmed", "removed")
REMOVED = "removed by review"


def apply(frame: pd.DataFrame, path: Path, multi_label: bool = False) -> tuple[pd.DataFrame, str]:
    """(`frame` with labels changed and a text column `review` that tells what was done to a row, name of the run that
    was reviewed or '').

    The rows of the file are applied in order, so those of a second review may follow those of the first. `frame` has
    the columns source, file, path and label. Raises UserError for a row that does not fit the data.
    """
    fixes = read_table(path)
    require(fixes, path, COLUMNS, "--label_fixes")
    fixes = fixes.assign(given_label=clean_labels(fixes["given_label"]), fixed_label=clean_labels(fixes["fixed_label"]))
    names = frame["file"].str.strip()
    candidates = frame[names.isin(fixes["file"].str.strip())]
    places = {str(name): part for name, part in candidates.groupby(names)}
    known = _classes(frame.loc[frame["source"] == "train", "label"], multi_label)
    label, removed = frame["label"].copy(), pd.Series(False, index=frame.index)
    last: dict[str, tuple[str, ...]] = {}
    for number, fix in enumerate(fixes[COLUMNS].itertuples(index=False), start=1):
        file, given, fixed, decision, _ = map(str.strip, fix)
        if last.get(file) == (given, fixed, decision):
            continue  # the same review joined twice
        last[file] = (given, fixed, decision)
        where = f"{path}, row {number}"
        rows = _rows_meant(places.get(file), label, removed, file, given, where)
        if decision not in DECISIONS:
            raise UserError(f"{where}: the decision {decision!r} is none of {', '.join(DECISIONS)}.")
        if decision == "changed":
            label[rows] = _fixed(fixed, known, multi_label, where)
        removed[rows] = decision == "removed"
    return frame.assign(label=label, review=_tell(frame["label"], label, removed)), _run(fixes["run"])


def _classes(labels: "pd.Series[str]", multi_label: bool) -> dict[str, str]:
    """Label without spaces around it -> label."""
    return {name.strip(): name for name in (label_sets.names(labels) if multi_label else labels.unique()) if name}


def _fixed(text: str, classes: dict[str, str], multi_label: bool, where: str) -> str:
    """Raises UserError for a label that training does not know."""
    names = label_sets.parts(text) if multi_label else [text]
    if unknown := [name for name in names if name not in classes] or ([text] if not text else []):
        raise UserError(
            f"{where}: the fixed label {unknown[0]!r} does not occur in the training data; "
            f"it has {', '.join(map(repr, list(classes)[:20]))}."
        )
    return label_sets.join(names) if multi_label else classes[text]


def _rows_meant(
    rows: pd.DataFrame | None, label: "pd.Series[str]", removed: "pd.Series[bool]", file: str, given: str, where: str
) -> pd.Index:
    """Rows of the file that have the given label by now. Raises UserError where there is none, or two files."""
    if rows is None:
        raise UserError(f"{where}: no row of the data has the file {file!r}.")
    known = label[rows.index[~removed[rows.index]]].str.strip()
    meant = known.index[known == given]
    if not given or not len(meant):
        found = ", ".join(map(repr, known[known != ""].unique())) or "no label (any more)"
        raise UserError(f"{where}: the given label of {file} is {given!r}, but the data say {found}.")
    if rows.loc[meant, "path"].nunique() > 1:
        raise UserError(f"{where}: several files of the data are called {file!r}: rename one, or take the row out.")
    return meant


def _tell(given: "pd.Series[str]", label: "pd.Series[str]", removed: "pd.Series[bool]") -> "pd.Series[str]":
    changed = given != label
    told = pd.Series("", index=given.index)
    told[changed] = "label changed from " + given[changed] + " to " + label[changed] + " by review"
    told[removed] = REMOVED
    return told


def summarise(review: "pd.Series[str]") -> str:
    removed = int((review == REMOVED).sum())
    return f"label fixes: {int((review != '').sum()) - removed} labels changed, {removed} rows removed"


def _run(names: "pd.Series[str]") -> str:
    """The last one named: that of the newest review."""
    named = names[names.str.strip() != ""]
    return named.iloc[-1].strip() if len(named) else ""
