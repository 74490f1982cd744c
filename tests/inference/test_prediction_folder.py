"""A folder of predictions: begun for certain inputs, read as whole files, each row once."""

from collections import Counter
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import fsspec
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.core.errors import UserError
from spectacles.data import addresses, remote_files
from spectacles.inference import prediction_folder
from spectacles.inference.inputs import Inputs
from spectacles.inference.prediction_folder import RECORD

COLUMNS = ("id", "file", "confidence")


def inputs(rows: int = 250, folder: str = "") -> Inputs:
    names = [f"{number}.png" for number in range(rows)]
    return Inputs([f"{folder}/{name}" for name in names], names, names, "id")


@pytest.fixture(params=["path", "address"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "a :: b" / "out") if request.param == "path" else f"memory://{uuid4()}/out"


def content_of(*rows: int, status: str = "predicted", reason: str = "") -> bytes:
    buffer = BytesIO()
    pd.DataFrame({"row": rows, "status": status, "abstain_reason": reason, "label": "a"}).to_parquet(buffer)
    return buffer.getvalue()


def test_rows_and_outcomes_are_counted(folder: str) -> None:
    prediction_folder.begin(folder, inputs(), "model", COLUMNS)
    assert prediction_folder.read(folder, 3)[0].tolist() == [1, 2, 3]
    remote_files.write(f"{folder}/b.parquet", content_of(1, 7))
    remote_files.write(f"{folder}/a.parquet", content_of(9, 3, status="converted: grey", reason="low_confidence"))
    remote_files.write(f"{folder}/c.parquet", content_of(5, status="rejected: truncated"))
    missing, outcomes = prediction_folder.read(folder, 10)
    assert missing.tolist() == [2, 4, 6, 8, 10]
    assert outcomes == Counter({"answered": 2, "low_confidence": 2, "rejected": 1})


def test_a_folder_is_continued_with_the_same_inputs_only(folder: str) -> None:
    for _ in range(2):
        prediction_folder.begin(folder, inputs(), "model", COLUMNS)
    for arguments, difference in [
        ((inputs(251), "model", COLUMNS), "rows 250, and now it is 251"),
        ((inputs(folder="/other"), "model", COLUMNS), "begun with inputs "),
        ((inputs(), "another", COLUMNS), "model id model, and now it is another"),
        ((inputs(), "model", (*COLUMNS, "label_2")), "columns "),
    ]:
        with pytest.raises(UserError, match=difference):
            prediction_folder.begin(folder, *arguments)


def test_files_that_were_cut_short_are_removed(folder: str) -> None:
    whole = content_of(*range(1, 50))
    remote_files.write(f"{folder}/whole.parquet", whole)
    for name, content in {"short": whole[:-20], "empty": b"", "first": whole[:4], "text": b"text" * 9}.items():
        remote_files.write(f"{folder}/{name}.parquet", content)
    assert prediction_folder.read(folder, 50)[0].tolist() == [50]
    assert remote_files.names_in(folder) == {"whole.parquet"}


def test_rows_that_stand_in_two_files_are_reported(folder: str) -> None:
    for name, rows in {"a": (1, 2), "b": (3, 4), "c": (2, 5)}.items():
        remote_files.write(f"{folder}/{name}.parquet", content_of(*rows))
    with pytest.raises(UserError, match=r"row 2 stands in a\.parquet and c\.parquet of .*Remove one"):
        prediction_folder.read(folder, 5)


def test_a_folder_with_other_files_is_left_alone(folder: str) -> None:
    remote_files.write(f"{folder}/notes.txt", b"mine")
    with pytest.raises(UserError, match="with other files in it"):
        prediction_folder.begin(folder, inputs(), "model", COLUMNS)
    assert remote_files.names_in(folder) == {"notes.txt"}


def test_a_record_that_was_never_written_does_not_count(folder: str) -> None:
    remote_files.write(f"{folder}/{remote_files.UNFINISHED}{RECORD}", b"{")
    prediction_folder.begin(folder, inputs(), "model", COLUMNS)
    remote_files.write(f"{folder}/{RECORD}", b"{")
    with pytest.raises(UserError, match=r"_inputs\.json is damaged"):
        prediction_folder.begin(folder, inputs(), "model", COLUMNS)


names = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3), max_size=3)


@given(names, names, names, names)
def test_inputs_that_differ_have_other_fingerprints(
    paths: list[str], ids: list[str], other_paths: list[str], other_ids: list[str]
) -> None:
    one, other = Inputs(paths, paths, ids), Inputs(other_paths, other_paths, other_ids)
    equal = prediction_folder.fingerprint(one) == prediction_folder.fingerprint(other)
    assert equal == ((paths, ids) == (other_paths, other_ids))


def test_missing_files_are_the_same_in_every_file_system(folder: str) -> None:
    assert remote_files.names_in(folder) == set()
    remote_files.remove(f"{folder}/none")
    with pytest.raises(FileNotFoundError), remote_files.open_file(f"{folder}/none"):
        pass
    remote_files.write(f"{folder}/some", b"1")
    assert fsspec.open(f"{folder}/some") if addresses.is_address(folder) else Path(folder, "some").is_file()
