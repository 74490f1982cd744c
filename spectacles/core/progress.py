"""One look for every progress bar."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], description: str, total: int | None = None, unit: str = "file", initial: int = 0
) -> Iterable[T]:
    """A bar on a terminal, nothing in a log file; it vanishes when done, the stage's closing lines stay."""
    return tqdm(
        items, desc=f"  {description}", total=total, unit=unit, initial=initial, leave=False, disable=None,
        dynamic_ncols=True,
    )  # fmt: skip
