"""Features on disk: indexed, bounded, and safe with several processes."""

import multiprocessing
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectacles.models.feature_store import FeatureStore

PLENTY = 1 << 30


def vectors(start: int, stop: int, dim: int = 250) -> dict[str, np.ndarray]:
    return {f"{number:064}": np.full(dim, number, dtype=np.float32) for number in range(start, stop)}


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts what a process reads")
def test_a_lookup_reads_what_it_asks_for(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "features.sqlite", PLENTY)
    store.write("net", vectors(0, 20_000))
    wanted = [f"{number:064}" for number in range(0, 40_000, 400)]
    before = bytes_read()
    found = store.read("net", wanted)
    read = bytes_read() - before
    assert list(found) == wanted[:50] and found[wanted[7]][0] == 2800
    assert (tmp_path / "features.sqlite").stat().st_size > 2e7
    assert read < 4e6, "a few pages for each of 100 rows"


def test_features_belong_to_one_network(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "a" / "features.sqlite", PLENTY)
    assert store.read("one", ["x"]) == {}
    store.write("one", {"x": np.float32([1, 2])})
    store.write("other", {"x": np.float32([3])})
    assert store.read("one", ["x", "y"])["x"].tolist() == [1, 2]
    assert store.read("other", ["x"])["x"].tolist() == [3]
    assert store.read("third", ["x"]) == {} == store.read("one", [])


def test_the_least_recently_used_network_goes_first(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "features.sqlite", 1_500_000)
    for name in ("one", "two"):
        store.write(name, vectors(0, 400))
    store.read("one", ["any"])
    store.write("three", vectors(0, 400))
    assert [len(store.read(name, list(vectors(0, 400)))) for name in ("one", "two", "three")] == [400, 0, 400]
    assert store.path.stat().st_size <= 1_500_000


def test_the_oldest_features_of_a_network_make_room_for_new_ones(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "features.sqlite", 1_000_000)
    for start in range(0, 3000, 300):
        store.write("net", vectors(start, start + 300))
        assert store.path.stat().st_size <= 1_000_000
    left = sorted(store.read("net", list(vectors(0, 3000))))
    assert len(left) > 500 and left == list(vectors(3000 - len(left), 3000))


@settings(max_examples=8)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sets(st.integers(0, 30), max_size=8)), max_size=4))
def test_what_was_written_is_read(steps: list[tuple[str, set[int]]]) -> None:
    with TemporaryDirectory() as folder:
        store, expected = FeatureStore(Path(folder, "features.sqlite"), PLENTY), {"a": {}, "b": {}}
        for network, numbers in steps:
            written = {str(number): np.float32([number, ord(network)]) for number in numbers}
            store.write(network, written)
            expected[network] |= written
        for network, known in expected.items():
            found = store.read(network, [str(number) for number in range(31)])
            assert {name: vector.tolist() for name, vector in found.items()} == {
                name: vector.tolist() for name, vector in known.items()
            }


def write_some(path: Path, start: int) -> None:
    for at in range(start, start + 100, 10):
        FeatureStore(path, PLENTY).write("net", vectors(at, at + 20, dim=4))


def test_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "features.sqlite"
    processes = [multiprocessing.get_context("fork").Process(target=write_some, args=(path, n * 50)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(FeatureStore(path, PLENTY).read("net", list(vectors(0, 300)))) == 210


def test_a_writer_that_is_killed_leaves_what_was_there(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "features.sqlite", PLENTY)
    store.write("net", vectors(0, 300))
    process = os.fork()
    if process == 0:
        with closing(sqlite3.connect(store.path, isolation_level=None)) as database:
            database.execute("PRAGMA cache_size = 1")  # so that pages reach the file before the end
            database.execute("BEGIN IMMEDIATE")
            database.execute("DELETE FROM features")
            os.kill(os.getpid(), 9)
    os.waitpid(process, 0)
    assert len(store.read("net", list(vectors(0, 300)))) == 300


def test_a_full_disk_is_an_error_that_names_the_file(mount_disk) -> None:
    store = FeatureStore(mount_disk("200k") / "features.sqlite", PLENTY)
    with pytest.raises(OSError, match="full") as error:
        store.write("net", vectors(0, 1000))
    assert error.value.filename == str(store.path)
