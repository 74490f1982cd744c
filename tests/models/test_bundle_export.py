"""A bundle's ONNX file answers as torch does, or there is none, and the reason is known."""

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import noise
from torch import nn

from spectacles.data.preprocessing import Preprocessing
from spectacles.models import backbones, bundle_export, engines
from spectacles.models.all_outputs import AllOutputs
from spectacles.models.bundle import load_bundle
from spectacles.models.bundle_export import Exported
from spectacles.models.bundle_network import EXPECTED
from spectacles.models.classifier import Classifier
from spectacles.models.engine_choice import CHECKED, TOLERANCE, relative_difference
from spectacles.models.sample_pictures import sample_pictures
from spectacles.models.torch_network import PixelNetwork

PREPROCESSING = Preprocessing(32, "squash", "bilinear", (0.5, 0.4, 0.3), (0.25, 0.5, 0.2), 3)
PHOTOS = np.stack([PREPROCESSING.pixels(noise(seed)) for seed in range(5)])


def network(name: str) -> PixelNetwork:
    torch.manual_seed(0)
    backbone = backbones.build(name, 3, 32).train()
    for _ in range(3):  # BatchNorm statistics that are not the initial ones
        backbone(torch.randn(8, 3, 32, 32))
    classifier = Classifier(backbone, backbones.feature_dim(backbone, 3, 32), 3, 0.0)
    return PixelNetwork(AllOutputs(classifier, PREPROCESSING), PREPROCESSING, "cpu")


@pytest.mark.parametrize("name", ["simple_cnn", "test_efficientnet"])
def test_the_file_gives_torchs_outputs_for_batches_of_any_size(name: str) -> None:
    net = network(name)
    exported = bundle_export.export(net, relative_difference, PHOTOS)
    assert exported.reason == "" and exported.content is not None
    run = engines.build("onnxruntime", lambda: exported.content)
    for pixels in (PHOTOS, PHOTOS[:1], np.repeat(PHOTOS, 4, axis=0)):
        outputs, expected = run(pixels), net.torch_engine()(pixels)
        assert list(outputs) == list(expected)
        for key, values in expected.items():
            np.testing.assert_allclose(outputs[key], values, atol=TOLERANCE * values.std(), err_msg=key)
    answers = net.torch_engine()(sample_pictures(PREPROCESSING, CHECKED))
    assert exported.tensors.keys() == {EXPECTED + "logits", EXPECTED + "ood_features"}
    for key, values in exported.tensors.items():
        np.testing.assert_array_equal(values, answers[key.removeprefix(EXPECTED)])
    assert str(Path(__file__).parents[2]).encode() not in exported.content, "no paths of this machine"


def test_the_same_network_gives_the_same_file() -> None:
    one, other = (bundle_export.export(network("simple_cnn"), relative_difference, PHOTOS[:0]) for _ in range(2))
    assert one.content == other.content is not None


def test_a_file_with_other_answers_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    build = engines.BUILDERS["onnxruntime"]

    def broken(content: bytes) -> engines.Engine:
        run = build(content)
        return lambda pixels: {name: values + 0.1 * (len(pixels) == 5) for name, values in run(pixels).items()}

    monkeypatch.setitem(engines.BUILDERS, "onnxruntime", broken)
    exported = bundle_export.export(network("simple_cnn"), relative_difference, PHOTOS)
    assert exported.content is None and exported.tensors == {}
    assert exported.reason.startswith("its ONNX file gives other answers than PyTorch, by ")


class NotExportable(nn.Module):
    """What it computes depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * self.weight if images.sum() > 0 else images.amax((2, 3))


def test_what_cannot_be_exported_has_a_reason_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    net = PixelNetwork(AllOutputs(Classifier(NotExportable(), 3, 2, 0.0), PREPROCESSING), PREPROCESSING, "cpu")
    exported = bundle_export.export(net, relative_difference, PHOTOS)
    assert exported.content is None and exported.reason.startswith("it cannot be exported (")
    assert len(exported.reason.splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_bundle_without_a_file_says_why(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle("a", "b", exported=Exported(None, "it is a test")))
    assert (bundle.network, bundle.without_network) == (None, "it is a test")


def test_exports_in_several_threads_leave_logs_and_output_as_they_were() -> None:
    """Both belong to the process: what one export silences, another one must not take for the normal state."""
    networks = [network("simple_cnn") for _ in range(4)]
    before = (logging.root.manager.disable, sys.stdout, sys.stderr)
    with ThreadPoolExecutor(len(networks)) as pool:
        files = list(pool.map(lambda each: each.onnx(), networks))
    assert all(files) and before == (logging.root.manager.disable, sys.stdout, sys.stderr)
