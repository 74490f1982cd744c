"""What gives a class away by accident: size, light, colour, border, format, compression or name of the files.

A model may learn that instead of what the photos show (shortcut learning, Geirhos et al. 2020). Here a shallow decision
tree sees nothing but such properties; where it tells a class from the rest, a network could as well. Where an image has
any number of labels, the images with a label are told from those without it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.tree import DecisionTreeClassifier

from spectacles.core.wording import count_of, percent
from spectacles.data import label_sets
from spectacles.data.splits import stratified_split
from spectacles.exploration.file_properties import Property, properties

FOLDS, DEPTHS, LEAF = 5, (1, 2, 3), 5
FEWEST = 20
"""Independent images that a class and the rest must have each: below, hardly a score could be told from chance."""
MARGIN, ERRORS = 0.15, 5.0
"""A class is given away where its balanced accuracy is beyond chance (0.5) by MARGIN and by ERRORS standard errors. In
460 trials with random labels the tree was 0.3 standard errors beyond chance in the mean, with a standard deviation of
1.2, and never more than 4.6. Photos of faces, cats and dogs came up to 0.60: light differs a little by class."""
ALIKE = 0.01
"""Balanced accuracy by which a plainer property may be behind and is still the one that is named."""
MOST_ROWS, SCREENED_ROWS, MOST_JUDGED = 1500, 200, 12
"""Images of a class, and as many of the rest, that trees are fitted to (drawn with a seed); the same for a first look
at many classes; and the classes that are judged then."""


Has = Callable[[str], np.ndarray]
"""Name of a class -> (N,) bool: the rows that are of it, or have that label."""


@dataclass(frozen=True)
class Shortcut:
    """A rule about files, and the class that it gives away."""

    label: str
    rule: str
    """Ends a sentence about 'images': 'wider than 400 px'."""
    matches: np.ndarray
    """(N,) bool: the rows that the rule speaks of."""
    share: float
    elsewhere: float
    """Shares of the class among the rows that match, and among the others."""
    balanced_accuracy: float
    """Of the tree for this class against the rest, on folds that it was not fitted to."""
    remedy: str
    multi_label: bool = False

    def sentence(self) -> str:
        share, elsewhere = percent(self.share), percent(self.elsewhere)
        said = f"images {self.rule} are {share} class {self.label!r}, the others {elsewhere}"
        if self.multi_label:
            said = f"{share} of the images {self.rule} have label {self.label!r}, and {elsewhere} of the others"
        return f"{said}: a model may learn that instead of what the photos show"


def find(rows: pd.DataFrame, seed: int, multi_label: bool = False) -> tuple[list[Shortcut], float | None]:
    """What gives classes away in labelled rows of the dataset stage's index, the strongest first; and the highest
    balanced accuracy that was found, a shortcut or not (chance is 0.5; None where there are too few images to say).

    A class is judged against the rest by a tree of depth 1 to 3 in folds that keep clusters (column `cluster`) whole;
    of many classes those are judged that a first look finds most promising.
    """
    known = properties(rows)
    clusters = rows["cluster"].to_numpy() if "cluster" in rows else np.arange(len(rows))
    every = label_sets.names(rows["label"]) if multi_label else [str(name) for name in np.unique(rows["label"])]
    pair = every if len(every) == 2 and not multi_label else []

    def has(name: str) -> np.ndarray:
        return label_sets.has(rows["label"], name, multi_label).to_numpy(dtype=bool)

    names = _judged(every, has, clusters)
    names = names[:1] if pair else names  # the first speaks for both
    if not known or not names:
        return [], None
    # In the precision that trees compare in, so that thresholds divide here as they do there.
    values = np.stack([item.values for item in known], axis=1).astype(np.float32).astype(np.float64)
    found, best = [], 0.0
    for name in _most_promising(values, has, names, seed):
        chosen = _sample(has(name), MOST_ROWS, seed)
        trial = _cross_validate(values[chosen], has(name)[chosen], clusters[chosen], seed)
        best = max(best, trial.balanced_accuracy)
        if trial.balanced_accuracy > 0.5 + max(MARGIN, ERRORS * trial.error):
            other = next((each for each in pair if each != name), "")
            found.append(_explain(has, known, values, chosen, (name, other), trial, multi_label))
    return sorted(found, key=lambda shortcut: -shortcut.balanced_accuracy), best


def table(found: Sequence[Shortcut]) -> pd.DataFrame:
    """A row a shortcut: class, rule, images that the rule speaks of, shares, balanced accuracy."""
    columns = ["class", "rule", "images", "share", "share_elsewhere", "balanced_accuracy"]
    rows = [
        (item.label, item.rule, int(item.matches.sum()), item.share, item.elsewhere, item.balanced_accuracy)
        for item in found
    ]
    return pd.DataFrame(rows, columns=columns).round(4)


def summarise(found: Sequence[Shortcut], separation: float | None, noun: str) -> list[str]:
    """What `find` found, in a sentence."""
    if separation is None:
        return [f"too few images to tell whether the files' properties give a {noun} away"]
    said = f"size, light, colour, format and name of the files tell a {noun} with balanced accuracy {separation:.2f}"
    if not found:
        return [f"{said} at most (chance 0.50): no shortcut found"]
    return [f"{said} (chance 0.50): they give {count_of(len(found), noun)} away, see explore/shortcuts.csv"]


def _judged(names: Sequence[str], has: Has, clusters: np.ndarray) -> list[str]:
    """Those with enough independent images against the rest."""
    sides = ((name, own, ~own) for name in names for own in [has(name)])
    return [name for name, *both in sides if min(len(np.unique(clusters[side])) for side in both) >= FEWEST]


def _sample(positive: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Rising positions of up to `most` rows of each side of (N,) bool."""
    rng = np.random.default_rng(seed)
    sides = (np.flatnonzero(positive), np.flatnonzero(~positive))
    return np.sort(np.concatenate([rng.permutation(side)[:most] for side in sides]))


def _most_promising(values: np.ndarray, has: Has, names: Sequence[str], seed: int) -> list[str]:
    """Of many classes those that a tree tells best on some images that it was fitted to."""
    if len(names) <= MOST_JUDGED:
        return list(names)
    scores = {}
    for name in names:
        positive = has(name)
        chosen = _sample(positive, SCREENED_ROWS, seed)
        right = _fit(values[chosen], positive[chosen], DEPTHS[-1]).predict(values[chosen]) == positive[chosen]
        scores[name] = _balanced(right, positive[chosen])
    return sorted(names, key=lambda name: -scores[name])[:MOST_JUDGED]


@dataclass(frozen=True)
class _Trial:
    depth: int
    balanced_accuracy: float
    error: float
    """Standard error of the balanced accuracy of a coin, counting clusters as independent."""


def _cross_validate(values: np.ndarray, positive: np.ndarray, clusters: np.ndarray, seed: int) -> _Trial:
    """The shallowest depth within one standard error of the best (Breiman et al. 1984)."""
    fold = stratified_split(positive.astype(np.int64), clusters, [1 / FOLDS] * FOLDS, seed)
    independent = [len(np.unique(clusters[side])) for side in (positive, ~positive)]
    error = 0.25 * float(np.sqrt(sum(1 / count for count in independent)))
    trials = []
    for depth in DEPTHS:
        right = np.zeros(len(positive), dtype=bool)
        for held_out in range(FOLDS):
            fit, judged = fold != held_out, fold == held_out
            if judged.any() and positive[fit].any() and not positive[fit].all():
                right[judged] = _fit(values[fit], positive[fit], depth).predict(values[judged]) == positive[judged]
        trials.append(_Trial(depth, _balanced(right, positive), error))
    best = max(trials, key=lambda trial: trial.balanced_accuracy)
    return next(trial for trial in trials if trial.balanced_accuracy >= best.balanced_accuracy - best.error)


def _fit(values: np.ndarray, positive: np.ndarray, depth: int) -> DecisionTreeClassifier:
    tree = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=LEAF, class_weight="balanced", random_state=0)
    return tree.fit(values, positive)


def _balanced(right: np.ndarray, positive: np.ndarray) -> float:
    return float((right[positive].mean() + right[~positive].mean()) / 2)


def _explain(
    has: Has, known: list[Property], values: np.ndarray, chosen: np.ndarray, names: tuple[str, str], trial: _Trial,
    multi_label: bool,
) -> Shortcut:  # fmt: skip
    """The most telling leaf of a tree fitted to all chosen rows, in words; of two classes (`names`, else the second is
    '') it may speak of either."""
    name, other = names
    positive = has(name)
    if trial.depth == 1:
        column = _plainest(values[chosen], positive[chosen])
        known, values = [known[column]], values[:, [column]]
    tree = _fit(values[chosen], positive[chosen], trial.depth)
    path, favours = _leaf(tree, values[chosen], positive[chosen], both_sides=bool(other))
    matches, parts = np.ones(len(values), dtype=bool), []
    for (column, above), threshold in path.items():
        limit = _round_between(values[:, column], threshold)
        matches &= (values[:, column] > limit) == above
        said = known[column].more if above else known[column].less
        parts.append(said.replace("{}", f"{limit:g}"))
    label = name if favours else other
    of_class = has(label)
    return Shortcut(
        label=label,
        rule=" and ".join(parts),
        matches=matches,
        share=float(of_class[matches].mean()),
        elsewhere=float(of_class[~matches].mean()),
        balanced_accuracy=trial.balanced_accuracy,
        remedy=known[next(iter(path))[0]].remedy,
        multi_label=multi_label,
    )


def _plainest(values: np.ndarray, positive: np.ndarray) -> int:
    """The first column that alone tells the class about as well as the best one does."""
    scores = []
    for column in range(values.shape[1]):
        one = values[:, [column]]
        scores.append(_balanced(_fit(one, positive, 1).predict(one) == positive, positive))
    return next(column for column, score in enumerate(scores) if score >= max(scores) - ALIKE)


Way = dict[tuple[int, bool], float]
"""(column, above?) -> threshold; all of them hold."""


def _leaf(tree: DecisionTreeClassifier, values: np.ndarray, positive: np.ndarray, both_sides: bool) -> tuple[Way, bool]:
    """The way to the leaf that tells most, and whether it favours the class; with `both_sides` it may be the rest."""
    at = tree.apply(values)
    weights = np.where(positive, 0.5 / positive.sum(), -0.5 / (~positive).sum())
    candidates = []
    for leaf, path in _paths(tree.tree_):
        inside = weights[at == leaf]
        gain, purity = float(inside.sum()), abs(float(inside.sum())) / float(np.abs(inside).sum())
        if gain > 0 or both_sides:
            # Of leaves that tell the same, the purest, and the one above its threshold: 'stored as PNG' before 'not'.
            rank = (round(abs(gain), 6), round(purity, 2), sum(above for _, above in path))
            candidates.append((rank, path, gain > 0))
    _, path, favours = max(candidates, key=lambda candidate: candidate[0])
    return path, favours


def _paths(tree: Any, node: int = 0, path: Way | None = None) -> Iterator[tuple[int, Way]]:
    """Each leaf and what leads to it. The last of several limits on one side is the tightest, so it takes over."""
    path = path or {}
    left, right = tree.children_left[node], tree.children_right[node]
    if left < 0:
        yield node, path
        return
    column, threshold = int(tree.feature[node]), float(tree.threshold[node])
    yield from _paths(tree, left, {**path, (column, False): threshold})
    yield from _paths(tree, right, {**path, (column, True): threshold})


def _round_between(values: np.ndarray, threshold: float) -> float:
    """The roundest number that divides the values as `threshold` does, above from not above."""
    low, high = values[values <= threshold].max(), values[values > threshold].min()
    for digits in range(1, 16):
        rounded = float(f"{(low + high) / 2:.{digits}g}")
        if low <= rounded < high:
            return rounded
    return float(low)
