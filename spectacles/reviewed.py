"""What a person has decided in review.html, for those who do not apply it: of which run, about which files."""

from pathlib import Path

import pandas as pd

from spectacles import run_dir as runs
from spectacles.errors import UserError
from spectacles.label_fixes import COLUMNS, DECISIONS
from spectacles.run_dir import RunDir, atomic_path
from spectacles.tables import read_table, require

COPY = "label_fixes.csv"


def read(path: Path) -> pd.DataFrame:
    """COLUMNS as text, in the order of the decisions; several reviews may follow each other. Raises UserError for a
    file of another form, which dataset would refuse as well, but later."""
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
    if name == runs.LATEST or not (output_dir / name / "config.yaml").is_file():
        raise UserError(
            f"--label_fixes {path} comes from the run {name!r}, which {output_dir} does not hold: "
            "name the folder that does with --output_dir."
        )
    return runs.find(output_dir, name)


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
