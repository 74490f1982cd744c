"""Decisions of a person about doubtful labels, applied to the rows; the person's own table stays as it is."""

from pathlib import Path

import pandas as pd

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path
from spectacles.core.run_dir import LATEST, RunDir, find_run
from spectacles.data import label_sets
from spectacles.data.tables import clean_labels, read_table, require

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


COPY = "label_fixes.csv"


def read(path: Path) -> pd.DataFrame:
    """COLUMNS as text, in the order of the decisions; several reviews may follow each other. Raises UserError for a
    file of another form, which dataset would reject as well, but later."""
    table = read_table(path)
    require(table, path, COLUMNS, "--label_fixes")
    for number, (file, _, fixed, decision, run) in enumerate(table[COLUMNS].itertuples(index=False), start=1):
        where = f"{path}, row {number}"
        if not file or not run:
            raise UserError(f"{where}: the file or the run is not named: save it anew from review.html.")
        if decision not in DECISIONS:
            raise UserError(f"{where}: the decision {decision!r} is none of {', '.join(DECISIONS)}.")
        if decision == "changed" and not fixed:
            raise UserError(f"{where}: the label of {file} was changed, but 'fixed_label' is empty.")
    return table[COLUMNS]


def run_before(path: Path, output_dir: Path) -> RunDir:
    """The run whose review came last. Raises UserError where `output_dir` does not hold it."""
    name = read(path)["run"].iloc[-1]
    if name == LATEST or not (output_dir / name / "config.yaml").is_file():
        raise UserError(
            f"--label_fixes {path} comes from the run {name!r}, which {output_dir} does not hold: "
            "name the folder that does with --output_dir."
        )
    return find_run(output_dir, name)


def keep(path: Path, run_dir: RunDir) -> Path:
    """A copy in the run folder: the person's own will be overwritten by the next review."""
    content = path.read_bytes()
    with atomic_path(run_dir.path / COPY) as temporary:
        temporary.write_bytes(content)
    return run_dir.path / COPY


def of_run(run_dir: RunDir) -> pd.DataFrame:
    """The decisions that a run was made with; no row where there were none."""
    path = run_dir.load_config().get("label_fixes")
    return read(Path(path)) if path else pd.DataFrame(columns=COLUMNS, dtype=str)
