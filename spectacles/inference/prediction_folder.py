"""A folder of Parquet files with predictions, begun for certain inputs: which of their rows it holds already."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from spectacles.core.errors import UserError
from spectacles.data import addresses, remote_files
from spectacles.inference.inputs import Inputs

RECORD = "_inputs.json"
"""What the folder was begun for; readers of Parquet folders pass over names that begin with an underscore."""
ROW = "row"
"""Column with the position in the inputs, from 1."""


def begin(folder: str, inputs: Inputs, model_id: str, columns: Iterable[str], prior: str | None = None) -> None:
    """`folder` (a path or an address) is new, or was begun for the same inputs, model and prior. Raises UserError."""
    now = {"rows": len(inputs.paths), "inputs": fingerprint(inputs), "model id": model_id, "columns": list(columns),
           "prior": prior}  # fmt: skip
    place = f"{folder.rstrip('/')}/{RECORD}"
    with remote_files.explained(folder):
        present = remote_files.names_in(folder)
        if RECORD in present:
            with remote_files.open_file(place) as file:
                _compare(place, file.read(), now)
        elif any(not name.startswith(remote_files.UNFINISHED) for name in present):
            raise UserError(f"--output {folder} is a folder with other files in it: name a new one.")
        else:
            remote_files.write(place, json.dumps(now, indent=1).encode())


def read(folder: str, total: int) -> tuple[np.ndarray, Counter[str]]:
    """(positions of the inputs, from 1, that have no prediction yet; number of the others by
    `prediction_rows.outcome_kind`). A file that is not whole, left by a process that was killed, is removed.

    Raises UserError where the folder cannot be reached, or a row stands in two files.
    """
    with remote_files.explained(folder):
        names = sorted(name for name in remote_files.names_in(folder) if name.endswith(".parquet"))
        with ThreadPoolExecutor(addresses.READERS) as pool:
            tables = list(pool.map(_read_or_remove, [f"{folder.rstrip('/')}/{name}" for name in names]))
    times = sum((np.bincount(rows, minlength=total + 1) for rows, _ in tables), np.zeros(total + 1, dtype=np.int64))
    if (times > 1).any():
        twice = int(times.argmax())
        holders = [name for name, (rows, _) in zip(names, tables, strict=True) if twice in rows]
        raise UserError(
            f"row {twice} stands in {' and '.join(holders)} of {folder}: two commands wrote there at the same time. "
            "Remove one of these files and run the command once more."
        )
    return np.flatnonzero(times[1:] == 0) + 1, sum((outcomes for _, outcomes in tables), Counter[str]())


def _read_or_remove(place: str) -> tuple[np.ndarray, Counter[str]]:
    try:
        with remote_files.open_file(place) as file:
            table = parquet.read_table(file, columns=[ROW, "status", "abstain_reason"])
    except pa.ArrowInvalid:  # no footer: the process that wrote it was killed
        remote_files.remove(place)
        return np.zeros(0, dtype=np.int64), Counter()
    rejected = compute.starts_with(table["status"], "rejected")
    answered = compute.if_else(compute.equal(table["abstain_reason"], ""), "answered", table["abstain_reason"])
    kinds = compute.value_counts(compute.if_else(rejected, "rejected", answered))
    return table[ROW].to_numpy(), Counter({kind["values"]: kind["counts"] for kind in kinds.to_pylist()})


def _compare(place: str, content: bytes, now: dict[str, object]) -> None:
    try:
        before = dict(json.loads(content))
    except (ValueError, TypeError):
        raise UserError(f"{place} is damaged: name another --output.") from None
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(
                f"{place} was begun with {name} {before.get(name)}, and now it is {value}: use the same files, model, "
                "--top_k and --prior as before, or another --output."
            )


def fingerprint(inputs: Inputs) -> str:
    digest = hashlib.sha256()
    for values in (inputs.paths, inputs.names, inputs.ids):
        digest.update(f"{len(values)} ".encode())
        for value in values:
            digest.update(value.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
