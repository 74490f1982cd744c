"""What an export has found, for people: a table, and which file is the best within a time."""

from collections.abc import Sequence

from spectacles.core.results import ConvertedFile, ExportedFile
from spectacles.core.wording import percent

COLUMNS = ("format", "precision", "MB", "probabilities within", "same labels", "accuracy (95 %)", "images/s",
           "ms for one")  # fmt: skip
EXACT_FIRST = ("fp32", "fp16", "int8")


def table(files: Sequence[ExportedFile]) -> list[str]:
    """Lines of equal length, the names of the columns first."""
    rows = [COLUMNS, *map(_cells, files)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _cells(file: ExportedFile) -> tuple[str, ...]:
    low, high = file.accuracy_interval
    return (
        file.format,
        file.precision,
        f"{file.megabytes:.1f}",
        f"{file.difference:.1g}",
        percent(file.same_labels),
        f"{percent(file.accuracy)} ({100 * low:.1f} to {100 * high:.1f})",
        f"{file.images_per_second:g}",
        f"{file.milliseconds:g}",
    )


def refused(file: ExportedFile) -> str:
    return (
        f"{file.file} was not kept: {file.objection}; accuracy {percent(file.accuracy)}, the model's "
        f"{percent(file.model_accuracy)}; use a higher precision or another format"
    )


def not_run(file: ConvertedFile) -> str:
    if file.objection:
        return f"{file.file} was not kept: {file.objection}; use another format"
    return f"{file.file}: {file.megabytes:.1f} MB, converted, not run: its runtime does not exist for this machine"


def best_within(milliseconds: float, kept: Sequence[ExportedFile]) -> str:
    """Which file answers for one photo in that time: of the most exact ones the fastest, in a sentence."""
    asked = f"--latency {milliseconds:g}ms:"
    fast = [file for file in kept if file.milliseconds <= milliseconds]
    if not fast:
        best = min(kept, key=lambda file: file.milliseconds)
        return (
            f"{asked} no file is that fast here; {best.file} comes nearest with {best.milliseconds:g} ms: try "
            "--precision int8, or train a smaller --backbone or --image_size"
        )
    best = min(fast, key=lambda file: (EXACT_FIRST.index(file.precision), file.milliseconds))
    return f"{asked} {best.file}, with {best.milliseconds:g} ms the fastest of the most exact ones here"
