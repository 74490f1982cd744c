"""Shortcuts: what gives a class away by accident, such as size, light, border, format or name of the files.

A model may learn that instead of what the photos show (shortcut learning, Geirhos et al. 2020). A shallow decision tree
sees only such properties here; where it separates a class from the rest, a network could as well. With several labels
an image, the images with a label are separated from those without it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.tree import DecisionTreeClassifier

from spectacles.core.wording import count_of, percent
from spectacles.data import label_sets
from spectacles.data.stratification import stratified_folds
from spectacles.exploration.file_properties import Property, properties

FOLDS, DEPTHS, LEAF = 5, (1, 2, 3), 5
FEWEST = 20
"""Independent images that a class and the rest must each have: with fewer, no score would differ from chance."""
MARGIN, ERRORS = 0.15, 5.0
"""A class is given away where its balanced accuracy is above chance (0.5) by MARGIN and by ERRORS standard errors. In
460 trials with random labels the tree was 0.3 standard errors above chance on average, with a standard deviation of
1.2, and never more than 4.6. Photos of faces, cats and dogs reached up to 0.60: light differs a little by class."""
TOLERANCE = 0.01
"""A plainer property is named if its balanced accuracy is at most this much below the best."""
MOST_ROWS, SCREENED_ROWS, MOST_CLASSES = 1500, 200, 12
"""Images of a class, and of the rest, that trees are fitted to (drawn with a seed); the same for a first screening of
many classes; and the classes that are tested after it."""


@dataclass(frozen=True)
class Shortcut:
    """A rule about files, and the class that it gives away."""

    label: str
    rule: str
    """Ends a sentence about 'images': 'wider than 400 px'."""
    matches: np.ndarray
    """(N,) bool: the rows that the rule applies to."""
    share: float
    elsewhere: float
    """Shares of the class among the matching rows and among the others."""
    balanced_accuracy: float
    """Of the tree for this class against the rest, on held-out folds."""
    remedy: str
    multi_label: bool = False

    def sentence(self) -> str:
        share, elsewhere = percent(self.share), percent(self.elsewhere)
        finding = f"images {self.rule} are {share} class {self.label!r}, the others {elsewhere}"
        if self.multi_label:
            finding = f"{share} of the images {self.rule} have label {self.label!r}, and {elsewhere} of the others"
        return f"{finding}: a model may learn that instead of what the photos show"


@dataclass(frozen=True)
class _Files:
    """The properties of N files, and their labels."""

    properties: list[Property]
    values: np.ndarray
    """(N, P) float64 of the properties."""
    labels: "pd.Series[str]"
    clusters: np.ndarray
    """(N,)."""
    multi_label: bool

    def members(self, name: str) -> np.ndarray:
        """(N,) bool: the rows of a class, or with a label."""
        return label_sets.has(self.labels, name, self.multi_label).to_numpy(dtype=bool)

    def column(self, number: int) -> "_Files":
        """With that property only."""
        return replace(self, properties=[self.properties[number]], values=self.values[:, [number]])


def find(rows: pd.DataFrame, seed: int, multi_label: bool = False) -> tuple[list[Shortcut], float | None]:
    """(shortcuts in labelled rows of the index, the strongest first; highest balanced accuracy found, whether or not it
    is a shortcut: chance is 0.5, None where there are too few images).

    A class is tested against the rest by a tree of depth 1 to 3 in folds that keep clusters (column `cluster`) whole;
    of many classes only the most promising after a screening.
    """
    known = properties(rows)
    every = label_sets.names(rows["label"]) if multi_label else [str(name) for name in np.unique(rows["label"])]
    if not known:
        return [], None
    # In the precision of the trees, so that their thresholds divide the values in the same way.
    values = np.stack([item.values for item in known], axis=1).astype(np.float32).astype(np.float64)
    files = _Files(known, values, rows["label"], rows["cluster"].to_numpy(), multi_label)
    names = [name for name in every if _enough_images(files, name)]
    pair = every if len(every) == 2 and not multi_label else []
    if pair:
        names = names[:1]  # what separates one class separates the other
    if not names:
        return [], None
    found, best = [], 0.0
    for name in _most_promising(files, names, seed):
        members = files.members(name)
        chosen = _sample(members, MOST_ROWS, seed)
        trial = _cross_validate(values[chosen], members[chosen], files.clusters[chosen], seed)
        best = max(best, trial.balanced_accuracy)
        if trial.balanced_accuracy > 0.5 + max(MARGIN, ERRORS * trial.error):
            other = next((each for each in pair if each != name), "")
            found.append(_explain(files, chosen, (name, other), trial))
    return sorted(found, key=lambda shortcut: -shortcut.balanced_accuracy), best


def table(found: Sequence[Shortcut]) -> pd.DataFrame:
    """What shortcuts.csv holds; `images` counts those that the rule applies to."""
    columns = ["class", "rule", "images", "share", "share_elsewhere", "balanced_accuracy"]
    rows = [
        (item.label, item.rule, int(item.matches.sum()), item.share, item.elsewhere, item.balanced_accuracy)
        for item in found
    ]
    return pd.DataFrame(rows, columns=columns).round(4)


def summarise(found: Sequence[Shortcut], separation: float | None, noun: str) -> list[str]:
    """The result of `find` in a sentence."""
    if separation is None:
        return [f"too few images to test whether the files' properties give a {noun} away"]
    result = (
        f"size, light, colour, format and name of the files predict a {noun} with balanced accuracy {separation:.2f}"
    )
    if not found:
        return [f"{result} at most (chance 0.50): no shortcut found"]
    return [f"{result} (chance 0.50): they give {count_of(len(found), noun)} away, see explore/shortcuts.csv"]


def _enough_images(files: _Files, name: str) -> bool:
    """Whether the class and the rest have enough independent images each."""
    members = files.members(name)
    return all(len(np.unique(files.clusters[side])) >= FEWEST for side in (members, ~members))


def _sample(positive: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Sorted positions of up to `most` rows of each side of (N,) bool."""
    rng = np.random.default_rng(seed)
    sides = (np.flatnonzero(positive), np.flatnonzero(~positive))
    return np.sort(np.concatenate([rng.permutation(side)[:most] for side in sides]))


def _most_promising(files: _Files, names: Sequence[str], seed: int) -> list[str]:
    """Of many classes those that a tree separates best on a few images that it was fitted to."""
    if len(names) <= MOST_CLASSES:
        return list(names)
    scores = {}
    for name in names:
        positive = files.members(name)
        chosen = _sample(positive, SCREENED_ROWS, seed)
        values = files.values[chosen]
        right = _fit(values, positive[chosen], DEPTHS[-1]).predict(values) == positive[chosen]
        scores[name] = _balanced(right, positive[chosen])
    return sorted(names, key=lambda name: -scores[name])[:MOST_CLASSES]


@dataclass(frozen=True)
class _Trial:
    depth: int
    balanced_accuracy: float
    error: float
    """Standard error of the balanced accuracy of a coin toss, counting clusters as independent."""


def _cross_validate(values: np.ndarray, positive: np.ndarray, clusters: np.ndarray, seed: int) -> _Trial:
    """The shallowest depth within one standard error of the best (Breiman et al. 1984)."""
    fold = stratified_folds(positive.astype(np.int64), clusters, FOLDS, seed)
    independent = [len(np.unique(clusters[side])) for side in (positive, ~positive)]
    error = 0.25 * float(np.sqrt(sum(1 / count for count in independent)))
    trials = []
    for depth in DEPTHS:
        right = np.zeros(len(positive), dtype=bool)
        for held_out in range(FOLDS):
            fit, test = fold != held_out, fold == held_out
            if test.any() and positive[fit].any() and not positive[fit].all():
                right[test] = _fit(values[fit], positive[fit], depth).predict(values[test]) == positive[test]
        trials.append(_Trial(depth, _balanced(right, positive), error))
    best = max(trials, key=lambda trial: trial.balanced_accuracy)
    return next(trial for trial in trials if trial.balanced_accuracy >= best.balanced_accuracy - best.error)


def _fit(values: np.ndarray, positive: np.ndarray, depth: int) -> DecisionTreeClassifier:
    tree = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=LEAF, class_weight="balanced", random_state=0)
    return tree.fit(values, positive)


def _balanced(right: np.ndarray, positive: np.ndarray) -> float:
    return float((right[positive].mean() + right[~positive].mean()) / 2)


def _explain(files: _Files, chosen: np.ndarray, names: tuple[str, str], trial: _Trial) -> Shortcut:
    """The most informative leaf of a tree fitted to the chosen rows, in words. Of two classes (`names`; else the second
    is '') it may be about either."""
    name, other = names
    positive = files.members(name)[chosen]
    if trial.depth == 1:
        files = files.column(_plainest(files.values[chosen], positive))
    tree = _fit(files.values[chosen], positive, trial.depth)
    path, favours = _leaf(tree, files.values[chosen], positive, both_sides=bool(other))
    matches, parts = np.ones(len(files.values), dtype=bool), []
    for (column, above), threshold in path.items():
        values, item = files.values[:, column], files.properties[column]
        limit = _round_between(values, threshold)
        matches &= (values > limit) == above
        parts.append((item.more if above else item.less).replace("{}", f"{limit:g}"))
    label = name if favours else other
    of_class = files.members(label)
    return Shortcut(
        label=label,
        rule=" and ".join(parts),
        matches=matches,
        share=float(of_class[matches].mean()),
        elsewhere=float(of_class[~matches].mean()),
        balanced_accuracy=trial.balanced_accuracy,
        remedy=files.properties[next(iter(path))[0]].remedy,
        multi_label=files.multi_label,
    )


def _plainest(values: np.ndarray, positive: np.ndarray) -> int:
    """The first column that alone separates the class about as well as the best one."""
    scores = []
    for column in range(values.shape[1]):
        one = values[:, [column]]
        scores.append(_balanced(_fit(one, positive, 1).predict(one) == positive, positive))
    return next(column for column, score in enumerate(scores) if score >= max(scores) - TOLERANCE)


Rule = dict[tuple[int, bool], float]
"""(column, above?) -> threshold; all conditions hold."""


def _leaf(
    tree: DecisionTreeClassifier, values: np.ndarray, positive: np.ndarray, both_sides: bool
) -> tuple[Rule, bool]:
    """The rule of the most informative leaf, and whether it favours the class; with `both_sides` it may favour the
    rest."""
    at = tree.apply(values)
    weights = np.where(positive, 0.5 / positive.sum(), -0.5 / (~positive).sum())
    candidates = []
    for leaf, path in _paths(tree.tree_):
        inside = weights[at == leaf]
        gain, purity = float(inside.sum()), abs(float(inside.sum())) / float(np.abs(inside).sum())
        if gain > 0 or both_sides:
            # Of equal leaves the purest, then the one above its threshold: 'stored as PNG' rather than 'not ...'.
            rank = (round(abs(gain), 6), round(purity, 2), sum(above for _, above in path))
            candidates.append((rank, path, gain > 0))
    _, path, favours = max(candidates, key=lambda candidate: candidate[0])
    return path, favours


def _paths(tree: Any, node: int = 0, path: Rule | None = None) -> Iterator[tuple[int, Rule]]:
    """Each leaf and its rule. Of several limits on one side the last is the tightest and replaces the others."""
    path = path or {}
    left, right = tree.children_left[node], tree.children_right[node]
    if left < 0:
        yield node, path
        return
    column, threshold = int(tree.feature[node]), float(tree.threshold[node])
    yield from _paths(tree, left, {**path, (column, False): threshold})
    yield from _paths(tree, right, {**path, (column, True): threshold})


def _round_between(values: np.ndarray, threshold: float) -> float:
    """The number with the fewest digits that divides the values as `threshold` does."""
    low, high = values[values <= threshold].max(), values[values > threshold].min()
    for digits in range(1, 16):
        rounded = float(f"{(low + high) / 2:.{digits}g}")
        if low <= rounded < high:
            return rounded
    return float(low)
