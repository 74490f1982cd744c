"""Near duplicates by perceptual hash, without comparing every pair, and clusters from pairs."""

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np

BANDS = 8
"""A 64-bit hash has eight bytes: two hashes that differ in at most 7 bits agree in at least one of them."""


def near_pairs(hashes: np.ndarray, distance: int) -> Iterator[tuple[int, int]]:
    """Index pairs (i < j) of uint64 hashes (N,) whose Hamming distance is in 1..`distance` (at most 7), each once.

    Multi-index hashing (Norouzi et al. 2012): candidates share a byte in the same place; only those are compared.
    Equal hashes are not paired here: `equal_groups` finds them without pairs.
    """
    if not 0 <= distance < BANDS:
        raise ValueError("distance must be 0 to 7")
    unique, first = np.unique(hashes, return_index=True)
    bands = unique.view(np.uint8).reshape(-1, BANDS)
    seen: set[tuple[int, int]] = set()
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        starts = np.flatnonzero(np.diff(bands[order, band], prepend=-1))
        for bucket in np.split(order, starts[1:]):
            for i, j in _close_pairs(unique, bucket, distance):
                pair = (int(min(first[i], first[j])), int(max(first[i], first[j])))
                if pair not in seen:
                    seen.add(pair)
                    yield pair


def _close_pairs(unique: np.ndarray, bucket: np.ndarray, distance: int) -> Iterator[tuple[int, int]]:
    for position, i in enumerate(bucket[:-1]):
        others = bucket[position + 1 :]
        close = others[np.bitwise_count(unique[others] ^ unique[i]) <= distance]
        yield from ((int(i), int(j)) for j in close)


def equal_groups(values: np.ndarray) -> list[list[int]]:
    """Indices of entries that are equal, for each value that occurs more than once."""
    order = np.argsort(values, kind="stable")
    starts = (
        np.flatnonzero(np.append(True, values[order][1:] != values[order][:-1])) if len(values) else np.array([], int)
    )
    return [sorted(group.tolist()) for group in np.split(order, starts[1:]) if len(group) > 1]


def clusters(size: int, groups: Iterable[Iterable[int]]) -> np.ndarray:
    """Union-find: (size,) int64 cluster numbers, the smallest index of each cluster's members."""
    parent = np.arange(size)

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    for group in groups:
        members = list(group)
        for other in members[1:]:
            a, b = root(members[0]), root(other)
            parent[max(a, b)] = min(a, b)
    return np.array([root(index) for index in range(size)], dtype=np.int64)


def pairs_within(groups: list[list[int]], all_pairs_up_to: int = 10) -> list[tuple[int, int]]:
    """Pairs for a listing: every pair of a group's first members, and each later one with the first."""
    pairs: list[tuple[int, int]] = []
    for group in groups:
        pairs += combinations(group[:all_pairs_up_to], 2)
        pairs += [(group[0], other) for other in group[all_pairs_up_to:]]
    return pairs
