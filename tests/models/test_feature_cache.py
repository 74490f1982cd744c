"""Features are computed once for each content and view, whatever happens to the run, the files or the cache."""

import logging
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import write_rows
from torch import nn

from spectacles.core.config import AugmentConfig, FeatureConfig
from spectacles.core.errors import UserError
from spectacles.data.images import decode
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import feature_cache
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.models.normalization import normalize
from spectacles.training.augmentation import Augmentation, View

PREPROCESSING = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
MIRROR = View(1, Augmentation(AugmentConfig(), PREPROCESSING))
CPU = torch.device("cpu")


class CountingBackbone(nn.Module):
    """(B, 3, 16, 16) -> (B, 4); counts the images it sees and, if asked, fails after some of them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Conv2d(3, 4, 16)
        self.seen, self.fails_after = 0, 1_000_000

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.seen >= self.fails_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        return self.layer(images).flatten(1)


def embed(
    backbone: nn.Module,
    rows: pd.DataFrame,
    folder: Path,
    preprocessing: Preprocessing = PREPROCESSING,
    places: list[int] | None = None,
    view: View | None = None,
    cache_gb: float = 1.0,
) -> np.ndarray:
    with Pixels(rows, preprocessing, folder / "pixels", 2**20, 1) as pixels:
        chosen = None if places is None else np.array(places, dtype=np.int64)
        config = FeatureConfig(batch_size=2, engine="torch", cache_gb=cache_gb)
        extractor = FeatureExtractor(backbone, "tiny/net:1", preprocessing, folder, CPU, config)
        return extractor.embed(pixels, chosen, view).last


def pictures_of(rows: pd.DataFrame) -> np.ndarray:
    return np.stack([PREPROCESSING.pixels(decode(Path(path)).image) for path in rows["path"]])


def features_of(backbone: nn.Module, pictures: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return backbone(normalize(PREPROCESSING, torch.from_numpy(np.ascontiguousarray(pictures)))).numpy()


def directly(rows: pd.DataFrame) -> np.ndarray:
    return features_of(CountingBackbone(), pictures_of(rows))


def stored(folder: Path) -> list[tuple[object, ...]]:
    """(network, image, checksum, vector) of all features, in the order in which they were written."""
    with closing(sqlite3.connect(folder / feature_cache.FILE)) as database:
        query = "SELECT name, image, checksum, vector FROM features JOIN networks ON network = networks.id"
        return database.execute(f"{query} ORDER BY features.id").fetchall()


def test_features_are_the_backbones_own_in_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 5)
    features = embed(CountingBackbone(), rows, tmp_path)
    assert features.shape == (5, 4)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, directly(rows), rtol=1e-4, atol=1e-5)
    turned = embed(CountingBackbone(), rows.iloc[::-1], tmp_path)
    np.testing.assert_array_equal(turned, features[::-1])


def test_only_new_contents_are_computed(tmp_path: Path) -> None:
    rows, backbone = write_rows(tmp_path, 6), CountingBackbone()
    first = embed(backbone, rows.iloc[:4], tmp_path)
    assert backbone.seen == 4
    again = embed(backbone, rows.iloc[[1, 0, 1]], tmp_path)
    assert backbone.seen == 4
    np.testing.assert_array_equal(again, first[[1, 0, 1]])
    everything = embed(backbone, rows, tmp_path)
    assert backbone.seen == 6
    np.testing.assert_allclose(everything, directly(rows), rtol=1e-4, atol=1e-5)


def test_what_stands_is_not_written_again(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 6)
    embed(CountingBackbone(), rows.iloc[:4], tmp_path)
    before = stored(tmp_path)
    embed(CountingBackbone(), rows, tmp_path)
    assert stored(tmp_path)[:4] == before and len(stored(tmp_path)) == 6


def test_nothing_has_no_features(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 2)
    assert embed(CountingBackbone(), rows, tmp_path, places=[]).shape == (0, 4)
    assert embed(CountingBackbone(), rows.iloc[:0], tmp_path).shape == (0, 4)


def test_equal_contents_are_computed_once(tmp_path: Path) -> None:
    rows, backbone = write_rows(tmp_path, 3), CountingBackbone()
    features = embed(backbone, pd.concat([rows, rows]), tmp_path)
    assert backbone.seen == 3
    np.testing.assert_array_equal(features[:3], features[3:])


def test_only_the_places_asked_for_are_computed(tmp_path: Path) -> None:
    rows, backbone = write_rows(tmp_path, 6), CountingBackbone()
    features = embed(backbone, rows, tmp_path, places=[4, 1, 4])
    assert backbone.seen == 2
    np.testing.assert_allclose(features, directly(rows)[[4, 1, 4]], rtol=1e-4, atol=1e-5)
    assert embed(backbone, rows, tmp_path, places=[5, 4]).shape == (2, 4)
    assert backbone.seen == 4, "a batch is computed as a whole: alone, its last digits could differ"


@pytest.mark.parametrize("other", ["weights", "preprocessing", "image size"])
def test_another_network_or_input_has_a_table_of_its_own(tmp_path: Path, other: str) -> None:
    rows = write_rows(tmp_path, 3)
    features = embed(CountingBackbone(), rows, tmp_path)
    backbone = CountingBackbone(seed=int(other == "weights"))
    changes = {"preprocessing": {"mean": (0.1,) * 3}, "image size": {"image_size": 17}}
    changed = embed(backbone, rows, tmp_path, replace(PREPROCESSING, **changes.get(other, {})))
    assert backbone.seen == 3
    assert changed.shape != features.shape or not np.allclose(changed, features)
    assert len({network for network, *_ in stored(tmp_path)}) == 2


def test_the_mirror_view_gives_the_features_of_the_mirror_images(tmp_path: Path) -> None:
    rows, backbone = write_rows(tmp_path, 4), CountingBackbone()
    plain = embed(backbone, rows, tmp_path)
    mirrored = embed(backbone, rows, tmp_path, view=MIRROR)
    expected = features_of(CountingBackbone(), pictures_of(rows)[:, :, ::-1])
    np.testing.assert_allclose(mirrored, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(plain, mirrored)
    assert backbone.seen == 8


def test_each_view_is_computed_once(tmp_path: Path) -> None:
    rows, backbone = write_rows(tmp_path, 3), CountingBackbone()
    views = [None, *(View(number, Augmentation(AugmentConfig(), PREPROCESSING)) for number in (1, 2, 3))]
    features = [embed(backbone, pd.concat([rows, rows]), tmp_path, view=view) for view in views]
    assert backbone.seen == 3 * len(views)
    for one in range(len(views)):
        for other in range(one):
            assert not np.allclose(features[one], features[other])
        np.testing.assert_array_equal(embed(backbone, rows, tmp_path, view=views[one]), features[one][:3])
    assert backbone.seen == 3 * len(views)


def test_other_settings_are_other_views_but_mirroring_has_none(tmp_path: Path) -> None:
    rows, backbone = write_rows(tmp_path, 3), CountingBackbone()
    augmentations = [Augmentation(AugmentConfig(rotation=angle), PREPROCESSING) for angle in (10, 20)]
    for number, seen in ((2, 6), (1, 9)):
        one, other = (embed(backbone, rows, tmp_path, view=View(number, each)) for each in augmentations)
        assert backbone.seen == seen
        assert np.allclose(one, other) == (number == 1)


def test_a_view_of_a_picture_depends_on_its_number_and_content_alone(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 4)
    pictures, digests = pictures_of(rows), rows["sha256"].tolist()
    view = View(2, Augmentation(AugmentConfig(), PREPROCESSING))
    together = view(pictures, digests)
    assert together.dtype == np.uint8 and together.shape == pictures.shape
    for place in range(4):
        alone = view(pictures[place : place + 1], digests[place : place + 1])[0]
        assert np.abs(alone.astype(int) - together[place]).max() <= 1  # a value half way between two may round away
    assert not np.array_equal(view(pictures, digests[::-1]), together)
    assert not np.array_equal(View(3, view.augmentation)(pictures, digests), together)


def test_features_that_changed_on_disk_are_computed_again(tmp_path: Path, caplog) -> None:
    rows = write_rows(tmp_path, 10)
    features = embed(CountingBackbone(), rows, tmp_path)
    _, image, _, vector = stored(tmp_path)[3]
    file = tmp_path / feature_cache.FILE
    content = file.read_bytes()
    assert content.count(vector) == 1
    file.write_bytes(content.replace(vector, bytes([vector[0] ^ 1]) + vector[1:]))
    backbone = CountingBackbone()
    with caplog.at_level(logging.WARNING, "spectacles"):
        np.testing.assert_array_equal(embed(backbone, rows, tmp_path), features)
    assert backbone.seen == 2, "its batch"
    assert f"1 features in {file} are damaged" in caplog.text
    assert {name for _, name, *_ in stored(tmp_path)} == set(rows["sha256"]) and image in set(rows["sha256"])
    embed(backbone, rows, tmp_path)
    assert backbone.seen == 2


@pytest.mark.parametrize("damage", [lambda content: content[:5000], lambda c: b"text" * 5000, lambda c: bytes(len(c))])
def test_a_damaged_file_is_replaced_with_a_warning(tmp_path: Path, caplog, damage) -> None:
    rows, backbone = write_rows(tmp_path, 4), CountingBackbone()
    features = embed(backbone, rows, tmp_path)
    file = tmp_path / feature_cache.FILE
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING, "spectacles"):
        np.testing.assert_array_equal(embed(backbone, rows, tmp_path), features)
    assert backbone.seen == 8 and f"{file} cannot be read" in caplog.text
    embed(backbone, rows, tmp_path)
    assert backbone.seen == 8


def test_nothing_is_stored_without_space_for_it(tmp_path: Path) -> None:
    rows, backbone = write_rows(tmp_path, 2), CountingBackbone()
    np.testing.assert_array_equal(*(embed(backbone, rows, tmp_path, cache_gb=0) for _ in range(2)))
    assert backbone.seen == 4 and not (tmp_path / feature_cache.FILE).exists()


def test_a_file_that_changed_since_it_was_indexed_is_named_and_not_stored(tmp_path: Path) -> None:
    rows, backbone = write_rows(tmp_path, 2), CountingBackbone()
    Path(rows["path"][1]).write_bytes(Path(rows["path"][0]).read_bytes())
    with pytest.raises(UserError, match=r"1\.png has changed"):
        embed(backbone, rows, tmp_path)
    Path(rows["path"][1]).unlink()
    with pytest.raises(UserError, match=r"1\.png can no longer be read \(file not found\)"):
        embed(backbone, rows, tmp_path)
    assert not (tmp_path / feature_cache.FILE).exists() or not stored(tmp_path)


def test_an_interruption_costs_only_what_was_computed_since_the_last_write(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(feature_cache, "SAVE_EVERY", 2)
    rows, backbone = write_rows(tmp_path, 8), CountingBackbone()
    backbone.fails_after = 6
    with pytest.raises(KeyboardInterrupt):
        embed(backbone, rows, tmp_path)
    backbone = CountingBackbone()
    np.testing.assert_allclose(embed(backbone, rows, tmp_path), directly(rows), rtol=1e-4, atol=1e-5)
    assert backbone.seen == 2


def test_after_an_interruption_the_batches_are_those_of_a_whole_run(tmp_path: Path, monkeypatch) -> None:
    """Another batch can change the last digits, and with them everything that is learnt from the features."""
    monkeypatch.setattr(feature_cache, "SAVE_EVERY", 3)
    rows, backbone = write_rows(tmp_path, 8), CountingBackbone()
    backbone.fails_after = 4
    with pytest.raises(KeyboardInterrupt):
        embed(backbone, rows, tmp_path)
    backbone = CountingBackbone()
    features = embed(backbone, rows, tmp_path)
    assert backbone.seen == 6, "the third picture is known and computed again beside the fourth"
    assert np.array_equal(features, embed(CountingBackbone(), rows, tmp_path / "elsewhere"))
