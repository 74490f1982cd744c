"""Out-of-distribution scores: distances against another library's subspace, and scores as shares of photos."""

import importlib.util
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import noise
from sklearn.decomposition import PCA
from torch import nn

from spectacles.data.preprocessing import Preprocessing
from spectacles.models import backbones, ood
from spectacles.models.engine_choice import TOLERANCE, choose
from spectacles.models.engines import ENGINES, PixelNetwork
from spectacles.models.normalization import normalize
from spectacles.models.ood import COMPONENTS, ENOUGH, IN_THE_TAIL, TAIL, FeaturesAndLastMap, OODScorer

PREPROCESSING = Preprocessing(64, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
CPU = torch.device("cpu")


def drawn(seed: int, count: int, size: int = 160) -> np.ndarray:
    """Maps that vary mainly in a few directions."""
    directions = np.random.default_rng(0).normal(size=(5, size))
    rng = np.random.default_rng(seed)
    return (3 + rng.normal(size=(count, 5)) @ directions + 0.3 * rng.normal(size=(count, size))).astype(np.float32)


@cache
def fitted(references: int = 200, validation: int = 300) -> OODScorer:
    found = ood.fit(drawn(1, references), drawn(2, validation))
    assert found is not None
    return found


@pytest.mark.parametrize(("references", "size"), [(200, 160), (30, 160), (200, 40)])
def test_the_distance_is_what_scikit_learns_pca_leaves_out(references, size):
    known, seen = drawn(1, references, size), drawn(3, 20, size)
    found = ood.fit(known, drawn(2, 50, size))
    unit, unit_seen = (maps / np.linalg.norm(maps, axis=1, keepdims=True) for maps in (known, seen))
    pca = PCA(min(COMPONENTS, references // 2, size // 4), svd_solver="full").fit(unit.astype(np.float64))
    left = unit_seen - pca.inverse_transform(pca.transform(unit_seen))
    np.testing.assert_allclose(found.distance(seen), np.linalg.norm(left, axis=1), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.distance(5 * seen), found.distance(seen), rtol=1e-4)


@pytest.mark.parametrize("validation", [ENOUGH, 60, 100, 1000])
def test_the_score_is_the_share_of_the_validation_photos_that_are_nearer(validation):
    maps = drawn(2, validation)
    found = ood.fit(drawn(1, 200), maps)
    distances = found.distance(maps)
    nearer = np.array([(distances <= distance).mean() for distance in distances])
    tail_start = 1 - max(TAIL, min(0.5, IN_THE_TAIL / validation))
    inside = nearer < tail_start
    np.testing.assert_allclose(found(maps)[inside], nearer[inside], atol=1.5 / validation + 0.01)
    assert (found(maps)[nearer > tail_start + 1 / validation] >= tail_start).all()


def test_on_other_photos_of_the_same_kind_the_score_is_uniform():
    scores = fitted(200, 2000)(drawn(3, 4000))
    for share in (0.1, 0.5, 0.9, 0.98):
        assert (scores < share).mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("validation", [ENOUGH, 50, 200])
def test_few_validation_photos_do_not_make_many_photos_out_of_distribution(validation):
    flagged = []
    for seed in range(15):
        found = ood.fit(drawn(1, 70), drawn(100 + seed, validation))
        flagged.append((found(drawn(3, 500)) > 0.995).mean())
    assert np.mean(flagged) < 0.02


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_the_score_lies_between_0_and_1_and_rises_with_the_distance(seed):
    found = fitted()
    maps = np.random.default_rng(seed).normal(size=(30, 160)).astype(np.float32)
    maps = np.concatenate([maps, drawn(seed, 30)])
    order = np.argsort(found.distance(maps), kind="stable")
    scores = found(maps)[order]
    assert ((scores >= 0) & (scores <= 1)).all() and (np.diff(scores) >= -1e-12).all()


def test_other_maps_are_out_of_distribution_and_the_farther_the_more():
    found, rng = fitted(), np.random.default_rng(9)
    strange = rng.normal(size=(50, 160)).astype(np.float32)
    assert (found(strange) > 1 - 1e-6).all()
    near, far = (found(drawn(4, 50) + factor * strange) for factor in (0.5, 1.0))
    assert (far >= near).all() and near.min() > 0.95


def test_where_all_maps_are_alike_only_others_are_out_of_distribution():
    same = np.tile(drawn(0, 1), (30, 1))
    found = ood.fit(same, same)
    assert found(same + 1e-7).max() < 0.9
    assert found(drawn(5, 5)).min() > 1 - 1e-6
    assert np.isfinite(found(np.zeros((2, 160), dtype=np.float32))).all()


@pytest.mark.parametrize(("references", "validation"), [(ENOUGH - 1, 100), (100, ENOUGH - 1), (0, 100), (100, 0)])
def test_too_few_photos_give_no_scorer(references, validation):
    assert ood.fit(drawn(1, references), drawn(2, validation)) is None


def test_a_stored_scorer_gives_the_same_scores():
    found, maps = fitted(), drawn(6, 20)
    tensors = found.tensors()
    assert all(name.startswith(ood.PREFIX) for name in tensors)
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) < 50_000
    loaded = ood.from_state({"backbone.weight": torch.zeros(2), **tensors})
    np.testing.assert_array_equal(loaded(maps), found(maps))
    assert ood.from_state({"backbone.weight": torch.zeros(2)}) is None


# the last map


def make_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return backbones.build(name, 3, 64).eval()


@pytest.mark.parametrize(
    ("name", "map_of"),
    [
        ("test_efficientnet", lambda net: net.blocks[-1]),
        ("test_convnext", lambda net: net.stages[-1]),
        ("test_vit", lambda net: net.blocks[-1]),
        ("simple_cnn", None),
    ],
)
def test_beside_the_features_stands_the_last_map(name, map_of):
    net, images = make_net(name), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        features, both = net(images), FeaturesAndLastMap(net)(images)
        torch.testing.assert_close(both[:, : features.shape[1]], features)
        if map_of is None:
            expected = features
        else:
            seen = []
            handle = map_of(net).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
            net(images)
            handle.remove()
            expected = seen[0].flatten(2).mean(2) if seen[0].ndim == 4 else seen[0].mean(1)
        torch.testing.assert_close(both[:, features.shape[1] :], expected)
    pickle.dumps(net)  # a hook that was left behind, a function in a function, could not be pickled


def test_a_map_whose_channels_come_last_is_averaged_over_its_places():
    class Last(nn.Module):
        feature_info = ({"module": "layer", "num_chs": 3},)

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.permute(0, 2, 3, 1)).amax((1, 2))

    images = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(
        FeaturesAndLastMap(Last())(images), torch.cat([images.amax((2, 3)), images.mean((2, 3))], 1)
    )


@pytest.mark.parametrize("engine", [name for name in ENGINES if importlib.util.find_spec(name)])
def test_every_engine_gives_both(engine, tmp_path: Path):
    net = make_net("test_efficientnet")
    network = PixelNetwork(FeaturesAndLastMap(net), PREPROCESSING, CPU)
    _, run = choose(network, tmp_path / "engine.json", engine)
    pixels = np.stack([PREPROCESSING.pixels(noise(seed)) for seed in range(5)])
    with torch.no_grad():
        expected = FeaturesAndLastMap(net)(normalize(PREPROCESSING, torch.from_numpy(pixels))).numpy()
    np.testing.assert_allclose(run(pixels), expected, atol=TOLERANCE * expected.std())
