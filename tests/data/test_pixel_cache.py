"""Training's pictures are decoded once, within a bound, and are right whoever else builds the same file."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import write_rows

from spectacles.core.errors import UserError
from spectacles.data import pixel_cache
from spectacles.data.images import decode
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)
EACH = 16 * 16 * 3
PLENTY = 2**20


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every file that is decoded from here on."""
    names: list[str] = []
    original = pixel_cache.decode_unchanged

    def record(path: Path, *rest: object) -> object:
        names.append(path.stem)
        return original(path, *rest)

    monkeypatch.setattr(pixel_cache, "decode_unchanged", record)
    return names


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    return write_rows(tmp_path / "photos", 6)


def open_pixels(rows: pd.DataFrame, tmp_path: Path, max_bytes: int = PLENTY, **changes: object) -> Pixels:
    return Pixels(rows, replace(PREPROCESSING, **changes), tmp_path / "cache", max_bytes, 2)


def expected_of(rows: pd.DataFrame, preprocessing: Preprocessing = PREPROCESSING) -> np.ndarray:
    return np.stack([preprocessing.pixels(decode(Path(path)).image) for path in rows["path"]])


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def finish(rows: pd.DataFrame, tmp_path: Path, **changes: object) -> Path:
    """A finished file of these rows."""
    with open_pixels(rows, tmp_path, **changes) as pixels:
        pixels.batch(np.arange(len(rows)))
    assert pixels.path.is_file()
    return pixels.path


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("max_bytes", [0, 2 * EACH, PLENTY])
def test_a_batch_is_the_models_input_in_the_order_asked_for(rows, tmp_path, in_chans, max_bytes):
    preprocessing = replace(PREPROCESSING, in_chans=in_chans)
    expected, indices = expected_of(rows, preprocessing), np.array([5, 0, 3, 3, 1])
    with Pixels(rows, preprocessing, tmp_path / "cache", max_bytes, 2) as pixels:
        assert len(pixels) == 6
        for _ in range(2):
            batch = pixels.batch(indices)
            assert batch.dtype == np.uint8
            np.testing.assert_array_equal(batch, expected[indices])
        assert pixels.batch(np.arange(0)).shape == (0, *preprocessing.shape)


def test_a_picture_is_decoded_once(rows, tmp_path, decoded):
    with open_pixels(rows, tmp_path) as pixels:
        pixels.batch(np.array([4, 2]))
        assert sorted(decoded) == ["2", "4"]
        for _ in range(2):
            pixels.batch(np.arange(6))
    assert sorted(decoded) == ["0", "1", "2", "3", "4", "5"]


def test_a_finished_file_is_read_without_decoding(rows, tmp_path, decoded):
    finish(rows, tmp_path)
    decoded.clear()
    for path in rows["path"]:
        Path(path).unlink()
    with open_pixels(rows, tmp_path) as pixels:
        assert len(pixels.batch(np.array([5, 0, 5]))) == 3
    assert decoded == []


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="only Linux tells what a mapping holds")
def test_what_has_been_read_is_no_longer_memory_of_the_process(rows, tmp_path):
    path = finish(rows, tmp_path)
    with open_pixels(rows, tmp_path) as pixels:
        assert np.array_equal(pixels.batch(np.arange(6)), expected_of(rows))
        mapping = Path("/proc/self/smaps").read_text(encoding="utf-8").partition(str(path))[2]
        assert int(mapping.partition("Rss:")[2].split()[0]) == 0


def test_a_finished_file_holds_the_decoded_pixels(rows, tmp_path):
    finish(rows, tmp_path)
    with open_pixels(rows, tmp_path) as pixels:
        np.testing.assert_array_equal(pixels.batch(np.arange(6)), expected_of(rows))


@pytest.mark.parametrize("changes", [{"image_size": 17}, {"resize": "crop"}, {"interpolation": "bicubic"}])
def test_another_size_or_shape_has_its_own_file(rows, tmp_path, decoded, changes):
    first = finish(rows, tmp_path)
    decoded.clear()
    assert finish(rows, tmp_path, **changes) != first
    assert len(decoded) == 6


def test_another_mean_and_std_share_the_file(rows, tmp_path, decoded):
    first = finish(rows, tmp_path)
    decoded.clear()
    assert finish(rows, tmp_path, mean=(0.1,) * 3, std=(0.2,) * 3) == first
    assert decoded == []


def test_other_contents_or_another_order_have_their_own_file(rows, tmp_path):
    parts = [rows, rows.iloc[::-1], rows.iloc[:5]]
    assert len({finish(part, tmp_path) for part in parts}) == 3


def test_what_does_not_fit_is_decoded_each_time(rows, tmp_path, decoded):
    with open_pixels(rows, tmp_path, 4 * EACH + 5) as pixels:
        for _ in range(2):
            np.testing.assert_array_equal(pixels.batch(np.arange(6)), expected_of(rows))
    assert sorted(decoded) == ["0", "1", "2", "3", "4", "4", "5", "5"]
    assert pixels.path.stat().st_size <= 4 * EACH + 5 + 128  # numpy's header


def test_nothing_is_written_where_nothing_may_be_stored(rows, tmp_path, decoded):
    other = finish(rows.iloc[:2], tmp_path)
    decoded.clear()
    with open_pixels(rows, tmp_path, 0) as pixels:
        for _ in range(2):
            pixels.batch(np.arange(6))
    assert len(decoded) == 12
    assert files(tmp_path) == [other.name]


def test_the_cache_leaves_free_space_on_a_full_disk(rows, tmp_path, decoded, monkeypatch):
    usage = pixel_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda _: usage._replace(free=6 * EACH))
    with open_pixels(rows, tmp_path) as pixels:
        for _ in range(2):
            pixels.batch(np.arange(6))
    assert len(decoded) == 9


def test_the_least_recently_used_file_makes_room(rows, tmp_path):
    parts = [rows.iloc[:4], rows.iloc[1:5], rows.iloc[2:]]
    first, second = (finish(part, tmp_path) for part in parts[:2])
    for age, path in ((100, first), (200, second)):
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    with open_pixels(parts[1], tmp_path):  # used again
        pass
    with open_pixels(parts[2], tmp_path, 9 * EACH) as pixels:
        pixels.batch(np.arange(4))
    assert files(tmp_path) == sorted([second.name, pixels.path.name])


def test_a_file_in_use_stays_readable_when_another_needs_its_room(rows, tmp_path):
    finish(rows.iloc[:4], tmp_path)
    with open_pixels(rows.iloc[:4], tmp_path) as pixels:
        with open_pixels(rows, tmp_path, 6 * EACH) as other:
            other.batch(np.arange(6))
        assert files(tmp_path) == [other.path.name]
        np.testing.assert_array_equal(pixels.batch(np.arange(4)), expected_of(rows)[:4])


def test_an_unfinished_file_is_removed_when_closed(rows, tmp_path):
    with open_pixels(rows, tmp_path) as pixels:
        pixels.batch(np.array([0, 1]))
        assert len(files(tmp_path)) == 1
    assert files(tmp_path) == []


def test_an_unfinished_file_is_never_taken_for_a_finished_one(rows, tmp_path, decoded):
    with open_pixels(rows, tmp_path) as pixels:
        pixels.batch(np.array([0, 1]))
        decoded.clear()
        with open_pixels(rows, tmp_path) as other:
            np.testing.assert_array_equal(other.batch(np.arange(6)), expected_of(rows))
        assert len(decoded) == 6


def saved(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"no array", saved(np.zeros((6, 8, 8, 3), dtype=np.uint8)), "a byte too few"])
def test_a_damaged_file_is_built_again(rows, tmp_path, decoded, content):
    path = finish(rows, tmp_path)
    decoded.clear()
    path.write_bytes(path.read_bytes()[:-1] if isinstance(content, str) else content)
    finish(rows, tmp_path)
    assert len(decoded) == 6
    with open_pixels(rows, tmp_path) as pixels:
        np.testing.assert_array_equal(pixels.batch(np.arange(6)), expected_of(rows))


@pytest.mark.parametrize("max_bytes", [0, PLENTY])
def test_a_changed_file_is_named(rows, tmp_path, max_bytes):
    changed, missing = (Path(rows["path"][place]) for place in (1, 4))
    changed.write_bytes(Path(rows["path"][0]).read_bytes())
    missing.unlink()
    with open_pixels(rows, tmp_path, max_bytes) as pixels:
        with pytest.raises(UserError, match=rf"{changed} has changed since it was indexed: restore it"):
            pixels.batch(np.array([0, 1]))
        with pytest.raises(UserError, match=rf"{missing} can no longer be read \(file not found\): restore it"):
            list(pixels.batches([np.array([0, 2]), np.array([4])]))
        np.testing.assert_array_equal(pixels.batch(np.array([0, 2])), expected_of(rows.iloc[[0, 2]]))
    assert not list(tmp_path.glob("cache/*"))


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=12), st.sampled_from([0, 3 * EACH, PLENTY]))
def test_batches_come_in_order_whatever_is_stored(rows_of_six, order, max_bytes):
    rows, folder = rows_of_six
    indices = [np.array(batch, dtype=np.int64) for batch in order]
    with open_pixels(rows, folder, max_bytes) as pixels:
        batches = list(pixels.batches(iter(indices)))
    assert len(batches) == len(indices)
    for batch, wanted in zip(batches, indices, strict=True):
        np.testing.assert_array_equal(batch, expected_of(rows)[wanted])


@pytest.fixture(scope="module")
def rows_of_six(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    folder = tmp_path_factory.mktemp("pixels")
    return write_rows(folder / "photos", 6), folder


def test_batches_are_prepared_in_constant_memory(rows, tmp_path):
    asked = []

    def order() -> Iterator[np.ndarray]:
        for number in range(50):
            asked.append(number)
            yield np.array([number % 6])

    with open_pixels(rows, tmp_path) as pixels:
        batches = pixels.batches(order())
        for taken in range(1, 6):
            next(batches)
            assert len(asked) <= taken + pixel_cache.LOOK_AHEAD
        batches.close()
    assert len(asked) < 10


def test_two_processes_that_build_the_same_file_both_give_the_right_images(rows, tmp_path):
    expected = expected_of(rows)
    orders = [np.arange(6), np.arange(6)[::-1], np.array([3, 1, 5, 0, 2, 4])]
    with open_pixels(rows, tmp_path) as one, open_pixels(rows, tmp_path) as two, open_pixels(rows, tmp_path) as three:
        with ThreadPoolExecutor(3) as pool:
            seen = list(pool.map(lambda pixels, order: pixels.batch(order), (one, two, three), orders))
        for batch, order in zip(seen, orders, strict=True):
            np.testing.assert_array_equal(batch, expected[order])
        for pixels in (one, two, three):
            np.testing.assert_array_equal(pixels.batch(np.arange(6)), expected)
    assert files(tmp_path) == [one.path.name]
    with open_pixels(rows, tmp_path) as pixels:
        np.testing.assert_array_equal(pixels.batch(np.arange(6)), expected)


def test_a_file_that_cannot_be_renamed_while_it_is_mapped_is_renamed_when_it_is_closed(rows, tmp_path, monkeypatch):
    """As on Windows."""
    rename, mapped = Path.replace, []

    def replace_unmapped(path: Path, target: Path) -> Path:
        if isinstance(mapped[0].stored, np.memmap):
            raise PermissionError(13, "The process cannot access the file", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace_unmapped)
    with open_pixels(rows, tmp_path) as pixels:
        mapped.append(pixels)
        np.testing.assert_array_equal(pixels.batch(np.arange(6)), expected_of(rows))
        np.testing.assert_array_equal(pixels.batch(np.arange(6)), expected_of(rows))
        assert not pixels.path.exists()
    assert files(tmp_path) == [pixels.path.name]
    with open_pixels(rows, tmp_path) as pixels:
        mapped[0] = pixels
        np.testing.assert_array_equal(pixels.batch(np.arange(6)), expected_of(rows))
