"""Backbones by name, and pretrained weights that are either the right ones or rejected."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import model
from spectacles.core.config import ModelConfig
from spectacles.core.errors import UserError
from spectacles.models import backbones, pretrained

TINY = "test_resnet"
"""timm's smallest ResNet, made for tests."""

Save = Callable[[dict[str, torch.Tensor], Path], object]


def make_state(seed: int, in_chans: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return backbones.build(TINY, in_chans, None).state_dict()


def equal_states(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def test_efficientnet_lite0_comes_from_the_installed_package():
    network = pretrained.build_pretrained("efficientnet_lite0", 3, None, None)
    package = Path(__import__(pretrained.LITE0_PACKAGE).__file__).parent
    (file,) = package.glob("models/*.pth")
    # The package lists the same layers in the same order under other names, and the classifier last.
    stored = [*torch.load(file, weights_only=True).values()][:-2]
    ours = [*network.state_dict().values()]
    assert len(ours) == len(stored) == 294
    assert all(torch.equal(a, b) for a, b in zip(ours, stored, strict=True))


@pytest.mark.parametrize(("in_chans", "image_size"), [(3, 64), (1, 64), (3, 16), (1, 30), (3, 33)])
def test_simple_cnn_gives_128_features_at_any_size(in_chans, image_size):
    network = backbones.build("simple_cnn", in_chans, image_size).eval()
    images = torch.randn(2, in_chans, image_size, image_size)
    assert network(images).shape == (2, 128)
    assert network.forward_features(images).shape == (2, 128, image_size // 8, image_size // 8)
    assert backbones.feature_dim(network, in_chans, image_size) == 128


def test_resnet18_takes_grey_images_of_64_pixels():
    classifier, preprocessing = model.build(
        ModelConfig(backbone="resnet18", no_pretrained=True, in_chans=1, image_size=64), num_classes=5
    )
    assert classifier.eval()(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    assert (preprocessing.in_chans, preprocessing.image_size) == (1, 64)
    assert classifier.head.in_features == 512


@pytest.mark.parametrize("training", [True, False])
def test_asking_for_the_feature_size_changes_nothing(training):
    network = backbones.build("simple_cnn", 3, 16).train(training)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert backbones.feature_dim(network, 3, 16) == 128
    assert network.training is training
    assert equal_states(before, network.state_dict())


@pytest.mark.parametrize("name", ["mobilenet_v3", "efficientnet_lite0", "mobilenet_v2", "resnet50", "convnext_base"])
def test_common_names_are_known_to_timm(name):
    assert timm.is_model(backbones.timm_name(name).split(".")[0])


@pytest.mark.parametrize(
    ("name", "suggestion"), [("resnet_51", "resnet"), ("mobilenetv3_huge", "mobilenetv3_"), ("zzz", "resnet50")]
)
def test_an_unknown_backbone_is_answered_with_suggestions(name, suggestion):
    with pytest.raises(UserError, match=f"--backbone {name} .*{suggestion}"):
        backbones.build(name, 3, None)


def test_an_unknown_tag_of_a_known_backbone_is_the_users_mistake():
    with pytest.raises(UserError, match=r"resnet18\.nonsense"):
        backbones.build("resnet18.nonsense", 3, None)


def test_a_size_that_the_backbone_cannot_take_is_the_users_mistake():
    with pytest.raises(UserError, match="--image_size 100"):
        model.build(ModelConfig(backbone="test_vit", no_pretrained=True, image_size=100), num_classes=2)


def test_a_transformer_is_built_for_the_image_size():
    classifier, _ = model.build(ModelConfig(backbone="test_vit", no_pretrained=True, image_size=96), num_classes=2)
    assert classifier.eval()(torch.randn(1, 3, 96, 96)).shape == (1, 2)


@pytest.fixture
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty cache"))


@pytest.mark.usefixtures("_no_network")
def test_without_a_network_the_choices_are_named():
    with pytest.raises(UserError) as caught:
        pretrained.build_pretrained("resnet50", 3, None, None)
    choices = ("resnet50", "--backbone efficientnet_lite0", "--weights", "--no_pretrained")
    assert all(word in str(caught.value) for word in choices)


@pytest.mark.parametrize("name", ["simple_cnn", "mobilenetv2_035"])
def test_a_backbone_that_never_had_weights_says_so(name):
    with pytest.raises(UserError, match=rf"{name}.*no pretrained weights.*--no_pretrained"):
        pretrained.build_pretrained(name, 3, None, None)


def wrapped(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)


def with_classifier(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({"model": {**state, "fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}}, path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("w.safetensors", save_file),
        ("w.pth", torch.save),
        ("w.pt", torch.save),
        ("checkpoint.tar", wrapped),
        ("w.bin", with_classifier),
    ],
)
def test_local_weights_are_taken(tmp_path, name, save: Save):
    state = make_state(seed=1)
    save(state, tmp_path / name)
    torch.manual_seed(2)
    assert equal_states(pretrained.build_pretrained(TINY, 3, None, tmp_path / name).state_dict(), state)


def test_colour_weights_see_a_grey_picture_as_three_equal_channels(tmp_path):
    save_file(make_state(seed=1), tmp_path / "w.safetensors")
    colour, grey = (
        pretrained.build_pretrained(TINY, channels, None, tmp_path / "w.safetensors").eval() for channels in (3, 1)
    )
    picture = torch.randn(2, 1, 64, 64)
    np.testing.assert_allclose(
        grey(picture).detach().numpy(), colour(picture.expand(2, 3, 64, 64)).detach().numpy(), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("text.pth", lambda path: path.write_text("no weights")),
        ("text.safetensors", lambda path: path.write_text("no weights")),
        ("empty.pth", lambda path: path.write_bytes(b"")),
        ("number.pth", lambda path: torch.save(5, path)),
        ("list.pth", lambda path: torch.save([torch.zeros(2)], path)),
        ("none.pth", lambda path: torch.save({"state_dict": {}}, path)),
        ("other.pth", lambda path: torch.save(nn.Linear(2, 2).state_dict(), path)),
        ("other.safetensors", lambda path: save_file(nn.Linear(2, 2).state_dict(), path)),
        ("optimizer.pth", lambda path: torch.save(torch.optim.SGD([torch.zeros(1)], 0.1).state_dict(), path)),
        ("numbered.pth", lambda path: torch.save({0: torch.zeros(2)}, path)),
        ("tensor.pth", lambda path: torch.save({"model": torch.zeros(2)}, path)),
    ],
)
def test_a_file_without_this_backbones_weights_is_named(tmp_path, name, save):
    save(tmp_path / name)
    with pytest.raises(UserError, match=name):
        pretrained.build_pretrained(TINY, 3, None, tmp_path / name)


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_weights_that_do_not_exist_are_named(tmp_path, name):
    with pytest.raises(UserError, match=r"--weights .* does not exist"):
        pretrained.build_pretrained(TINY, 3, None, tmp_path / name)


def test_a_tensor_that_is_missing_is_named(tmp_path):
    state = make_state(seed=1)
    lost = [*state][5]
    del state[lost]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=f"{lost} is missing"):
        pretrained.build_pretrained(TINY, 3, None, tmp_path / "w.safetensors")


def test_a_tensor_of_another_shape_is_named(tmp_path):
    state = make_state(seed=1)
    odd = next(key for key, value in state.items() if value.ndim == 4)
    state[odd] = torch.zeros(1, 2, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=rf"{odd} has shape \(1, 2, 3, 3\)"):
        pretrained.build_pretrained(TINY, 3, None, tmp_path / "w.safetensors")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_a_malicious_file_is_rejected_and_not_run(tmp_path, write):
    content = {"state_dict": make_state(1), "bomb": Bomb(tmp_path / "exploded")}
    if write == "torch":
        torch.save(content, tmp_path / "w.pth")
    else:
        (tmp_path / "w.pth").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"w\.pth is not a readable weights file"):
        pretrained.build_pretrained(TINY, 3, None, tmp_path / "w.pth")
    assert not (tmp_path / "exploded").exists()
