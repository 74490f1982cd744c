"""Blocks of features are what the layers give, from one pass, in every engine, and stored once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import noise, write_rows
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from spectacles.core.config import FeatureConfig
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import backbones, engine_choice
from spectacles.models.block_network import BlockNetwork, find_taps
from spectacles.models.feature_blocks import BLOCKS, GRIDS, LAST, MEANS
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.models.normalization import normalize
from spectacles.models.torch_network import PixelNetwork

CPU = torch.device("cpu")
SIDE = 64
PREPROCESSING = Preprocessing(SIDE, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)


@pytest.fixture(scope="module", params=["test_efficientnet", "simple_cnn"])
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return backbones.build(request.param, 3, SIDE).eval()


def outputs_of(backbone: nn.Module, images: torch.Tensor, names: list[str]) -> list[torch.Tensor]:
    """What the modules of these names give, each from a pass of its own."""
    found: list[torch.Tensor] = []
    for name in names:
        handle = backbone.get_submodule(name).register_forward_hook(lambda *args: found.append(args[2]))
        backbone(images)
        handle.remove()
    return found


@torch.no_grad()
def test_blocks_are_means_and_grids_of_the_layers_outputs(backbone: nn.Module) -> None:
    taps, images = find_taps(backbone, 3, SIDE), torch.randn(2, 3, SIDE, SIDE)
    found = {name: values.numpy() for name, values in BlockNetwork(backbone, taps)(images).items()}
    assert tuple(found) == BLOCKS
    np.testing.assert_array_equal(found[LAST], backbone(images).numpy())
    means = [output.mean(dim=(2, 3)) for output in outputs_of(backbone, images, list(taps.means))]
    grids = [adaptive_avg_pool2d(output, 3).flatten(1) for output in outputs_of(backbone, images, list(taps.grids))]
    np.testing.assert_allclose(found[MEANS], torch.cat(means, dim=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[GRIDS], torch.cat(grids, dim=1), rtol=1e-4, atol=1e-6)
    assert not any(module._forward_hooks for module in backbone.modules()), "nothing is left behind"


@pytest.mark.parametrize(
    ("name", "means", "grids"),
    [
        (
            "tf_efficientnet_lite0",
            ["blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6.0"],
            ["blocks.3", "blocks.4"],
        ),
        (
            "resnet10t",
            ["layer1.0", "layer2.0", "layer3.0"],
            ["layer2.0", "layer3.0"],
        ),  # the mean of layer4 is the features
        ("test_vit", ["blocks.2", "blocks.3", "blocks.4", "blocks.5", "norm"], []),  # all maps are of one size
    ],
)
def test_blocks_come_from_the_later_half_and_grids_from_maps_finer_than_the_last(
    name: str, means: list[str], grids: list[str]
) -> None:
    taps = find_taps(backbones.build(name, 3, 160), 3, 160)
    assert (list(taps.means), list(taps.grids)) == (means, grids)


def test_a_backbone_without_layer_groups_has_the_last_layer_alone() -> None:
    taps = find_taps(nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten()), 3, 2)
    assert taps.blocks == (LAST,)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_other_engines_give_torchs_blocks(backbone: nn.Module, engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    taps = find_taps(backbone, 3, SIDE)
    network = PixelNetwork(BlockNetwork(backbone, taps), PREPROCESSING, CPU)
    _, run = engine_choice.choose(network, tmp_path / "choice.json", engine)
    pixels = np.stack([PREPROCESSING.pixels(noise(seed)) for seed in range(3)])
    with torch.no_grad():
        expected = network.network(normalize(PREPROCESSING, torch.from_numpy(pixels)))
    found = run(pixels)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4 * float(values.std()))


def test_all_blocks_are_computed_in_one_pass_and_read_afterwards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone, passes = backbones.build("simple_cnn", 3, 16), []
    backbone.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    rows, config = write_rows(tmp_path, 5), FeatureConfig(batch_size=4, engine="torch")
    preprocessing = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)

    def extractor() -> FeatureExtractor:
        return FeatureExtractor(backbone, "simple_cnn", preprocessing, tmp_path, CPU, config)

    with Pixels(rows, preprocessing, tmp_path / "pixels", 0, 1) as pixels:
        last = extractor().embed(pixels, blocks=(LAST,))
        computed = list(passes)
        assert tuple(last.parts) == (LAST,) and sum(computed) == 5 + 2, "two to find the layers"
        every = extractor().embed(pixels)
        some = extractor().embed(pixels, np.array([3, 1]), blocks=(LAST, GRIDS))
        assert passes == computed
        assert extractor().embed(pixels, np.array([], dtype=np.int64)).parts.keys() == every.parts.keys()
    np.testing.assert_array_equal(every.last, last.last)
    np.testing.assert_array_equal(
        some.side_by_side((LAST, GRIDS)), every.rows(np.array([3, 1])).side_by_side((LAST, GRIDS))
    )
    assert {name: values.shape for name, values in every.parts.items()} == {
        LAST: (5, 128),
        MEANS: (5, 192),
        GRIDS: (5, 864),
    }
