"""The confusion matrix as something to look into: which images lie behind each cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spectacles.findings import read_csv
from spectacles.run_dir import RunDir

MAX_CLASSES = 15
"""Up to here the whole matrix is shown, beyond it the most confused pairs."""
MAX_PAIRS = 30
PER_CELL, PICTURES = 24, 300
"""Images named for a cell, and pictures on the page altogether: it should fit into a mail."""
NEIGHBOURS = 3
COLUMNS = ("file", "path", "split", "label", "predicted", "confidence", "status", "verdict")


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
    verdict: str
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
    count: int
    share: float
    """Of all images of the label."""
    images: list[Listed]
    """Errors with the most confident first, right ones with the least confident first: those tell most."""

    @property
    def right(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class Browser:
    rows: list[list[Cell]]
    """The matrix, a row a true class; empty where there are too many classes for one."""
    cells: list[Cell]
    """Those with images behind them, the most frequent errors first."""

    def paths(self) -> list[str]:
        """The files to make pictures of, each once."""
        images = [image for cell in self.cells for image in cell.images if image.pictured]
        near = [neighbour.path for image in images for neighbour in image.neighbours if neighbour.path]
        return list(dict.fromkeys([image.path for image in images] + near))


def build(run_dir: RunDir, split: str, classes: Sequence[str]) -> Browser:
    """Of the labelled images of `split` that evaluate could read; without cells where it left no predictions."""
    table = read_csv(run_dir.predictions, COLUMNS)
    if table.empty:
        return Browser([], [])
    scored = table[(table["split"] == split) & (table["status"] == "predicted") & (table["label"] != "")]
    scored = scored.assign(confidence=scored["confidence"].astype(float))
    behind = {(str(label), str(predicted)): rows for (label, predicted), rows in scored.groupby(["label", "predicted"])}
    ranked = sorted(behind, key=lambda pair: (pair[0] == pair[1], -len(behind[pair])))
    whole = len(classes) <= MAX_CLASSES
    if not whole:
        ranked = [pair for pair in ranked if pair[0] != pair[1]][:MAX_PAIRS]
    near = _neighbours(run_dir)
    cost = [1 if label == predicted or not near else 1 + NEIGHBOURS for label, predicted in ranked]
    pictured = share_out([len(behind[pair]) for pair in ranked], cost)
    of_label, place = scored["label"].value_counts(), {name: number for number, name in enumerate(classes)}

    def cell(pair: tuple[str, str], pictures: int = 0) -> Cell:
        label, predicted = pair
        rows = behind.get(pair, scored[:0]).sort_values("confidence", ascending=label == predicted, kind="stable")
        listed = rows.head(PER_CELL).to_dict("records")
        images = [_listed(row, number < pictures, near) for number, row in enumerate(listed)]
        share = len(rows) / max(1, int(of_label.get(label, 0)))
        return Cell(f"cell-{place[label]}-{place[predicted]}", label, predicted, len(rows), share, images)

    cells = {pair: cell(pair, pictures) for pair, pictures in zip(ranked, pictured, strict=True)}
    rows = [[cells.get((a, b)) or cell((a, b)) for b in classes] for a in classes] if whole else []
    return Browser(rows, list(cells.values()))


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
    return Listed(row["file"], row["confidence"], row.get("verdict", ""), row["path"], pictured, neighbours)


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
