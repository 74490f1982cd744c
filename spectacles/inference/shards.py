"""Predictions as Parquet files in one folder, one per fixed part of the inputs. A part is written atomically: it is
complete or missing, whichever worker wrote it and however often."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import BinaryIO

import pyarrow as pa
from pyarrow import parquet

from spectacles.core.errors import UserError
from spectacles.data import remote_files
from spectacles.inference.inputs import Inputs
from spectacles.inference.prediction_rows import Cell

PLAN, TRIES = "plan.json", ".tries"
FEWEST, MOST = 100, 20_000
"""Rows of a part: enough to be worth a file, few enough to lose with a worker and to hold in memory."""
PARTS = 1000
"""The aim."""
KINDS = {str: "text", float: "number", bool: "flag"}
ARROW_TYPES = {"text": pa.string(), "number": pa.float64(), "flag": pa.bool_()}
NOTE = b"spectacles"
FOOTER = 1 << 16


@dataclass(frozen=True)
class Shards:
    folder: str
    """A path or an address."""
    rows: int
    rows_a_part: int
    inputs: str
    """sha256 of the inputs."""
    model_id: str
    columns: dict[str, str]
    """Name -> text, number or flag."""

    @property
    def parts(self) -> range:
        return range(-(-self.rows // self.rows_a_part))

    def span(self, part: int) -> tuple[int, int]:
        return part * self.rows_a_part, min(self.rows, (part + 1) * self.rows_a_part)

    def file(self, part: int) -> str:
        return f"part-{part + 1:05}-of-{len(self.parts):05}.parquet"

    def place(self, name: str) -> str:
        return f"{self.folder.rstrip('/')}/{name}"

    def write(self, part: int, rows: Sequence[Sequence[Cell]], outcomes: Counter[str]) -> None:
        """`outcomes`: number of rows by `prediction_rows.outcome_kind`. Raises OSError."""
        types = {name: ARROW_TYPES[kind] for name, kind in self.columns.items()}
        note = json.dumps({"plan": self.digest(), "outcomes": outcomes})
        schema = pa.schema(types.items(), metadata={NOTE: note})
        columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), types.values(), strict=True)]
        content = BytesIO()
        parquet.write_table(pa.Table.from_arrays(columns, schema=schema), content)
        remote_files.write(self.place(self.file(part)), content.getvalue())
        remote_files.remove(self.place(self._tries(part)))

    def begin(self, part: int) -> int:
        """The number of attempts at the part, this one included. Raises OSError."""
        place = self.place(self._tries(part))
        try:
            with remote_files.open_file(place) as file:
                tries = int(file.read()) + 1
        except (FileNotFoundError, ValueError):
            tries = 1
        remote_files.write(place, str(tries).encode())
        return tries

    def tidy(self) -> None:
        """Removes the leftovers of parts that were begun. Raises OSError."""
        for name in remote_files.names_in(self.folder):
            if name.endswith(TRIES) or name.startswith(remote_files.UNFINISHED):
                remote_files.remove(self.place(name))

    def _tries(self, part: int) -> str:
        return f"{self.file(part)}{TRIES}"

    def finished(self) -> dict[int, Counter[str]]:
        """The finished parts, with their outcomes, as recorded in the files. Raises OSError."""
        present = remote_files.names_in(self.folder)
        candidates = [part for part in self.parts if self.file(part) in present]
        with ThreadPoolExecutor(remote_files.READERS) as pool:
            found = dict(zip(candidates, pool.map(self._outcomes, candidates), strict=True))
        return {part: outcomes for part, outcomes in found.items() if outcomes is not None}

    def _outcomes(self, part: int) -> Counter[str] | None:
        """None where the file is not this part of this plan."""
        start, stop = self.span(part)
        with remote_files.open_file(self.place(self.file(part))) as file:
            end = _end(file)
        try:
            footer = parquet.read_metadata(BytesIO(end))
            note = json.loads((footer.metadata or {}).get(NOTE, b"{}"))
        except (OSError, ValueError):  # how Arrow reports a file that it cannot read
            return None
        if footer.num_rows != stop - start or note.get("plan") != self.digest():
            return None
        return Counter(note["outcomes"])

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(_plan(self)).encode()).hexdigest()


def open_folder(folder: str, inputs: Inputs, model_id: str, columns: dict[str, type]) -> Shards:
    """A new folder of parts, or one begun for the same inputs and model. Raises UserError for any other."""
    rows = len(inputs.paths)
    kinds = {name: KINDS[kind] for name, kind in columns.items()}
    shards = Shards(folder, rows, size_of_parts(rows), fingerprint(inputs), model_id, kinds)
    place = shards.place(PLAN)
    with remote_files.explained(folder):
        present = remote_files.names_in(folder)
        if PLAN in present:
            with remote_files.open_file(place) as file:
                _compare(place, file.read(), _plan(shards))
        elif any(not name.startswith(remote_files.UNFINISHED) for name in present):
            raise UserError(f"--output {folder} is a folder with other files in it: name a new one.")
        else:
            remote_files.write(place, json.dumps(_plan(shards), indent=1).encode())
    return shards


def _end(file: BinaryIO) -> bytes:
    """Enough of a Parquet file to read its footer, whose length stands before the last four bytes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - FOOTER))
    end = file.read()
    wanted = int.from_bytes(end[-8:-4], "little") + 8
    if len(end) < wanted <= size:
        file.seek(size - wanted)
        end = file.read()
    return b"PAR1" + end


def size_of_parts(rows: int) -> int:
    return min(max(-(-rows // PARTS), FEWEST), MOST)


def _plan(shards: Shards) -> dict[str, object]:
    """Without the folder, which may be moved."""
    return {name: value for name, value in asdict(shards).items() if name != "folder"}


def _compare(place: str, content: bytes, now: dict[str, object]) -> None:
    try:
        before = dict(json.loads(content))
    except (ValueError, TypeError):
        raise UserError(f"{place} is damaged: name another --output.") from None
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(
                f"{place} was begun with {name.replace('_', ' ')} {before.get(name)}, and now it is {value}: "
                "use the same files, model and --top_k as before, or another --output."
            )


def fingerprint(inputs: Inputs) -> str:
    digest = hashlib.sha256()
    for values in (inputs.paths, inputs.names, inputs.ids):
        digest.update(f"{len(values)} ".encode())
        for value in values:
            digest.update(value.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
