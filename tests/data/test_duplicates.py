"""Duplicate search against brute force."""

from collections import defaultdict
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectacles.data import duplicates
from spectacles.data.duplicates import clusters, equal_groups, find, links, near_pairs, pairs_within

seeds = st.integers(0, 2**32 - 1)


def flipped(rng: np.random.Generator, value: int, bits: int) -> int:
    return value ^ sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False))


def mixed_hashes(rng: np.random.Generator) -> list[int]:
    """Strangers, relatives of 0 to 9 bits, repeated values and the extremes."""
    strangers = [int(value) for value in rng.integers(0, 2**64, 12, dtype=np.uint64)]
    relatives = [flipped(rng, int(rng.choice(strangers)), bits) for bits in range(10) for _ in range(3)]
    values = [0, 2**64 - 1, *strangers, *relatives, *strangers[:3]]
    rng.shuffle(values)
    return values


def join(hashes: list[int], others: list[int], distance: int) -> list[tuple[int, int]]:
    blocks = near_pairs(np.array(hashes, dtype=np.uint64), np.array(others, dtype=np.uint64), distance)
    return [(int(i), int(j)) for block in blocks for i, j in block]


@pytest.mark.parametrize("distance", range(8))
@settings(max_examples=15)
@given(seeds)
def test_near_pairs_are_those_of_a_full_comparison(distance, seed):
    rng = np.random.default_rng(seed)
    values = mixed_hashes(rng)
    others = [flipped(rng, value, int(rng.integers(10))) for value in values[:20]]
    for second in (others, values):
        close = [(i, j) for i, a in enumerate(values) for j, b in enumerate(second) if (a ^ b).bit_count() <= distance]
        assert sorted(join(values, second, distance)) == close


def test_near_pairs_do_not_depend_on_how_many_are_compared_at_once(monkeypatch):
    values = mixed_hashes(np.random.default_rng(0))
    whole = sorted(join(values, values, 7))
    monkeypatch.setattr(duplicates, "CHUNK", 3)
    assert sorted(join(values, values, 7)) == whole


@pytest.mark.parametrize("hashes", [[], [5]])
def test_few_hashes_are_near_to_themselves_only(hashes):
    assert join(hashes, hashes, 7) == [(i, i) for i in range(len(hashes))]


@pytest.mark.parametrize("distance", [-1, 8])
def test_a_distance_that_bands_cannot_guarantee_is_rejected(distance):
    with pytest.raises(ValueError, match="0 to 7"):
        join([0], [0], distance)


def table(hashes: list[int], mirrored: list[int] | None = None, contents: list[str] | None = None) -> pd.DataFrame:
    mirrored = [value ^ (2**64 - 1) for value in hashes] if mirrored is None else mirrored
    contents = [f"{number:02d}" for number in range(len(hashes))] if contents is None else contents
    texts = {name: [f"{value:016x}" for value in values] for name, values in (("phash", hashes), ("m", mirrored))}
    return pd.DataFrame({"sha256": contents, "phash": texts["phash"], "phash_mirrored": texts["m"]})


def kinds(found: pd.DataFrame) -> dict[tuple[int, int], tuple[str, int]]:
    return {(a, b): (kind, distance) for a, b, kind, distance in found[["a", "b", "kind", "distance"]].to_numpy()}


@settings(max_examples=30)
@given(seeds, st.integers(0, 7))
def test_pairs_by_hash_are_those_of_a_full_comparison(seed, distance):
    rng = np.random.default_rng(seed)
    hashes = mixed_hashes(rng)
    # Some pictures are near the mirror image of another one, which holds from both sides.
    mirrored = [int(value) for value in rng.integers(0, 2**64, len(hashes), dtype=np.uint64)]
    for i, j in rng.integers(0, len(hashes), (10, 2)):
        mirrored[i] = flipped(rng, hashes[j], int(rng.integers(9)))
    expected = {}
    for a, b in combinations(range(len(hashes)), 2):
        direct = (hashes[a] ^ hashes[b]).bit_count()
        turned = min((hashes[a] ^ mirrored[b]).bit_count(), (hashes[b] ^ mirrored[a]).bit_count())
        if direct <= distance:
            expected[a, b] = ("near", direct)
        elif turned <= distance:
            expected[a, b] = ("mirrored", turned)
    found = find(table(hashes, mirrored), None, distance, 1.0)
    assert kinds(found) == expected
    assert found["similarity"].isna().all()


def test_equal_files_are_exact_duplicates_and_are_searched_once():
    hashes, far = [7, 2**40, 7, 3, 7], [0xF0F0 << 40] * 5
    found = find(table(hashes, far, ["a", "b", "a", "c", "a"]), None, 1, 1.0)
    assert kinds(found) == {
        (0, 2): ("exact", 0), (0, 4): ("exact", 0), (2, 4): ("exact", 0), (0, 3): ("near", 1),
    }  # fmt: skip
    assert clusters(5, [found[["a", "b"]].to_numpy()]).tolist() == [0, 1, 0, 0, 0]


@settings(max_examples=30)
@given(st.permutations(range(24)))
def test_the_order_of_rows_does_not_change_the_clusters(order):
    contents = [f"{number // 2:02d}" for number in range(24)]
    hashes = [mixed_hashes(np.random.default_rng(1))[number // 2] for number in range(24)]
    rows = table(hashes, contents=contents)
    plain, shuffled = (
        clusters(24, [find(part, None, 7, 1.0)[["a", "b"]].to_numpy()]) for part in (rows, rows.iloc[order])
    )
    for a, b in combinations(range(24), 2):
        assert (shuffled[a] == shuffled[b]) == (plain[order[a]] == plain[order[b]])


def test_in_a_large_set_features_must_confirm_hashes_that_differ():
    size = duplicates.CONFIRM_FROM
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**64, size, dtype=np.uint64)]
    hashes[1], hashes[3], hashes[5] = hashes[0] ^ 0b1111, hashes[2] ^ 0b1111, hashes[4] ^ 0b11
    features = rng.standard_normal((size, 16)).astype(np.float32)
    features[1] = features[0] + 0.01
    features[3], features[5] = -features[2], -features[4]
    assert kinds(find(table(hashes), features, 6, 1.0)) == {(0, 1): ("near", 4), (4, 5): ("near", 2)}
    small = find(table(hashes).iloc[:10], features[:10], 6, 1.0)
    assert kinds(small) == {(0, 1): ("near", 4), (2, 3): ("near", 4), (4, 5): ("near", 2)}


def test_features_find_what_hashes_do_not():
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**64, 60, dtype=np.uint64)]
    features = rng.standard_normal((60, 32)).astype(np.float32)
    features[40] = features[7] + 0.05 * rng.standard_normal(32).astype(np.float32)
    found = find(table(hashes), features, 6, 0.9)
    assert found[["a", "b", "kind"]].to_numpy().tolist() == [[7, 40, "similar"]]
    assert found["distance"][0] > 6 and 0.9 < found["similarity"][0] <= 1.0001


def test_of_very_many_pairs_only_those_that_connect_clusters_are_listed(monkeypatch):
    rng = np.random.default_rng(0)
    hashes = [1 << bit for bit in range(40)] + [int(value) for value in rng.integers(0, 2**64, 40, dtype=np.uint64)]
    whole = find(table(hashes), None, 4, 1.0)
    monkeypatch.setattr(duplicates, "MANY_PAIRS", 50)
    monkeypatch.setattr(duplicates, "CHUNK", 100)
    part = find(table(hashes), None, 4, 1.0)
    assert len(part) < len(whole) / 2
    same = [clusters(80, [found[["a", "b"]].to_numpy()]).tolist() for found in (part, whole)]
    assert same[0] == same[1]


@given(
    st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.lists(st.integers(0, n - 1), max_size=4))))
)
def test_clusters_are_the_connected_components(case):
    size, groups = case
    expected = list(range(size))
    for group in groups:  # repainted by hand
        for other in group[1:]:
            old, new = expected[other], expected[group[0]]
            expected = [min(old, new) if value in (old, new) else value for value in expected]
    blocks = [np.array([(group[0], other) for other in group], dtype=np.int64).reshape(-1, 2) for group in groups]
    assert clusters(size, blocks).tolist() == expected


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=20))
def test_links_tie_every_row_to_the_first_of_its_name(names):
    found = [tuple(pair) for pair in links(pd.Series(names, dtype=str)).tolist()]
    assert sorted(found, key=lambda pair: pair[1]) == [
        (names.index(name), place) for place, name in enumerate(names) if name
    ]


@given(st.lists(st.sampled_from(["", "a", "b", "aa", "ä"]), max_size=30))
def test_equal_groups_are_those_of_a_dictionary(values):
    expected = defaultdict(list)
    for index, value in enumerate(values):
        expected[value].append(index)
    found = equal_groups(np.array(values, dtype=str))
    assert sorted(found) == sorted(group for group in expected.values() if len(group) > 1)


def test_pairs_within_pairs_a_small_group_fully():
    assert pairs_within([[3, 5, 9], [1, 2]]) == [(3, 5), (3, 9), (5, 9), (1, 2)]


def test_pairs_within_names_every_member_of_a_large_group_without_pairing_all():
    pairs = pairs_within([list(range(1000))])
    assert {index for pair in pairs for index in pair} == set(range(1000))
    assert len(pairs) == len(set(pairs)) < 1100
