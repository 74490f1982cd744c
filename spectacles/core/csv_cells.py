"""CSV files that hold every text as it is, and text that a spreadsheet would otherwise run as a formula."""

import csv
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from spectacles.core.fileio import atomic_path

if TYPE_CHECKING:
    import pandas as pd

FORMULA = "[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
"""First characters after which spreadsheets compute, the full-width ones too (OWASP, CSV injection)."""
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RISKY = re.compile(rf"(?!(?:{NUMBER})\Z)'*{FORMULA}")
QUOTED = re.compile(rf"'+{FORMULA}")
"""A cell that `safe_cell` changed begins so, and one that it would otherwise be mistaken for."""


def safe_cell(text: str) -> str:
    """With an apostrophe before it where a spreadsheet would compute it, which makes it text there; numbers stay."""
    return f"'{text}" if RISKY.match(text) else text


def protect(table: "pd.DataFrame", spreadsheet_safe: bool) -> "pd.DataFrame":
    """Text cells as `safe_cell` writes them; without `spreadsheet_safe` only those that `original` would change."""
    pattern = RISKY if spreadsheet_safe else QUOTED
    return _replace(table, _text_columns(table), pattern, lambda text: f"'{text}")


def original(table: "pd.DataFrame") -> "pd.DataFrame":
    """The inverse of `protect`, whichever way the table was written."""
    # The first character is looked at by pandas: a pattern for each cell would take twice as long as reading the file.
    names = [name for name in _text_columns(table) if table[name].str.startswith("'", na=False).any()]
    return _replace(table, names, QUOTED, lambda text: text[1:])


def _replace(
    table: "pd.DataFrame", names: list[str], pattern: re.Pattern[str], change: Callable[[str], str]
) -> "pd.DataFrame":
    """The table itself where no cell of the columns `names` matches."""
    changed = {}
    for name in names:
        texts = table[name].tolist()
        if any(isinstance(text, str) and pattern.match(text) for text in texts):
            changed[name] = [change(text) if isinstance(text, str) and pattern.match(text) else text for text in texts]
    return table.assign(**changed) if changed else table


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Atomic. Where a text holds a carriage return all texts are quoted: pandas leaves it bare, which ends the row."""
    cells = (cell for name in _text_columns(table) for cell in table[name])
    torn = any(isinstance(text, str) and "\r" in text for text in chain(table.columns, cells))
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC if torn else csv.QUOTE_MINIMAL)


def _text_columns(table: "pd.DataFrame") -> list[str]:
    return [name for name in table.columns if table[name].dtype.kind not in "biufc"]
