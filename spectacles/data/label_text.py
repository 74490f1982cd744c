"""Labels as people write them: several in one text, missing ones, one class in two spellings."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

SEPARATOR, NONE = "|", "none"
"""Between several labels of one image; and the text for an image without any label."""
MISSING = frozenset(
    {
        "na", "n/a", "n.a.", "#n/a", "#n/a n/a", "#na", "<na>", "nan", "-nan", "nat", "null", "#null!", "none", "nil",
        "missing", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "?", "-", "--", ".",
    }
)  # fmt: skip
"""Case-folded: what pandas reads as missing, and what people write for it."""


def pieces(text: str) -> list[str]:
    """What stands between separators, stripped, as written; empty ones are left out."""
    found = (piece.strip() for piece in re.findall(r"(?:\\.|[^|])+", text, re.DOTALL))
    return [piece for piece in found if piece]


def parts(text: str) -> list[str]:
    """'indoor|night' -> ['indoor', 'night']; [] for 'none' (no label) and for '' (unknown). A label that is called
    'none' or holds '|' or a backslash is written with a backslash before that."""
    names = pieces(text)
    if names == [NONE]:
        return []
    return [NONE if name == escape(NONE) else re.sub(r"\\([|\\])", r"\1", name) for name in names]


def escape(name: str) -> str:
    """A label as one of `parts`."""
    return f"\\{NONE}" if name == NONE else re.sub(r"([|\\])", r"\\\1", name)


def from_list(names: Sequence[str]) -> str:
    """Labels of a JSON or Parquet list, in its order, as one text."""
    return SEPARATOR.join(map(escape, names)) or NONE


def missing_words(na_labels: str | None) -> frozenset[str]:
    """`na_labels`: words separated by commas; None stands for MISSING."""
    if na_labels is None:
        return MISSING
    return frozenset(word.strip().casefold() for word in na_labels.split(",") if word.strip())


def look_alikes(classes: Iterable[str]) -> list[str]:
    """A sentence on classes that differ by case, spaces, the form of a character or of a number."""
    groups = defaultdict(list)
    for name in classes:
        groups[_look(name)].append(name)
    alike = [", ".join(map(repr, names)) for names in groups.values() if len(names) > 1]
    if not alike:
        return []
    return [
        f"warning: classes that look the same are kept apart: {some(alike, '; ')}: write them alike in the data where "
        "they mean the same"
    ]


def _look(name: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    if re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", text):
        whole, _, decimals = text.lstrip("+").partition(".")
        sign, digits = ("-" if whole.startswith("-") else ""), whole.lstrip("-").lstrip("0") or "0"
        return f"{sign}{digits}.{decimals.rstrip('0')}"
    return text


def some(texts: Sequence[str], separator: str = ", ") -> str:
    return separator.join(texts[:5]) + (" ..." if len(texts) > 5 else "")
