"""What names say: their natural order, and whether a file of that name holds a table."""

import re

COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zip")
EXCEL_SUFFIXES = (".xlsx", ".xlsm", ".xls")
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", *EXCEL_SUFFIXES)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """'10' sorts after '9', and 'class 2' before 'class 10'."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts if part]


def natural_sort(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (natural_key(name), name))


def is_table(name: str) -> bool:
    """Whether a file's name is that of a table, compressed or not."""
    lower = name.lower()
    stem = next((lower.removesuffix(suffix) for suffix in COMPRESSED_SUFFIXES if lower.endswith(suffix)), lower)
    return stem.endswith(TABLE_SUFFIXES) or lower.endswith(".zip")
