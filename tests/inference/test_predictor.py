"""A bundle is run from its ONNX file by the fastest engine that answers as torch did, or by torch."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import exported_bundles
import numpy as np
import pytest
from exported_bundles import in_torch
from pictures import noise

from spectacles.core.errors import UserError
from spectacles.data.preprocessing import Preprocessing
from spectacles.inference.predictor import ENGINE_FILE, Predictor
from spectacles.models import engines, ood
from spectacles.models.bundle_export import Exported
from spectacles.models.classifier import load_classifier
from spectacles.models.engine_choice import MIN_IMAGES_TO_MEASURE, TOLERANCE
from spectacles.models.engines import ENGINES, Engine, Outputs

COLOUR = Preprocessing(32, "squash", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 3)
PIXELS = np.stack([COLOUR.pixels(noise(seed)) for seed in range(6)])
INSTALLED = [name for name in ENGINES if name != "torch" and importlib.util.find_spec(name)]
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def exported(make_bundle: Callable[..., Path]) -> Exported:
    """Of the network of every bundle with CLASSES."""
    return exported_bundles.exported(make_bundle(*CLASSES), PIXELS)


@pytest.mark.parametrize("engine", INSTALLED)
def test_a_bundle_gives_the_same_probabilities_with_every_engine(
    make_bundle: Callable[..., Path], exported: Exported, engine: str
) -> None:
    bundle = make_bundle(*CLASSES, temperature=0.05, exported=exported)
    plain, other = (Predictor(bundle, "cpu", engine=name) for name in ("torch", engine))
    assert (plain.engine, other.engine) == ("torch", engine)
    np.testing.assert_allclose(other.probabilities(PIXELS), plain.probabilities(PIXELS), atol=TOLERANCE)
    assert np.ptp(plain.probabilities(PIXELS)) > 100 * TOLERANCE


def test_torch_is_not_even_tried_where_another_engine_runs_the_file(
    make_bundle: Callable[..., Path], exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(*CLASSES, exported=exported)
    monkeypatch.setitem(engines.BUILDERS, "openvino", lambda _: pytest.fail("measured for a few images"))
    predictor = Predictor(bundle, "cpu", images=1)
    assert predictor.engine == "onnxruntime" and not (bundle / ENGINE_FILE).exists()
    monkeypatch.delitem(engines.BUILDERS, "openvino")
    assert Predictor(bundle, "cpu").engine == "onnxruntime"
    assert list(json.loads((bundle / ENGINE_FILE).read_text())["images_per_second"]) == ["onnxruntime"]
    load_classifier(bundle)  # what is beside it does not spoil a bundle
    (bundle / ENGINE_FILE).unlink()
    monkeypatch.setattr(engines, "BUILDERS", {})
    assert Predictor(bundle, "cpu").engine == "torch"


def test_torch_runs_a_bundle_without_a_file_and_exports_it_for_others(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle("a", "b", exported=Exported(None, "of a test"))
    assert Predictor(bundle, "cpu", images=MIN_IMAGES_TO_MEASURE - 1).engine == "torch"
    assert not (bundle / ENGINE_FILE).exists()
    other = Predictor(bundle, "cpu", engine="onnxruntime")
    expected = in_torch(bundle).torch_engine()(PIXELS)["logits"]
    np.testing.assert_allclose(other.outputs(PIXELS)["logits"], expected, atol=TOLERANCE)


def test_without_torch_the_bundle_that_needs_it_says_so(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle("a", "b", exported=Exported(None, "of a test"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(UserError, match=r"of a test.* needs PyTorch, which is not installed"):
        Predictor(bundle, "cpu")


def fake(bundle: Path, change: Callable[[Outputs], Outputs]) -> Callable[[bytes], Engine]:
    """A builder of an engine whose answers are torch's, changed."""
    run = in_torch(bundle).torch_engine()
    return lambda _: lambda pixels: change(run(pixels))


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_a_predictor_measures_calibrated_probabilities(
    make_bundle: Callable[..., Path], exported: Exported, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Logits that are off by 0.001 matter where a low temperature makes the model sure, and not otherwise."""
    bundle = make_bundle(*CLASSES, temperature=temperature, exported=exported)
    off = np.array([0.0, 1e-3 if temperature == 0.01 else 1e-4, 0.0], dtype=np.float32)
    monkeypatch.setitem(
        engines.BUILDERS, "onnxruntime", fake(bundle, lambda outputs: outputs | {"logits": outputs["logits"] + off})
    )
    if temperature == 1.0:
        assert Predictor(bundle, "cpu", engine="onnxruntime").engine == "onnxruntime"
    else:
        with pytest.raises(UserError, match="gives other answers"):
            Predictor(bundle, "cpu", engine="onnxruntime")


def test_a_predictor_compares_out_of_distribution_distances_too(
    make_bundle: Callable[..., Path], exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's decisions may agree where the distances beside them do not."""
    maps = np.random.default_rng(0).normal(size=(40, 128)).astype(np.float32)
    bundle = make_bundle(*CLASSES, ood_scorer=ood.fit(maps, maps), exported=exported)
    off = np.zeros(128, dtype=np.float32)
    monkeypatch.setitem(
        engines.BUILDERS,
        "onnxruntime",
        fake(bundle, lambda outputs: outputs | {"ood_features": outputs["ood_features"] + off}),
    )
    assert Predictor(bundle, "cpu", engine="onnxruntime").engine == "onnxruntime"
    off[72] = 0.1
    with pytest.raises(UserError, match="gives other answers"):
        Predictor(bundle, "cpu", engine="onnxruntime")


def test_torch_itself_is_compared_with_nothing(make_bundle: Callable[..., Path], exported: Exported) -> None:
    wrong = replace(exported, tensors={name: 2 * values for name, values in exported.tensors.items()})
    bundle = make_bundle(*CLASSES, exported=wrong)
    with pytest.raises(UserError, match="gives other answers"):
        Predictor(bundle, "cpu", engine="onnxruntime")
    expected = in_torch(bundle).torch_engine()(PIXELS)["logits"]
    np.testing.assert_array_equal(Predictor(bundle, "cpu", engine="torch").outputs(PIXELS)["logits"], expected)
