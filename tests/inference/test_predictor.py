"""A bundle is served by the fastest engine that agrees with torch in probabilities and out-of-distribution scores."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import noise
from torch import nn

from spectacles.core.errors import UserError
from spectacles.data.preprocessing import Preprocessing
from spectacles.inference.predictor import ENGINE_FILE, Predictor
from spectacles.models import engines, ood
from spectacles.models.classifier import load_classifier
from spectacles.models.engine_choice import MIN_IMAGES_TO_MEASURE, TOLERANCE
from spectacles.models.engines import ENGINES
from spectacles.models.normalization import normalize
from spectacles.models.ood import FeaturesAndLastMap

CPU = "cpu"
COLOUR = Preprocessing(32, "squash", "bilinear", (0.5, 0.4, 0.3), (0.25, 0.5, 0.2), 3)
INSTALLED = [name for name in ENGINES if name != "torch" and importlib.util.find_spec(name)]


def pixels_of(preprocessing: Preprocessing, count: int) -> np.ndarray:
    return np.stack([preprocessing.pixels(noise(seed)) for seed in range(count)])


def directly(network: nn.Module, preprocessing: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(normalize(preprocessing, torch.from_numpy(pixels))).numpy()


@pytest.mark.parametrize("engine", INSTALLED)
def test_a_bundle_gives_the_same_probabilities_with_every_engine(make_bundle: Callable[..., Path], engine):
    bundle = make_bundle("a", "b", "c", temperature=0.05)
    pixels = pixels_of(COLOUR, 6)
    plain, other = (Predictor(bundle, CPU, engine=name) for name in ("torch", engine))
    assert (plain.engine, other.engine) == ("torch", engine)
    np.testing.assert_allclose(other.probabilities(pixels), plain.probabilities(pixels), atol=TOLERANCE)
    assert np.ptp(plain.probabilities(pixels)) > 100 * TOLERANCE


def test_a_predictor_remembers_beside_its_bundle(make_bundle: Callable[..., Path], monkeypatch) -> None:
    monkeypatch.setattr(engines, "BUILDERS", {})
    bundle = make_bundle("a", "b")
    assert Predictor(bundle, CPU, images=MIN_IMAGES_TO_MEASURE - 1).engine == "torch"
    assert not (bundle / ENGINE_FILE).exists()
    assert Predictor(bundle, CPU).engine == "torch"
    assert json.loads((bundle / ENGINE_FILE).read_text())["engine"] == "torch"
    load_classifier(bundle)  # what is beside it does not spoil a bundle


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_a_predictor_measures_calibrated_probabilities(
    make_bundle: Callable[..., Path], monkeypatch, temperature
) -> None:
    """Logits that are off by 0.001 matter where a low temperature makes the model sure, and not otherwise."""
    bundle = make_bundle("a", "b", temperature=temperature)
    network, info, _ = load_classifier(bundle)
    both = FeaturesAndLastMap(network.backbone)
    of_logits = torch.tensor([0.0, 1e-3 if temperature == 0.01 else 1e-4])
    of_features = torch.linalg.pinv(network.head.weight.detach()) @ of_logits
    shift = torch.cat([of_features, torch.zeros(128)]).numpy()  # simple_cnn's last map is its features

    def build(_: Path) -> engines.Engine:
        return lambda pixels: directly(both, info.preprocessing, pixels) + shift

    monkeypatch.setitem(engines.BUILDERS, "onnxruntime", build)
    if temperature == 1.0:
        assert Predictor(bundle, CPU, engine="onnxruntime").engine == "onnxruntime"
    else:
        with pytest.raises(UserError, match="gives other answers"):
            Predictor(bundle, CPU, engine="onnxruntime")


def test_a_predictor_compares_out_of_distribution_distances_too(make_bundle: Callable[..., Path], monkeypatch) -> None:
    """The network's decisions may agree where the distances beside them do not."""
    maps = np.random.default_rng(0).normal(size=(40, 128)).astype(np.float32)
    bundle = make_bundle("a", "b", ood_scorer=ood.fit(maps, maps))
    network, info, _ = load_classifier(bundle)
    both, off = FeaturesAndLastMap(network.backbone), np.zeros(256, dtype=np.float32)
    monkeypatch.setitem(
        engines.BUILDERS, "onnxruntime", lambda _: lambda pixels: directly(both, info.preprocessing, pixels) + off
    )
    assert Predictor(bundle, CPU, engine="onnxruntime").engine == "onnxruntime"
    off[200] = 0.1
    with pytest.raises(UserError, match="gives other answers"):
        Predictor(bundle, CPU, engine="onnxruntime")
