"""Duplicates: identical files, near duplicates by perceptual hash and by features, without comparing every pair."""

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from spectacles.data.similarity import cosines, prepare_features, similar_pairs

EXACT, NEAR, MIRRORED, SIMILAR = KINDS = ("exact", "near", "mirrored", "similar")
"""A pair is of the first kind that applies: same bytes; hashes that differ in a few bits; the same with one image
mirrored; similar features."""
CONFIRM_FROM, CONFIRM_BEYOND, CONFIRMED = 500, 2, 0.2
"""In sets of at least so many images, where hashes come close by chance, pairs that differ in more than two bits must
also have features of at least this cosine: of 55 false pairs among 3,600 aligned faces that leaves 3."""
MANY_PAIRS = 1_000_000
"""After so many pairs only those that connect clusters are listed: all frames of a video are alike."""
BANDS, BAND_BITS = 4, 16
"""A 64-bit hash has four bands of 16 bits: two hashes that differ in at most 7 bits differ in at most one bit of some
band, and those that differ in at most 3 agree in some band."""
MAX_DISTANCE = 2 * BANDS - 1
CHUNK = 2_000_000
"""Candidates compared at once: about 100 MB."""


def near_pairs(hashes: np.ndarray, others: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """Blocks (P, 2) int64 of all (i, j), each once, where hashes[i] and others[j], uint64, differ in at most
    `distance` bits (0 to 7). A set searched against itself gives (i, i), and both (i, j) and (j, i).

    Multi-index hashing (Norouzi et al. 2012): only hashes that agree in a band, up to one bit, are compared.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"distance must be 0 to {MAX_DISTANCE}")
    bands, other_bands = _bands(hashes), _bands(others)
    slack = 0 if distance < BANDS else 1
    flips = [0, *(1 << bit for bit in range(BAND_BITS))] if slack else [0]
    for band in range(BANDS):
        order = np.argsort(other_bands[:, band], kind="stable")
        ends = np.cumsum(np.bincount(other_bands[:, band], minlength=1 << BAND_BITS))
        starts = np.append(0, ends[:-1])
        for flip in flips:
            keys = bands[:, band] ^ np.uint16(flip)
            for i, places in _expand(starts[keys], ends[keys]):
                j = order[places]
                close = np.bitwise_count(hashes[i] ^ others[j]) <= distance
                i, j = i[close], j[close]
                # A pair that agrees in an earlier band too was returned there.
                earlier = np.bitwise_count(bands[i, :band] ^ other_bands[j, :band]) <= slack
                fresh = ~earlier.any(axis=1)
                if fresh.any():
                    yield np.stack([i[fresh], j[fresh]], axis=1)


def _bands(hashes: np.ndarray) -> np.ndarray:
    """(N,) uint64 -> (N, 4) uint16. A band takes every fourth bit, so that none holds only the lowest frequencies, in
    which all photos are alike: the search is fast because buckets are of similar size."""
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1)
    interleaved = bits.reshape(-1, BAND_BITS, BANDS).transpose(0, 2, 1)
    return np.packbits(interleaved.reshape(-1, 64), axis=1).view(np.uint16)


def _expand(starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(i, place) for each place in starts[i]..ends[i]-1, in chunks of whole i."""
    sizes = ends - starts
    total = np.cumsum(sizes)
    begin = 0
    while begin < len(sizes):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + CHUNK, side="right")))
        part = sizes[begin:end]
        i = np.repeat(np.arange(begin, end), part)
        first = np.repeat(starts[begin:end] - (total[begin:end] - part - done), part)
        yield i, first + np.arange(len(i))
        begin = end


def find(used: pd.DataFrame, features: np.ndarray | None, distance: int, similarity: float) -> pd.DataFrame:
    """Pairs a < b (positions in `used`, which has sha256, phash, phash_mirrored), their kind, distance and similarity.

    Without `features` (N, D) only the hashes decide, and the similarity is NaN. The pairs connect all members of a set
    of duplicates; of very many not every two are listed.
    """
    digests = used["sha256"].to_numpy()
    # In the order of contents, so that the order of rows does not matter.
    order = np.argsort(pd.factorize(digests, sort=True)[0], kind="stable")
    same = equal_groups(pd.factorize(digests[order])[0])
    exact = order[np.array(pairs_within(same), dtype=np.int64).reshape(-1, 2)]
    rows = order[~pd.Series(digests[order]).duplicated().to_numpy()]
    measured = None if features is None else prepare_features(features[rows])
    hashes, mirrored = (_parse(used[column].to_numpy()[rows]) for column in ("phash", "phash_mirrored"))
    blocks = _search(hashes, mirrored, distance, measured, similarity)
    kinds, pairs = _collect(blocks, len(rows))
    table = pd.DataFrame({"kind": kinds, "distance": _distances(hashes, mirrored, kinds, pairs), "similarity": np.nan})
    if measured is not None:
        table["similarity"] = cosines(measured[0], pairs).astype(np.float64).clip(-1, 1).round(4)
    known = np.nan if features is None else 1.0
    equal = pd.DataFrame({"kind": EXACT, "distance": 0, "similarity": known}, index=range(len(exact)))
    found = pd.concat([equal, table], ignore_index=True)
    found[["a", "b"]] = np.sort(np.concatenate([exact, rows[pairs]]), axis=1)
    return found[["a", "b", "kind", "distance", "similarity"]].sort_values(["a", "b"], ignore_index=True)


def _parse(texts: np.ndarray) -> np.ndarray:
    return np.array([int(text, 16) for text in texts], dtype=np.uint64)


def _search(
    hashes: np.ndarray,
    mirrored: np.ndarray,
    distance: int,
    measured: tuple[np.ndarray, np.ndarray | None] | None,
    similarity: float,
) -> Iterator[tuple[str, np.ndarray]]:
    """Blocks of (kind, pairs (P, 2) of contents, i < j); a pair may occur again under a later kind."""
    for kind, pairs in _search_hashes(hashes, mirrored, distance):
        if measured is not None and len(hashes) >= CONFIRM_FROM:
            close = _distances(hashes, mirrored, np.repeat(kind, len(pairs)), pairs) <= CONFIRM_BEYOND
            pairs = pairs[close | (cosines(measured[0], pairs) >= CONFIRMED)]
        yield kind, pairs
    if measured is not None:
        for pairs in similar_pairs(*measured, similarity):
            yield SIMILAR, pairs


def _search_hashes(hashes: np.ndarray, mirrored: np.ndarray, distance: int) -> Iterator[tuple[str, np.ndarray]]:
    """Of images with the same two hashes one is searched for all: thousands of empty pages would make millions of
    pairs."""
    both = np.stack([hashes, mirrored], axis=1)
    _, first, code = np.unique(both, axis=0, return_index=True, return_inverse=True)
    yield NEAR, np.array(pairs_within(equal_groups(code.ravel())), dtype=np.int64).reshape(-1, 2)
    for pairs in near_pairs(hashes[first], hashes[first], distance):
        yield NEAR, np.sort(first[pairs[pairs[:, 0] < pairs[:, 1]]], axis=1)
    for pairs in near_pairs(hashes[first], mirrored[first], distance):
        yield MIRRORED, np.sort(first[pairs[pairs[:, 0] != pairs[:, 1]]], axis=1)


def _collect(blocks: Iterable[tuple[str, np.ndarray]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(kinds (P,), pairs (P, 2)), each pair once, under its first kind."""
    collected: list[tuple[str, np.ndarray]] = []
    cluster: np.ndarray | None = None
    for kind, block in blocks:
        if cluster is not None:
            block = block[cluster[block[:, 0]] != cluster[block[:, 1]]]
        collected.append((kind, block))
        if sum(len(pairs) for _, pairs in collected) > MANY_PAIRS and len(block):
            so_far = [pairs for _, pairs in collected] if cluster is None else [_links_of(cluster), block]
            cluster = clusters(size, so_far)
    kinds = np.repeat([kind for kind, _ in collected], [len(pairs) for _, pairs in collected])
    pairs = np.concatenate([pairs for _, pairs in collected])
    _, once = np.unique(pairs[:, 0] * size + pairs[:, 1], return_index=True)
    return kinds[once], pairs[once]


def _links_of(numbers: np.ndarray) -> np.ndarray:
    return np.stack([np.arange(len(numbers)), numbers], axis=1)


def _distances(hashes: np.ndarray, mirrored: np.ndarray, kinds: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Bits in which the hashes differ; of MIRRORED pairs with one image mirrored, of SIMILAR ones the smaller count."""
    a, b = pairs.T
    direct = np.bitwise_count(hashes[a] ^ hashes[b]).astype(np.int64)
    flipped = np.minimum(np.bitwise_count(hashes[a] ^ mirrored[b]), np.bitwise_count(mirrored[a] ^ hashes[b]))
    return np.select([kinds == NEAR, kinds == MIRRORED], [direct, flipped], np.minimum(direct, flipped))


def equal_groups(values: np.ndarray) -> list[list[int]]:
    """Indices of equal entries, for each value that occurs more than once."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.append(True, values[order][1:] != values[order][:-1])) if len(values) else order
    sizes = np.diff(np.append(starts, len(values)))
    return [order[start : start + size].tolist() for start, size in zip(starts, sizes, strict=True) if size > 1]


def pairs_within(groups: list[list[int]], all_pairs_up_to: int = 10) -> list[tuple[int, int]]:
    """Pairs that connect each group: every pair of its first members, and each later one with the first."""
    pairs: list[tuple[int, int]] = []
    for group in groups:
        pairs += combinations(group[:all_pairs_up_to], 2)
        pairs += [(group[0], other) for other in group[all_pairs_up_to:]]
    return pairs


def links(names: "pd.Series[str]") -> np.ndarray:
    """(L, 2) positions: each row that has a name ('' is none) with the first row of that name."""
    codes = pd.factorize(names.where(names != ""))[0]
    rows = np.flatnonzero(codes >= 0)
    _, first, inverse = np.unique(codes[rows], return_index=True, return_inverse=True)
    return np.stack([rows[first][inverse], rows], axis=1)


def clusters(size: int, pairs: Iterable[np.ndarray]) -> np.ndarray:
    """(size,) int64: for each index the smallest one that it is connected to by `pairs`, each (P, 2)."""
    a, b = np.concatenate([np.empty((0, 2), dtype=np.int64), *pairs]).T
    graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(size, size))
    number = connected_components(graph, directed=False)[1]
    smallest: np.ndarray = np.unique(number, return_index=True)[1][number]
    return smallest
