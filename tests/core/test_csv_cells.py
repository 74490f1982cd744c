"""CSV files hold any text, for our own stages, other programs and spreadsheets; logs hold it on one line."""

import csv
import logging
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectacles import cli
from spectacles.core.csv_cells import NUMBER, safe_cell
from spectacles.core.errors import UserError
from spectacles.core.exit_codes import exit_codes
from spectacles.core.wording import printable
from spectacles.data.schemas import ISSUES

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
                 | st.sampled_from(["a\rb", "\r", "=1+1", "'=1", "''-x", "-5", "'-5", "+1e3", "\t=x", "@a", "\r\n"]),
                 min_size=3, max_size=3)  # fmt: skip


@settings(max_examples=50)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.booleans())
def test_any_text_is_read_back_as_it_was(rows: list[list[str]], safe: bool) -> None:
    table = pd.DataFrame(rows, columns=["file", "kind", "detail"])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "issues.csv"
        ISSUES.write(path, table, safe)
        assert ISSUES.read(path).to_numpy().tolist() == ISSUES.read_text(path).to_numpy().tolist() == rows
        with path.open(newline="", encoding="utf-8") as file:
            cells = list(csv.reader(file))[1:]
    first = {cell[:1] for row in cells for cell in row if not re.fullmatch(NUMBER, cell)}
    assert not safe or not first & set("=+-@\t\r\n＝＋－＠")


@pytest.mark.parametrize("text", ["-5", "+3.5", "-1e-5", "-.5", "a=b", "", "1", "2024-01-02", "x"])
def test_numbers_and_plain_text_stay(text: str) -> None:
    assert safe_cell(text) == text


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+49 30", "-", "-a", "@SUM(1)", "\t=1", "\r=1", "－1", "'=1"])
def test_formulas_become_text(text: str) -> None:
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\rb", "a\\rb"), ("\x1b[2Jx", "\\x1b[2Jx"), ("x\n[done]", "x\\n[done]"), ("\u202egnp.exe", "\\u202egnp.exe"),
     ("\x85\u2028", "\\x85\\u2028"), ("\ud800", "\\ud800"), ("ünï 漢 👨‍👩‍👧 \\", "ünï 漢 👨‍👩‍👧 \\")],
)  # fmt: skip
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_messages_and_logs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with exit_codes(), cli.log_to(tmp_path / "log"):
            logging.getLogger("spectacles").info("  %s", "a\r\x1b[2Jb")
            raise UserError("the file a\rb is empty")

    with pytest.raises(SystemExit):
        fail()
    assert capsys.readouterr().err == "error: the file a\\rb is empty\n"
    assert (tmp_path / "log").read_text().endswith(" a\\r\\x1b[2Jb\n")
