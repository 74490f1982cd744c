"""Numbers in words, alike in the report and in the model card."""

import re
from collections.abc import Sequence

UNKNOWN = "–"
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that start a line, steer a terminal, or change the direction of text; and halves of characters."""


def printable(text: str) -> str:
    """On one line, with an escape such as \\r or \\x1b for every control character: names come from strangers."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def percent(share: float | None) -> str:
    """0.9615 -> '96.2 %'; what is below 1 never reads '100.0 %'."""
    if share is None:
        return UNKNOWN
    text = f"{100 * share:.1f}"
    return f"{100 * share:.2f} %" if text == "100.0" and share < 1 else f"{text} %"


def percents(interval: Sequence[float] | None) -> str:
    """(0.91, 1.0) -> '91.0 to 100.0 %'."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %" if interval else UNKNOWN


def number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"


def numbers(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""


def thousands(count: float) -> str:
    return f"{int(count):,}"


def count_of(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {plural(noun)}"


def plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def noun_of(multi_label: bool) -> str:
    """What the model distinguishes: classes, of which an image has one, or labels, of which it has any number."""
    return "label" if multi_label else "class"


def duration(seconds: float) -> str:
    """'0.4 s', '42 s', '3 min 12 s', '1 h 5 min'."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
