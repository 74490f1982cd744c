"""Features are computed once for each content, whatever happens to the run, the files or the cache."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import write_noise
from torch import nn

from spectacles import embeddings
from spectacles.errors import UserError
from spectacles.images import decode
from spectacles.preprocess import Preprocessing

PREPROCESSING = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
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


def make_rows(folder: Path, count: int) -> pd.DataFrame:
    paths = [folder / name for name in write_noise(folder, [f"{number}.png" for number in range(count)])]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return pd.DataFrame({"path": [str(path) for path in paths], "sha256": hashes})


def embed(backbone: nn.Module, rows: pd.DataFrame, folder: Path, preprocessing: Preprocessing = PREPROCESSING):
    return embeddings.embed(backbone, "tiny/net:1", preprocessing, rows, folder / "cache", CPU, 2, 1)


def directly(backbone: nn.Module, rows: pd.DataFrame) -> np.ndarray:
    images = torch.stack([PREPROCESSING(decode(Path(path)).image) for path in rows["path"]])
    with torch.no_grad():
        return backbone(images).numpy()


def table_of(folder: Path) -> Path:
    [path] = (folder / "cache").glob("*.npz")
    return path


def test_features_are_the_backbones_own_in_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 5)
    features = embed(CountingBackbone(), rows, tmp_path)
    assert features.shape == (5, 4)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, directly(CountingBackbone(), rows), rtol=1e-4, atol=1e-5)
    turned = embed(CountingBackbone(), rows.iloc[::-1], tmp_path)
    np.testing.assert_array_equal(turned, features[::-1])


def test_only_new_contents_are_computed(tmp_path: Path) -> None:
    rows, backbone = make_rows(tmp_path, 6), CountingBackbone()
    first = embed(backbone, rows.iloc[:4], tmp_path)
    assert backbone.seen == 4
    again = embed(backbone, rows.iloc[[1, 0, 1]], tmp_path)
    assert backbone.seen == 4
    np.testing.assert_array_equal(again, first[[1, 0, 1]])
    everything = embed(backbone, rows, tmp_path)
    assert backbone.seen == 6
    np.testing.assert_allclose(everything, directly(backbone, rows), rtol=1e-4, atol=1e-5)


def test_equal_contents_are_computed_once(tmp_path: Path) -> None:
    rows, backbone = make_rows(tmp_path, 3), CountingBackbone()
    features = embed(backbone, pd.concat([rows, rows]), tmp_path)
    assert backbone.seen == 3
    np.testing.assert_array_equal(features[:3], features[3:])


@pytest.mark.parametrize("other", ["weights", "preprocessing"])
def test_another_network_or_input_has_a_table_of_its_own(tmp_path: Path, other: str) -> None:
    rows = make_rows(tmp_path, 3)
    features = embed(CountingBackbone(), rows, tmp_path)
    backbone = CountingBackbone(seed=int(other == "weights"))
    preprocessing = replace(PREPROCESSING, mean=(0.1,) * 3) if other == "preprocessing" else PREPROCESSING
    changed = embed(backbone, rows, tmp_path, preprocessing)
    assert backbone.seen == 3
    assert not np.allclose(changed, features)
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 2


def flip_a_bit(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize("damage", [flip_a_bit, lambda content: content[:-30], lambda content: b"", lambda c: b"text"])
def test_a_damaged_table_is_computed_again_with_a_warning(tmp_path: Path, caplog, damage) -> None:
    rows = make_rows(tmp_path, 40)
    features = embed(CountingBackbone(), rows, tmp_path)
    table = table_of(tmp_path)
    table.write_bytes(damage(table.read_bytes()))
    backbone = CountingBackbone()
    with caplog.at_level(logging.WARNING, "spectacles"):
        np.testing.assert_array_equal(embed(backbone, rows, tmp_path), features)
    assert backbone.seen == 40
    assert table.name in caplog.text
    embed(backbone, rows, tmp_path)
    assert backbone.seen == 40


def test_a_table_with_pickled_objects_is_not_trusted(tmp_path: Path) -> None:
    rows, backbone = make_rows(tmp_path, 2), CountingBackbone()
    features = embed(backbone, rows, tmp_path)
    np.savez(table_of(tmp_path), sha256=rows["sha256"].to_numpy(dtype=object), features=features)
    embed(backbone, rows, tmp_path)
    assert backbone.seen == 4


def test_a_file_that_changed_since_it_was_indexed_is_named_and_not_stored(tmp_path: Path) -> None:
    rows, backbone = make_rows(tmp_path, 2), CountingBackbone()
    Path(rows["path"][1]).write_bytes(Path(rows["path"][0]).read_bytes())
    with pytest.raises(UserError, match=r"1\.png has changed"):
        embed(backbone, rows, tmp_path)
    Path(rows["path"][1]).unlink()
    with pytest.raises(UserError, match=r"1\.png cannot be read any more \(file not found\)"):
        embed(backbone, rows, tmp_path)
    assert not list((tmp_path / "cache").glob("*"))


def test_an_interruption_costs_only_what_was_computed_since_the_last_write(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "SAVE_EVERY", 2)
    rows, backbone = make_rows(tmp_path, 8), CountingBackbone()
    backbone.fails_after = 6
    with pytest.raises(KeyboardInterrupt):
        embed(backbone, rows, tmp_path)
    backbone = CountingBackbone()
    np.testing.assert_allclose(
        embed(backbone, rows, tmp_path), directly(CountingBackbone(), rows), rtol=1e-4, atol=1e-5
    )
    assert backbone.seen == 2
