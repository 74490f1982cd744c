"""The confusion matrix as something to look into: which images lie behind each cell.

Where an image has any number of labels, a row is a label, and its cells are the images that miss it and those that were
given it wrongly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from spectacles.core.run_dir import RunDir
from spectacles.data import label_sets
from spectacles.metrics import prediction_table
from spectacles.report.run_summary import read_csv

MAX_CLASSES = 15
"""Up to here the whole matrix is shown, beyond it the most confused pairs."""
MAX_PAIRS = 30
MAX_LABELS = 50
"""As MAX_CLASSES, of labels, which have two cells each."""
MISSED, ADDED = "missed", "added"
PER_CELL, PICTURES = 24, 300
"""Images named for a cell, and pictures on the page altogether: it should fit into a mail."""
NEIGHBOURS = 3
COLUMNS = ("file", "path", "split", "label", "predicted", "confidence", "status", "abstain_reason")


@dataclass(frozen=True)
class Neighbour:
    file: str
    label: str
    similarity: float
    path: str


@dataclass(frozen=True)
class Listed:
    file: str
    confidence: float
    """Of the decision; behind a label's cell the probability of that label."""
    abstain_reason: str
    label: str
    predicted: str
    path: str
    pictured: bool
    """Whether there is room for its picture, and those of its neighbours."""
    neighbours: list[Neighbour]
    """The nearest training images; of errors only."""


@dataclass(frozen=True)
class Cell:
    id: str
    label: str
    predicted: str
    """A class, or MISSED or ADDED."""
    right: bool
    count: int
    share: float
    """Of all images of the label; of ADDED, of those without it."""
    images: list[Listed]
    """Errors with the most confident first, right ones with the least confident first: those tell most."""


@dataclass(frozen=True)
class Browser:
    rows: list[list[Cell]]
    """The matrix, a row a true class or a label; empty where there are too many for one."""
    cells: list[Cell]
    """Those with images behind them, the most frequent errors first."""

    def paths(self) -> list[str]:
        """The files to make pictures of, each once."""
        images = [image for cell in self.cells for image in cell.images if image.pictured]
        near = [neighbour.path for image in images for neighbour in image.neighbours if neighbour.path]
        return list(dict.fromkeys([image.path for image in images] + near))


Behind = dict[tuple[str, str], pd.DataFrame]
"""(row, column) of a cell -> its images, those that tell most first; cells without images may be missing."""


def build(run_dir: RunDir, split: str, classes: Sequence[str], multi_label: bool = False) -> Browser:
    """Of the labelled images of `split` that evaluate could read; without cells where it left no predictions."""
    table = read_csv(run_dir.predictions, (*COLUMNS, *_probabilities(classes if multi_label else ())))
    if table.empty:
        return Browser([], [])
    scored = table[(table["split"] == split) & (table["status"] == "predicted") & (table["label"] != "")]
    behind, totals = _by_label(scored, classes) if multi_label else _by_pair(scored)
    columns = (MISSED, ADDED) if multi_label else classes

    def right(pair: tuple[str, str]) -> bool:
        return not multi_label and pair[0] == pair[1]

    ranked = sorted(behind, key=lambda pair: (right(pair), -len(behind[pair])))
    whole = len(classes) <= (MAX_LABELS if multi_label else MAX_CLASSES)
    if not whole:
        ranked = [pair for pair in ranked if not right(pair)][:MAX_PAIRS]
    near = _neighbours(run_dir)
    cost = [1 if right(pair) or not near else 1 + NEIGHBOURS for pair in ranked]
    pictured = share_out([len(behind[pair]) for pair in ranked], cost)
    row_of, column_of = ({name: number for number, name in enumerate(names)} for names in (classes, columns))

    def cell(pair: tuple[str, str], pictures: int = 0) -> Cell:
        label, predicted = pair
        rows = behind.get(pair, scored[:0])
        listed = rows.head(PER_CELL).to_dict("records")
        images = [_listed(row, number < pictures, near) for number, row in enumerate(listed)]
        share = len(rows) / max(1, totals.get(pair, 0))
        name = f"cell-{row_of[label]}-{column_of[predicted]}"
        return Cell(name, label, predicted, right(pair), len(rows), share, images)

    cells = {pair: cell(pair, pictures) for pair, pictures in zip(ranked, pictured, strict=True)}
    rows = [[cells.get((a, b)) or cell((a, b)) for b in columns] for a in classes] if whole else []
    return Browser(rows, list(cells.values()))


def _by_pair(scored: pd.DataFrame) -> tuple[Behind, dict[tuple[str, str], int]]:
    """Behind each cell of the confusion matrix its images, and how many are of the true class."""
    of_label = scored["label"].value_counts()
    ordered = scored.assign(confidence=scored["confidence"].astype(float))
    behind = {
        (str(label), str(predicted)): rows.sort_values("confidence", ascending=label == predicted, kind="stable")
        for (label, predicted), rows in ordered.groupby(["label", "predicted"])
    }
    return behind, {pair: int(of_label[pair[0]]) for pair in behind}


def _by_label(scored: pd.DataFrame, classes: Sequence[str]) -> tuple[Behind, dict[tuple[str, str], int]]:
    """Behind each label's two cells its images, by its own probability, and how many could have been there."""
    behind, totals = {}, {}
    for name, column in zip(classes, _probabilities(classes), strict=True):
        has, said = (label_sets.has(scored[side], name, multi_label=True) for side in ("label", "predicted"))
        own = scored.assign(confidence=scored[column].astype(float))
        for kind, wrong, possible in ((MISSED, has & ~said, has), (ADDED, said & ~has, ~has)):
            rows = own[wrong].sort_values("confidence", ascending=kind == MISSED, kind="stable")
            totals[name, kind] = int(possible.sum())
            if len(rows):
                behind[name, kind] = rows
    return behind, totals


def _probabilities(classes: Sequence[str]) -> list[str]:
    return [f"{prediction_table.PREFIX}{name}" for name in classes]


def share_out(counts: Sequence[int], cost: Sequence[int], most: int = PER_CELL, total: int = PICTURES) -> list[int]:
    """How many of each are shown: one each in turn, at most `most`, until `total` is spent."""
    shown, turns = [0] * len(counts), True
    while turns:
        turns = False
        for index, count in enumerate(counts):
            if shown[index] < min(count, most) and cost[index] <= total:
                shown[index] += 1
                total -= cost[index]
                turns = True
    return shown


def _listed(row: dict[Any, Any], pictured: bool, near: dict[str, list[Neighbour]]) -> Listed:
    neighbours = near.get(row["file"], []) if row["label"] != row["predicted"] else []
    return Listed(
        row["file"], row["confidence"], row.get("abstain_reason", ""), row["label"], row["predicted"], row["path"],
        pictured, neighbours,
    )  # fmt: skip


def _neighbours(run_dir: RunDir) -> dict[str, list[Neighbour]]:
    """File of an error -> its nearest training images; empty before error analysis."""
    if not run_dir.done("error_analysis"):
        return {}
    nearest = read_csv(run_dir.path / "error_analysis" / "nearest.csv")
    if nearest.empty:
        return {}
    splits = read_csv(run_dir.splits, ("file", "path", "split"))
    if not splits.empty:
        splits = splits[(splits["split"] == "train") & splits["file"].isin(nearest["neighbour"])]
    path_of = {row["file"]: row["path"] for row in splits.to_dict("records")}
    nearest = nearest.assign(rank=nearest["rank"].astype(int)).sort_values("rank", kind="stable")
    found: dict[str, list[Neighbour]] = {}
    for row in nearest.to_dict("records"):
        listed = found.setdefault(row["file"], [])
        if len(listed) < NEIGHBOURS:
            name = row["neighbour"]
            listed.append(Neighbour(name, row["neighbour_label"], float(row["similarity"]), path_of.get(name, "")))
    return found
