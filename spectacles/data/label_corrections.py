"""label_fixes.csv: a person's decisions about doubtful labels, read, checked and applied to the rows of the data.

The user's own table is never changed.
"""

from pathlib import Path

import pandas as pd

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path
from spectacles.core.run_dir import LATEST, RunDir, find_run
from spectacles.data import label_sets, label_text
from spectacles.data.label_columns import match_labels
from spectacles.data.schemas import LABEL_FIXES
from spectacles.data.table_files import read_table
from spectacles.data.tables import require

FILE_NAME = "label_fixes.csv"
DECISIONS = ("changed", "confirmed", "removed")
REMOVED = "removed by review"


def read_fixes(path: Path) -> pd.DataFrame:
    """LABEL_FIXES in the order of the decisions; several reviews may follow each other.

    Raises UserError for a malformed file, before a run begins: the dataset stage would reject it as well, but later.
    """
    table = _read_columns(path)
    for number, (file, _, fixed, decision, run) in enumerate(table.itertuples(index=False), start=1):
        where = f"{path}, row {number}"
        if not file or not run:
            raise UserError(f"{where}: the file or the run is not named: save the file again from review.html.")
        _check_decision(decision, where)
        if decision == "changed" and not fixed:
            raise UserError(f"{where}: the label of {file} was changed, but 'fixed_label' is empty.")
    return table


def find_reviewed_run(path: Path, output_dir: Path) -> RunDir:
    """The run that the last review is about. Raises UserError where `output_dir` does not hold it."""
    name = read_fixes(path)["run"].iloc[-1]
    if name == LATEST or not (output_dir / name / "config.yaml").is_file():
        raise UserError(
            f"--label_fixes {path} comes from the run {name!r}, which {output_dir} does not hold: "
            "name the folder that does with --output_dir."
        )
    return find_run(output_dir, name)


def copy_fixes(path: Path, run_dir: RunDir) -> Path:
    """A copy in the run folder: the next review will overwrite the user's file."""
    content = path.read_bytes()
    with atomic_path(run_dir.path / FILE_NAME) as temporary:
        temporary.write_bytes(content)
    return run_dir.path / FILE_NAME


def fixes_of_run(run_dir: RunDir) -> pd.DataFrame:
    """The decisions that a run was made with; an empty table where there were none."""
    path = run_dir.load_config().get("label_fixes")
    return read_fixes(Path(path)) if path else LABEL_FIXES.empty()


def apply_fixes(frame: pd.DataFrame, path: Path, multi_label: bool = False) -> tuple[pd.DataFrame, str]:
    """(`frame` with the fixed labels and a text column `review` that says what happened to a row, name of the run that
    was reviewed or '').

    Decisions are applied in order, so a second review may follow the first. `frame` has the columns source, file, path
    and label. Raises UserError for a decision that does not fit the data.
    """
    fixes = _read_columns(path)
    known = set(frame["label"])
    fixes = fixes.assign(**{name: match_labels(fixes[name], known) for name in ("given_label", "fixed_label")})
    names = frame["file"].str.strip()
    candidates = frame[names.isin(fixes["file"].str.strip())]
    rows_of = {str(name): rows for name, rows in candidates.groupby(names)}
    classes = _classes(frame.loc[frame["source"] == "train", "label"], multi_label)
    label = frame["label"].copy()
    removed = pd.Series(False, index=frame.index)
    previous: dict[str, tuple[str, ...]] = {}
    for number, fix in enumerate(fixes.itertuples(index=False), start=1):
        file, given, fixed, decision, _ = map(str.strip, fix)
        if previous.get(file) == (given, fixed, decision):
            continue  # the file holds the same review twice
        previous[file] = (given, fixed, decision)
        where = f"{path}, row {number}"
        rows = _matching_rows(rows_of.get(file), label, removed, file, given, where)
        _check_decision(decision, where)
        if decision == "changed":
            label[rows] = _fixed_label(fixed, classes, multi_label, where)
        removed[rows] = decision == "removed"
    return frame.assign(label=label, review=_outcomes(frame["label"], label, removed)), _last_run(fixes["run"])


def summarise_fixes(review: "pd.Series[str]") -> str:
    removed = int((review == REMOVED).sum())
    return f"label fixes: {int((review != '').sum()) - removed} labels changed, {removed} rows removed"


def _read_columns(path: Path) -> pd.DataFrame:
    table = read_table(path)
    require(table, path, LABEL_FIXES.names, "--label_fixes")
    return table[LABEL_FIXES.names]


def _check_decision(decision: str, where: str) -> None:
    if decision not in DECISIONS:
        raise UserError(f"{where}: the decision {decision!r} is none of {', '.join(DECISIONS)}.")


def _classes(labels: "pd.Series[str]", multi_label: bool) -> dict[str, str]:
    """Label without surrounding spaces -> label."""
    return {name.strip(): name for name in (label_sets.names(labels) if multi_label else labels.unique()) if name}


def _fixed_label(text: str, classes: dict[str, str], multi_label: bool, where: str) -> str:
    """Raises UserError for a label that does not occur in training."""
    names = label_text.parts(text) if multi_label else [text]
    if unknown := [name for name in names if name not in classes] or ([text] if not text else []):
        raise UserError(
            f"{where}: the fixed label {unknown[0]!r} does not occur in the training data; "
            f"it has {', '.join(map(repr, list(classes)[:20]))}."
        )
    return label_sets.join(names) if multi_label else classes[text]


def _matching_rows(
    rows: pd.DataFrame | None, label: "pd.Series[str]", removed: "pd.Series[bool]", file: str, given: str, where: str
) -> pd.Index:
    """Rows of the file whose label, after the decisions so far, is `given`. Raises UserError where there is none, or
    where they are of two files."""
    if rows is None:
        raise UserError(f"{where}: no row of the data has the file {file!r}.")
    current = label[rows.index[~removed[rows.index]]].str.strip()
    matching = current.index[current == given]
    if not given or not len(matching):
        labels = ", ".join(map(repr, current[current != ""].unique())) or "no label (any more)"
        raise UserError(f"{where}: the given label of {file} is {given!r}, but the data say {labels}.")
    if rows.loc[matching, "path"].nunique() > 1:
        raise UserError(f"{where}: several files of the data are called {file!r}: rename one, or take the row out.")
    return matching


def _outcomes(given: "pd.Series[str]", label: "pd.Series[str]", removed: "pd.Series[bool]") -> "pd.Series[str]":
    """What the review did to each row, in words; '' for nothing."""
    changed = given != label
    outcomes = pd.Series("", index=given.index)
    outcomes[changed] = "label changed from " + given[changed] + " to " + label[changed] + " by review"
    outcomes[removed] = REMOVED
    return outcomes


def _last_run(names: "pd.Series[str]") -> str:
    """The run of the newest review; '' where no row names one."""
    named = names[names.str.strip() != ""]
    return named.iloc[-1].strip() if len(named) else ""
