"""Parts of predictions in a folder: whole or not there, of one plan, counted by what the files say."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import fsspec
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.core.errors import UserError
from spectacles.data import remote_files
from spectacles.inference import shards
from spectacles.inference.inputs import Inputs
from spectacles.inference.shards import Shards

COLUMNS: dict[str, type] = {"id": str, "file": str, "confidence": float}
Open = Callable[..., Shards]


def inputs(rows: int = 250, folder: str = "") -> Inputs:
    names = [f"{number}.png" for number in range(rows)]
    return Inputs([f"{folder}/{name}" for name in names], names, names, "id")


@pytest.fixture(params=["path", "address"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "a :: b" / "out") if request.param == "path" else f"memory://{uuid4()}/out"


def write(plan: Shards, given: Inputs, part: int) -> None:
    start, stop = plan.span(part)
    rows = [[given.ids[n], given.names[n], None if n % 10 == 0 else n / 1000] for n in range(start, stop)]
    rejected = sum(row[2] is None for row in rows)
    plan.write(part, rows, Counter({"rejected": rejected, "": len(rows) - rejected}))


def test_parts_are_counted_and_read_back(folder: str) -> None:
    plan = shards.open_folder(folder, inputs(), "model", COLUMNS)
    assert [plan.span(part) for part in plan.parts] == [(0, 100), (100, 200), (200, 250)]
    for part in (2, 0):
        write(plan, inputs(), part)
        write(plan, inputs(), part)
    assert plan.finished() == {0: {"rejected": 10, "": 90}, 2: {"rejected": 5, "": 45}}
    with remote_files.open_file(plan.place(plan.file(2))) as file:
        table = pd.read_parquet(file)
    assert plan.file(2) == "part-00003-of-00003.parquet"
    assert table["file"].tolist() == [f"{number}.png" for number in range(200, 250)]
    assert table["confidence"].isna().sum() == 5 and table["confidence"].dtype == float


def test_an_open_folder_is_gone_on_with_and_no_other(folder: str) -> None:
    write(shards.open_folder(folder, inputs(), "model", COLUMNS), inputs(), 1)
    again = shards.open_folder(folder, inputs(), "model", COLUMNS)
    assert list(again.finished()) == [1]
    for arguments, difference in [
        ((inputs(251), "model", COLUMNS), "rows 250, and now it is 251"),
        ((inputs(folder="/other"), "model", COLUMNS), "begun with inputs "),
        ((inputs(), "another", COLUMNS), "model id model, and now it is another"),
        ((inputs(), "model", {**COLUMNS, "label_2": str}), "columns "),
    ]:
        with pytest.raises(UserError, match=difference):
            shards.open_folder(folder, *arguments)


def test_a_plan_that_was_never_written_does_not_count(folder: str) -> None:
    remote_files.write(f"{folder}/{remote_files.UNFINISHED}plan.json", b"{")
    assert shards.open_folder(folder, inputs(), "model", COLUMNS).finished() == {}


def test_footers_of_any_length_are_read(folder: str) -> None:
    columns = COLUMNS | {f"p_{number:04}": float for number in range(2000)}
    plan = shards.open_folder(folder, inputs(100), "model", columns)
    plan.write(0, [["1", "a.png", *[0.5] * 2001]] * 100, Counter({"": 100}))
    with remote_files.open_file(plan.place(plan.file(0))) as file:
        assert int.from_bytes(file.read()[-8:-4], "little") > shards.FOOTER
    assert plan.finished() == {0: {"": 100}}


def test_a_folder_with_other_things_is_left_alone(folder: str) -> None:
    remote_files.write(f"{folder}/notes.txt", b"mine")
    with pytest.raises(UserError, match="with other files in it"):
        shards.open_folder(folder, inputs(), "model", COLUMNS)
    assert remote_files.names_in(folder) == {"notes.txt"}


def test_what_is_not_the_part_that_it_should_be_does_not_count(folder: str) -> None:
    plan = shards.open_folder(folder, inputs(), "model", COLUMNS)
    for part in plan.parts:
        write(plan, inputs(), part)
    with remote_files.open_file(plan.place(plan.file(0))) as file:
        content = file.read()
    remote_files.write(plan.place(plan.file(0)), content[:-20])
    remote_files.write(plan.place(plan.file(1)), content)  # right rows of the same plan would count
    remote_files.write(plan.place(plan.file(2)), content)
    assert list(plan.finished()) == [1]
    remote_files.write(plan.place(plan.file(0)), content[:-100] + bytes(92) + content[-8:])
    assert list(plan.finished()) == [1], "a footer of nothing"
    other = shards.open_folder(f"{folder}-2", inputs(), "another", COLUMNS)
    write(other, inputs(), 0)
    with remote_files.open_file(other.place(other.file(0))) as file:
        remote_files.write(plan.place(plan.file(0)), file.read())
    assert list(plan.finished()) == [1]


def test_a_part_is_begun_a_number_of_times_until_it_is_written(folder: str) -> None:
    plan = shards.open_folder(folder, inputs(), "model", COLUMNS)
    assert [plan.begin(0), plan.begin(0), plan.begin(1), plan.begin(0)] == [1, 2, 1, 3]
    write(plan, inputs(), 0)
    assert plan.begin(0) == 1
    remote_files.write(plan.place(f"{remote_files.UNFINISHED}x.parquet"), b"")
    remote_files.write(plan.place(f"{plan.file(2)}.tries"), b"")
    assert plan.begin(2) == 1, "of a worker that died while it wrote that"
    shards.open_folder(folder, inputs(), "model", COLUMNS).tidy()
    assert remote_files.names_in(folder) == {shards.PLAN, plan.file(0)}
    assert plan.begin(1) == 1


def test_a_damaged_plan_is_reported(folder: str) -> None:
    remote_files.write(f"{folder}/{shards.PLAN}", b"{")
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        shards.open_folder(folder, inputs(), "model", COLUMNS)


@given(rows=st.integers(1, 10_000_000))
def test_any_number_of_rows_is_divided_into_whole_parts(rows: int) -> None:
    size = shards.size_of_parts(rows)
    plan = Shards("x", rows, size, "", "", {})
    spans = [plan.span(part) for part in plan.parts]
    assert spans[0][0] == 0 and spans[-1][1] == rows
    assert all(stop == start for (_, stop), (start, _) in pairwise(spans))
    assert all(0 < stop - start <= shards.MOST for start, stop in spans)
    assert len(spans) <= max(shards.PARTS, -(-rows // shards.MOST))


def test_systems_of_files_say_the_same_of_a_file_that_is_not_there(folder: str) -> None:
    assert remote_files.names_in(folder) == set()
    remote_files.remove(f"{folder}/none")
    with pytest.raises(FileNotFoundError), remote_files.open_file(f"{folder}/none"):
        pass
    remote_files.write(f"{folder}/some", json.dumps(1).encode())
    assert fsspec.open(f"{folder}/some") if remote_files.is_address(folder) else Path(folder, "some").is_file()
