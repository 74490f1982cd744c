"""Tables in any file: compressed, in Excel, of other programs; every id as it stands in the file."""

import bz2
import gzip
import json
import lzma
import sys
import tarfile
from collections.abc import Callable
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from spectacles.core.config import PredictCommand
from spectacles.core.errors import UserError
from spectacles.data.names import is_table
from spectacles.data.table_files import OTHER_KINDS, read_table
from spectacles.inference.inputs import collect

CSV = b"file,label\na.png,0\nb.png,1\n"
ROWS = {"file": ["a.png", "b.png"], "label": ["0", "1"]}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("t.csv")
        member.size = len(content)
        archive.addfile(member, BytesIO(content))
    return buffer.getvalue()


def read(folder: Path, name: str, content: bytes) -> pd.DataFrame:
    (folder / name).write_bytes(content)
    return read_table(folder / name)


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, lambda content: zipped({"t.csv": content})]
)
@pytest.mark.parametrize("name", ["t.csv.packed", "t.csv"])
def test_compressed_tables_are_unpacked_whatever_their_name(
    pack: Callable[[bytes], bytes], name: str, tmp_path: Path
) -> None:
    assert read(tmp_path, name, pack(CSV)).to_dict("list") == ROWS


def test_what_is_packed_is_read_by_its_own_kind(tmp_path: Path) -> None:
    records = json.dumps([{"file": "a.png", "label": 0}, {"file": "b.png", "label": 1}]).encode()
    assert read(tmp_path, "t.json.gz", gzip.compress(records)).to_dict("list") == ROWS
    assert read(tmp_path, "t.zip", zipped({"__MACOSX/t.json": b"", "t.json": records})).to_dict("list") == ROWS
    buffer = BytesIO()
    parquet.write_table(pa.table(ROWS), buffer)
    assert read(tmp_path, "t.csv", buffer.getvalue()).to_dict("list") == ROWS


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        *((f"t{n}.csv", magic + b" 1234", kind) for n, (magic, kind) in enumerate(OTHER_KINDS.items())),
        ("page.csv", b"\xef\xbb\xbf\n<!doctype html><p>Log in</p>", "a web page"),
        ("t.tar.gz", tarred(CSV), "a tar archive"),
        ("photos.zip", zipped({"a.png": b"", "b.png": b""}), "a zip archive of 2 files: unpack it"),
        ("broken.gz", gzip.compress(CSV, mtime=0)[:20], "cannot be read as a table"),
    ],
)
def test_files_that_are_not_read_are_named_for_what_they_are(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, name, content)
    assert str(tmp_path / name) in str(caught.value)


WORKBOOK = zipped({"[Content_Types].xml": b"", "xl/workbook.xml": b""})
SHEET = pd.DataFrame([["file", "label "], ["a.png", 0], ["b.png", 1]], dtype=object)


def test_a_workbook_with_one_sheet_is_read_where_pandas_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheets = {"Sheet1": SHEET, "empty": pd.DataFrame()}
    monkeypatch.setattr(pd, "read_excel", lambda *args, **options: sheets)
    assert read(tmp_path, "t.xlsx", WORKBOOK).to_dict("list") == ROWS
    sheets["notes"] = SHEET
    with pytest.raises(UserError, match=r"t\.csv is an Excel workbook with 2 sheets \(Sheet1, notes\)"):
        read(tmp_path, "t.csv", WORKBOOK)


def test_a_workbook_that_pandas_cannot_read_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"t\.xlsx is an Excel workbook, .*openpyxl.*: save the table as CSV"):
        read(tmp_path, "t.xlsx", WORKBOOK)


@pytest.mark.parametrize("header", ["file,label ,label", "file,label,label", "label,file, label"])
def test_two_columns_of_one_name_are_a_mistake(header: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two columns are called 'label' in "):
        read(tmp_path, "t.csv", f"{header}\na.png,0,0\n".encode())


def test_columns_without_a_name_may_be_several(tmp_path: Path) -> None:
    table = read(tmp_path, "t.csv", b",file,,label,\n0,a.png,,0,\n1,b.png,,1,\n")
    assert list(table.columns) == ["Unnamed: 0", "file", "Unnamed: 2", "label", "Unnamed: 4"]


@pytest.mark.parametrize("text", ["photos/a.jpg 0\nphotos/b c.jpg 1\n", "path label\na.jpg 0\nb.JPG cat\n"])
def test_cells_that_are_separated_by_spaces_are_named_with_the_remedy(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"separate (the cells|them) by commas"):
        read(tmp_path, "list.txt", text.encode())


def test_a_line_of_json_may_hold_any_character(tmp_path: Path) -> None:
    names = ["a\u2028b.png", "c\x85d.png", "e\x1cf.png", "g\nh.png"]
    lines = "\n".join(json.dumps({"file": name, "label": 1}, ensure_ascii=False) for name in names)
    assert read(tmp_path, "t.jsonl", lines.encode())["file"].tolist() == names


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(max_examples=40)
@given(st.lists(NUMBERS | TEXTS.map(json.dumps) | st.just("null"), min_size=1, max_size=5))
def test_ids_in_json_come_back_as_they_were_given(tokens: list[str]) -> None:
    rows = ",".join(f'{{"id": {token}, "file": "a.png"}}' for token in tokens)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.json"
        path.write_text(f"[{rows}]", encoding="utf-8")
        ids = collect([str(path)], PredictCommand()).ids
    assert ids == [json.loads(t) if t.startswith('"') else "" if t == "null" else t for t in tokens]


@settings(max_examples=40)
@given(st.lists(NUMBERS | TEXTS.map(str.lstrip), min_size=1, max_size=5))
def test_ids_in_csv_come_back_as_they_were_given(ids: list[str]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        cells = ['"' + text.replace('"', '""') + '"' for text in ids]
        path.write_bytes("\n".join(["file,id", *(f"a.png,{cell}" for cell in cells)]).encode())
        assert collect([str(path)], PredictCommand()).ids == ids


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        (pa.array([1, None, 9_007_199_254_740_993]), ["1", "", "9007199254740993"]),
        (pa.array([2**64 - 1, None], pa.uint64()), ["18446744073709551615", ""]),
        (pa.array([0.1, None, 2.5], pa.float32()), ["0.1", "", "2.5"]),
        (pa.array([Decimal("1.10"), None]), ["1.10", ""]),
        (pa.array([b"x7", b"\xff"]), ["x7", "\\xff"]),
        (pa.array(["007", " 8 ", None]), ["007", " 8 ", ""]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    ],
)
def test_ids_in_parquet_come_back_as_they_were_given(column: pa.Array, ids: list[str], tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": column, "file": ["a.png"] * len(ids)}), tmp_path / "t.parquet")
    assert collect([str(tmp_path / "t.parquet")], PredictCommand()).ids == ids


def test_a_column_may_hold_both_the_files_and_the_ids(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image_id\na.png\nb.png\n")
    inputs = collect([str(tmp_path / "t.csv")], PredictCommand())
    assert (inputs.ids, inputs.id_column) == (["a.png", "b.png"], "image_id")
    (tmp_path / "t.csv").write_text("image_id,id\na.png,1\nb.png,2\n")
    assert collect([str(tmp_path / "t.csv")], PredictCommand()).ids == ["1", "2"]
    (tmp_path / "t.csv").write_text("file,sex\na.png,1\nb.png,2\n")
    assert collect([str(tmp_path / "t.csv")], PredictCommand()).ids == []


@pytest.mark.parametrize("name", ["t.CSV", "t.csv.gz", "t.xlsx", "list.txt", "t.zip", "t.ndjson", "t.parquet.xz"])
def test_predict_takes_a_table_for_a_table(name: str) -> None:
    assert is_table(name) and not is_table(f"{name}.png")
