"""The confusion matrix with the images behind each cell.

With any number of labels per image, a row is a label, and its two cells are the images on which it was missed and those
on which it was added wrongly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from spectacles.core.run_dir import RunDir
from spectacles.data import label_sets, schemas

MAX_CLASSES = 15
"""With more classes, the most confused pairs are shown instead of the matrix."""
MAX_PAIRS = 30
MAX_LABELS = 50
"""The same limit for labels, which have two cells each."""
MISSED, ADDED = "missed", "added"
PER_CELL = 24
"""Images listed for a cell."""
PICTURES = 300
"""Pictures on the page: few enough to send it by mail."""
NEIGHBOURS = 3
COLUMNS = ("file", "path", "split", "label", "predicted", "confidence", "status", "abstain_reason")


@dataclass(frozen=True)
class Neighbour:
    file: str
    label: str
    similarity: float
    path: str


@dataclass(frozen=True)
class ListedImage:
    file: str
    confidence: float
    """Of the prediction; in a label's cell, the probability of that label."""
    abstain_reason: str
    label: str
    predicted: str
    path: str
    pictured: bool
    """Whether its picture, and those of its neighbours, are on the page."""
    neighbours: list[Neighbour]
    """The most similar training images; only for errors."""


@dataclass(frozen=True)
class Cell:
    id: str
    label: str
    predicted: str
    """A class, or MISSED or ADDED."""
    correct: bool
    count: int
    share: float
    """Of all images with the label; for ADDED, of those without it."""
    images: list[ListedImage]
    """The most confident errors first, and the least confident correct ones: these are the most instructive."""


@dataclass(frozen=True)
class Browser:
    rows: list[list[Cell]]
    """The matrix: one row per true class or label; empty if there are too many."""
    cells: list[Cell]
    """The cells that have images, the most frequent errors first."""

    def paths(self) -> list[str]:
        """The files whose pictures are needed, each once."""
        images = [image for cell in self.cells for image in cell.images if image.pictured]
        near = [neighbour.path for image in images for neighbour in image.neighbours if neighbour.path]
        return list(dict.fromkeys([image.path for image in images] + near))


Behind = dict[tuple[str, str], pd.DataFrame]
"""(row, column) of a cell -> its images, the most instructive first; cells without images may be missing."""


def build(run_dir: RunDir, split: str, classes: Sequence[str], multi_label: bool = False) -> Browser:
    """From the labelled images of `split` that could be read; empty where evaluate left no predictions."""
    probabilities = _probabilities(classes) if multi_label else []
    table = schemas.PREDICTIONS.read_text(run_dir.predictions, [*COLUMNS, *probabilities])
    if table.empty:
        return Browser([], [])
    scored = table[(table["split"] == split) & (table["status"] == "predicted") & (table["label"] != "")]
    behind, totals = _by_label(scored, classes) if multi_label else _by_pair(scored)
    columns = (MISSED, ADDED) if multi_label else classes

    def is_correct(pair: tuple[str, str]) -> bool:
        return not multi_label and pair[0] == pair[1]

    ranked = sorted(behind, key=lambda pair: (is_correct(pair), -len(behind[pair])))
    whole = len(classes) <= (MAX_LABELS if multi_label else MAX_CLASSES)
    if not whole:
        ranked = [pair for pair in ranked if not is_correct(pair)][:MAX_PAIRS]
    near = _neighbours(run_dir)
    cost = [1 if is_correct(pair) or not near else 1 + NEIGHBOURS for pair in ranked]
    pictured = distribute([len(behind[pair]) for pair in ranked], cost)
    row_of, column_of = ({name: number for number, name in enumerate(names)} for names in (classes, columns))

    def cell(pair: tuple[str, str], pictures: int = 0) -> Cell:
        label, predicted = pair
        rows = behind.get(pair, scored[:0])
        listed = rows.head(PER_CELL).to_dict("records")
        images = [_listed(row, number < pictures, near) for number, row in enumerate(listed)]
        share = len(rows) / max(1, totals.get(pair, 0))
        name = f"cell-{row_of[label]}-{column_of[predicted]}"
        return Cell(name, label, predicted, is_correct(pair), len(rows), share, images)

    cells = {pair: cell(pair, pictures) for pair, pictures in zip(ranked, pictured, strict=True)}
    rows = [[cells.get((a, b)) or cell((a, b)) for b in columns] for a in classes] if whole else []
    return Browser(rows, list(cells.values()))


def _by_pair(scored: pd.DataFrame) -> tuple[Behind, dict[tuple[str, str], int]]:
    """The images of each cell of the confusion matrix, and how many images the true class has."""
    of_label = scored["label"].value_counts()
    ordered = scored.assign(confidence=scored["confidence"].astype(float))
    behind = {
        (str(label), str(predicted)): rows.sort_values("confidence", ascending=label == predicted, kind="stable")
        for (label, predicted), rows in ordered.groupby(["label", "predicted"])
    }
    return behind, {pair: int(of_label[pair[0]]) for pair in behind}


def _by_label(scored: pd.DataFrame, classes: Sequence[str]) -> tuple[Behind, dict[tuple[str, str], int]]:
    """The images of each label's two cells, by its probability, and how many could be there at most."""
    behind: Behind = {}
    totals: dict[tuple[str, str], int] = {}
    for name, column in zip(classes, _probabilities(classes), strict=True):
        true, predicted = (label_sets.has(scored[side], name, multi_label=True) for side in ("label", "predicted"))
        ranked = scored.assign(confidence=scored[column].astype(float))
        for kind, wrong, possible in ((MISSED, true & ~predicted, true), (ADDED, predicted & ~true, ~true)):
            rows = ranked[wrong].sort_values("confidence", ascending=kind == MISSED, kind="stable")
            totals[name, kind] = int(possible.sum())
            if len(rows):
                behind[name, kind] = rows
    return behind, totals


def _probabilities(classes: Sequence[str]) -> list[str]:
    return [f"{schemas.PROBABILITY_PREFIX}{name}" for name in classes]


def distribute(counts: Sequence[int], cost: Sequence[int], most: int = PER_CELL, total: int = PICTURES) -> list[int]:
    """How many images of each cell are shown: one per cell in turn, at most `most`, until `total` is spent."""
    shown = [0] * len(counts)
    changed = True
    while changed:
        changed = False
        for index, count in enumerate(counts):
            if shown[index] < min(count, most) and cost[index] <= total:
                shown[index] += 1
                total -= cost[index]
                changed = True
    return shown


def _listed(row: dict[Any, Any], pictured: bool, near: dict[str, list[Neighbour]]) -> ListedImage:
    neighbours = near.get(row["file"], []) if row["label"] != row["predicted"] else []
    return ListedImage(
        row["file"], row["confidence"], row.get("abstain_reason", ""), row["label"], row["predicted"], row["path"],
        pictured, neighbours,
    )  # fmt: skip


def _neighbours(run_dir: RunDir) -> dict[str, list[Neighbour]]:
    """File of an error -> its most similar training images; empty before error analysis."""
    if not run_dir.done("error_analysis"):
        return {}
    nearest = schemas.NEAREST.read_text(run_dir.path / "error_analysis" / "nearest.csv")
    splits = schemas.SPLIT_ROWS.read_text(run_dir.splits, ["file", "path", "split"])
    splits = splits[(splits["split"] == "train") & splits["file"].isin(nearest["neighbour"])]
    path_of = {row["file"]: row["path"] for row in splits.to_dict("records")}
    nearest = nearest.assign(rank=nearest["rank"].astype(int)).sort_values("rank", kind="stable")
    neighbours: dict[str, list[Neighbour]] = {}
    for row in nearest.to_dict("records"):
        listed = neighbours.setdefault(row["file"], [])
        if len(listed) < NEIGHBOURS:
            name = row["neighbour"]
            listed.append(Neighbour(name, row["neighbour_label"], float(row["similarity"]), path_of.get(name, "")))
    return neighbours
