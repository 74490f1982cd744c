"""Stratified division of clusters: the one algorithm behind train, validation and test splits and behind folds.

Iterative stratification (Sechidis et al. 2011) of clusters instead of images: from the largest to the smallest, of
equal ones the rarest class first, each goes to the part that lacks its rarest class most. Two steps are added. Before
it, many clusters with the same content are dealt out by their shares at once, so that millions of rows take seconds.
After it, clusters are exchanged as long as that brings the parts closer to their shares.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

TOLERANCE = 1e-9
"""Of an image: shares are sums of rounded fractions."""
MANY = 100
"""Clusters with the same content from which they are dealt out at once: rounding then costs little."""
ALIKE, EXCHANGEABLE, EXCHANGES = 3, 400, 300
"""Clusters that may be exchanged, so many of the same content in the same part, of these the smallest; how often."""


def stratified_split(labels: np.ndarray, clusters: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """(N,) class indices, or (N, K) of 0 and 1, and cluster numbers (N,) -> (N,) split numbers 0..len(fractions)-1.

    Split 0 is for training: it gets every class. Otherwise each split holds `fractions` of the images, give or take the
    largest cluster, and of each class as nearly as clusters allow; with several labels per image, "no label" is a class
    too. A split with a fraction is empty only if no other can give it a cluster.
    """
    return _divide(labels, clusters, fractions, seed, for_training=0)


def stratified_folds(labels: np.ndarray, clusters: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The same for cross-validation: (N,) numbers 0..folds-1 of parts of equal size, none of them for training."""
    return _divide(labels, clusters, [1 / folds] * folds, seed, for_training=None)


def sample_clusters(clusters: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Sorted positions of whole clusters (N,), drawn until `limit` rows are reached; all of them where they fit."""
    if len(clusters) <= limit:
        return np.arange(len(clusters))
    _, numbers, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    drawn = order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), limit, side="right")))]
    return np.flatnonzero(np.isin(numbers, drawn))


def _divide(
    labels: np.ndarray, clusters: np.ndarray, fractions: Sequence[float], seed: int, for_training: int | None
) -> np.ndarray:
    _, numbers = np.unique(clusters, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = _count_classes(labels, numbers)
    # A collision of these hashes, one in 10 million for a million different contents, costs evenness, nothing else.
    hashes = counts.astype(np.uint64) @ rng.integers(2**64 - 1, size=counts.shape[1], dtype=np.uint64)
    order = rng.permutation(counts.shape[0])
    division = _Division(counts, np.asarray(fractions, dtype=np.float64), for_training)
    content = np.unique(hashes, return_inverse=True)[1]
    division.deal(order, content)
    division.place_one_by_one(order)
    division.fill_empty_parts()
    division.exchange(order, content)
    return division.part[numbers]


def _count_classes(labels: np.ndarray, numbers: np.ndarray) -> Any:
    """(M, C) sparse: images of each of M clusters by class; the last column counts all of its images. Of 10,000 classes
    a cluster has one or two."""
    if labels.ndim == 2:
        images, columns = np.nonzero(np.column_stack([labels, labels.sum(axis=1) == 0]))
        classes = labels.shape[1] + 1
    else:
        images, columns, classes = np.arange(len(labels)), labels, int(labels.max(initial=-1)) + 1
    rows = np.concatenate([numbers[images], numbers])
    columns = np.concatenate([columns, np.full(len(labels), classes)])
    shape = (int(numbers.max(initial=-1)) + 1, classes + 1)
    counts = sparse.coo_array((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=shape).tocsr()
    counts.sum_duplicates()
    return counts


class _Division:
    """M clusters on their way into S parts, each by its number; columns are those of `_count_classes`, C of them."""

    def __init__(self, counts: Any, fractions: np.ndarray, for_training: int | None) -> None:
        self.counts = counts
        self.fractions = fractions
        self.for_training = for_training
        self.sizes = counts[:, [-1]].toarray().ravel()
        self.part = np.full(len(self.sizes), -1, dtype=np.int64)
        self.undecided = counts.sum(axis=0)
        """(C,): images in clusters that have no part yet."""
        self.lacking = np.outer(fractions, self.undecided)
        """(S, C): images that each part should still get."""
        self.holds = np.zeros(self.lacking.shape, dtype=np.int64)
        """(S, C): clusters of each part that have the class."""
        self.smallest = _smallest(counts, self.sizes)

    def deal(self, order: np.ndarray, content: np.ndarray) -> None:
        """Gives each part its share, rounded down, of clusters with the same `content` (M,), where they are MANY."""
        order = order[np.argsort(content[order], kind="stable")]
        alike = np.bincount(content)
        order, alike = order[alike[content[order]] >= MANY], alike[alike >= MANY]
        if not len(order):
            return
        starts = np.cumsum(alike) - alike
        each = np.floor(self._open_shares(order[starts]) * alike + TOLERANCE)
        ends = np.repeat(each.cumsum(axis=0), alike, axis=1)
        part = (np.arange(len(order)) - np.repeat(starts, alike) >= ends).sum(axis=0)
        dealt = part < len(self.fractions)
        self._put(order[dealt], part[dealt])

    def _open_shares(self, clusters: np.ndarray) -> np.ndarray:
        """(S, len(clusters)): the share of clusters like this one that each part may get without having too much of any
        class, or too many images."""
        shares = self.lacking.clip(min=0)
        shares[:, -1] = self._room().clip(min=0)
        shares /= np.maximum(self.undecided, 1)
        rows = self.counts[clusters]
        return np.minimum.reduceat(shares[:, rows.indices], rows.indptr[:-1], axis=1)

    def _room(self) -> np.ndarray:
        """(S,): images that each part can still take."""
        room = self.lacking[:, -1].copy()
        if self.for_training is not None:
            room[self.for_training] -= self._reserved().sum()
        return room

    def _reserved(self) -> np.ndarray:
        """(C,): room that the training part keeps for the smallest cluster of each class that it does not have yet."""
        reserved = np.where(self.holds[self.for_training or 0] > 0, 0, self.smallest)
        reserved[-1] = 0
        return reserved

    def _put(self, clusters: np.ndarray, parts: np.ndarray) -> None:
        self.part[clusters] = parts
        for part in np.unique(parts):
            rows = self.counts[clusters[parts == part]]
            self.holds[part] += (rows > 0).sum(axis=0)
            self.lacking[part] -= rows.sum(axis=0)
            self.undecided -= rows.sum(axis=0)

    def place_one_by_one(self, order: np.ndarray) -> None:
        order = order[self.part[order] < 0]
        if not len(order):
            return
        rows = self.counts[order]
        rarest = np.minimum.reduceat(self.counts.sum(axis=0)[rows.indices], rows.indptr[:-1])
        for place in np.lexsort((rarest, -self.sizes[order])):
            entries = slice(rows.indptr[place], rows.indptr[place + 1])
            columns, images = rows.indices[entries], rows.data[entries]
            part = self._choose(columns, images)
            self.part[order[place]] = part
            self.holds[part, columns] += 1
            self.lacking[part, columns] -= images
            self.undecided[columns] -= images

    def _choose(self, columns: np.ndarray, images: np.ndarray) -> int:
        """The part for a cluster that has `images` of the classes `columns`, the last of which counts all of them.

        It goes where all parts together get at most as many images too many as it has itself. Then no part ever misses
        its size by more than the largest cluster: what some have too much is what others lack.
        """
        room, size = self._room(), images[-1]
        if self.for_training is not None:
            reserved = self._reserved()[columns]
            if ((reserved > 0) & (self.undecided[columns] == images)).any():
                return self.for_training  # it is the last cluster with a class
            room[self.for_training] += reserved.sum()
        too_many = -self.lacking[:, -1].clip(max=0).sum() + (size - room).clip(min=0)
        possible = (too_many <= size + TOLERANCE) & (room > TOLERANCE)
        if not possible.any():
            return int(self.lacking[:, -1].argmax())
        rarest = columns[self.undecided[columns].argmin()]
        by_class, by_images = self.lacking[:, [rarest, -1]].round(6).T
        return int(max(np.flatnonzero(possible), key=lambda part: (by_class[part], by_images[part])))

    def fill_empty_parts(self) -> None:
        """Moves a cluster into each empty part, the smallest that another one can give."""
        for empty in np.flatnonzero(self.fractions > 0):
            if self.holds[empty, -1]:
                continue
            several = self.holds[:, -1] > 1
            candidates = np.flatnonzero(several[self.part] & ~self._needed(np.arange(len(self.part))))
            if len(candidates):
                surplus = -self.lacking[self.part[candidates], -1]
                self._move(int(candidates[np.lexsort((-surplus, self.sizes[candidates]))[0]]), int(empty))

    def _needed(self, clusters: np.ndarray) -> np.ndarray:
        """Which of these are the only ones in the training part with some class."""
        if self.for_training is None:
            return np.zeros(len(clusters), dtype=bool)
        only_one = (self.holds[self.for_training] == 1).astype(np.int64)
        return np.asarray((self.part[clusters] == self.for_training) & (self.counts[clusters] @ only_one > 0))

    def _move(self, cluster: int, part: int) -> None:
        images = self.counts[[cluster]].toarray().ravel()
        for changed, sign in ((self.part[cluster], -1), (part, 1)):
            self.holds[changed] += sign * (images > 0)
            self.lacking[changed] -= sign * images
        self.part[cluster] = part

    def exchange(self, order: np.ndarray, content: np.ndarray) -> None:
        """Moves a cluster, or exchanges two, as long as the sum of the squared differences from the exact shares falls,
        in images of every class and of all, each time as far as possible."""
        parts = np.flatnonzero(self.fractions > 0)
        chosen = self._exchangeable(order, content)
        nothing = sparse.csr_array((len(parts), self.counts.shape[1]))  # one in each part: what a move is exchanged for
        images = sparse.vstack([self.counts[chosen].astype(np.float64), nothing], format="csr")
        sizes, is_cluster = images[:, [-1]].toarray().ravel(), np.arange(images.shape[0]) < len(chosen)
        products = (images @ images.T).toarray()
        for _ in range(EXCHANGES):
            part = np.append(self.part[chosen], parts)
            excess = images @ -self.lacking.T  # (E, S)
            here = excess[np.arange(len(part)), part]
            half = excess[:, part] - here[:, None] + products.diagonal()[:, None] - products
            change = half + half.T
            change[~self._allowed(chosen, part, sizes, is_cluster)] = np.inf
            one, other = np.unravel_index(change.argmin(), change.shape)
            if change[one, other] > -TOLERANCE:
                return
            for moved, to in ((one, part[other]), (other, part[one])):
                if is_cluster[moved]:
                    self._move(int(chosen[moved]), int(to))

    def _exchangeable(self, order: np.ndarray, content: np.ndarray) -> np.ndarray:
        """Cluster numbers: see EXCHANGEABLE."""
        group = content[order] * len(self.fractions) + self.part[order]
        by_group = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[by_group], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        chosen = order[np.sort(by_group[rank < ALIKE])]
        return np.asarray(chosen[np.argsort(self.sizes[chosen], kind="stable")][:EXCHANGEABLE])

    def _allowed(self, chosen: np.ndarray, part: np.ndarray, sizes: np.ndarray, is_cluster: np.ndarray) -> np.ndarray:
        """(E, E): which pairs may be exchanged: training keeps every class, no part becomes empty, and none misses its
        size by more than it, or than the largest cluster."""
        needed = np.append(self._needed(chosen), np.zeros(len(part) - len(chosen), dtype=bool))
        last = self.holds[part, -1] == 1
        stays = needed[:, None] | (last[:, None] & ~is_cluster)
        excess = -self.lacking[:, -1]
        most = max(float(self.sizes.max(initial=0)), float(np.abs(excess).max())) + TOLERANCE
        near = np.abs(excess[part][:, None] - sizes[:, None] + sizes) <= most
        return np.asarray((part[:, None] != part) & ~stays & ~stays.T & near & near.T)


def _smallest(counts: Any, sizes: np.ndarray) -> np.ndarray:
    """(C,): size of the smallest cluster with each class, 0 for a class without images."""
    rows, columns = counts.nonzero()
    smallest = np.full(counts.shape[1], np.iinfo(np.int64).max)
    np.minimum.at(smallest, columns, sizes[rows])
    return np.where(smallest == np.iinfo(np.int64).max, 0, smallest)
