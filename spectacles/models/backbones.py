"""Backbones by name: their architecture, with random weights, and what is known about it."""

import re
from functools import cache
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn

from spectacles.core.errors import UserError

ALIASES = {
    "mobilenet_v3": "mobilenetv3_large_100",
    "mobilenet_v2": "mobilenetv2_100",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_b7": "tf_efficientnet_b7",
    "convnext_base": "convnext_base.fb_in1k",
}
"""Common names -> timm's, where the two differ (or timm has no weights under the plain name)."""
FEW_TENSORS = 3
"""A last group of at most so many tensors is not a layer group of its own."""

SIMPLE_CNN_CFG = {
    "input_size": (3, 64, 64), "fixed_input_size": True, "mean": (0.5,) * 3, "std": (0.5,) * 3,
    "interpolation": "bilinear",
}  # fmt: skip


class SimpleCNN(nn.Module):
    """Three conv-BN-ReLU-pool blocks of 32, 64 and 128 channels, then a fully connected layer of 128 with BN.

    The dropout of 0.5 that belongs before the last layer is the head's.
    """

    num_features = 128
    pretrained_cfg = SIMPLE_CNN_CFG

    def __init__(self, in_chans: int = 3, image_size: int = 64) -> None:
        super().__init__()
        channels = (in_chans, 32, 64, 128)
        self.blocks = nn.Sequential(*[_conv_block(i, o) for i, o in pairwise(channels)])
        side = image_size // 8
        self.fc = nn.Linear(128 * side * side, 128)
        self.bn = nn.BatchNorm1d(128)

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Layer groups in timm's form: the first block is the stem, fc and bn go with the last one."""
        return {"stem": r"^blocks\.0", "blocks": [(r"^blocks\.(\d+)", None), (r"^fc|^bn", (99999,))]}

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) -> (B, 128, S/8, S/8)."""
        features: torch.Tensor = self.blocks(images)
        return features

    def forward_head(self, features: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
        """(B, 128, S/8, S/8) -> (B, 128)."""
        return torch.relu(self.bn(self.fc(features.flatten(1))))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


def timm_name(name: str) -> str:
    return ALIASES.get(name, name)


def build(name: str, in_chans: int, image_size: int | None) -> nn.Module:
    """The bare architecture, random weights: (B, in_chans, S, S) -> features (B, D). UserError for an unknown name, and
    for a size that the backbone does not take."""
    if name == "simple_cnn":
        return SimpleCNN(in_chans, image_size or 64)
    return create(name, in_chans, image_size, pretrained=False)


def create(name: str, in_chans: int, image_size: int | None, pretrained: bool) -> nn.Module:
    """timm's model without its classifier. Backbones of a fixed size are built for `image_size` where they can be."""
    full_name = timm_name(name)
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0, "in_chans": in_chans}
    if image_size and fixed_size(name) and image_size != native_size(name):
        options["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(full_name, **options)
        return model
    except TypeError as error:
        if "img_size" not in options or "img_size" not in str(error):
            raise
        raise UserError(
            f"--backbone {name} takes images of {native_size(name)} px only: leave --image_size {image_size} out."
        ) from error
    except (AssertionError, ValueError) as error:  # windows or patches that do not fit
        if "img_size" not in options:
            raise
        raise _does_not_fit(name, image_size, error) from error
    except RuntimeError as error:
        if "Invalid pretrained tag" in str(error):
            raise UserError(f"--backbone {name}: {error}") from None
        if "Unknown model" not in str(error):
            raise
        close = ", ".join(timm.list_models(f"*{re.split(r'[._]', name)[0]}*")[:8]) or "resnet50, mobilenet_v3"
        raise UserError(f"--backbone {name} is not a model that timm knows. Similar: {close}.") from None


def fixed_size(name: str) -> bool:
    """Backbones with a table of positions or with windows are built for one image size: others cost accuracy or do not
    fit."""
    return bool(_pretrained_cfg(name).get("fixed_input_size"))


def layer_groups(backbone: nn.Module) -> list[list[str]]:
    """Names of the backbone's parameters in layer groups, from the input to the features, as timm groups them.

    A last group of a few tensors (a lone normalisation or convolution before pooling) joins the one before it.
    """
    matcher: Any = getattr(backbone, "group_matcher", None)
    try:
        groups = list(group_parameters(backbone, matcher(coarse=True)).values()) if matcher else []
    except AssertionError:  # the family has no coarse groups
        groups = []
    groups = groups or [[name for name, _ in backbone.named_parameters()]]
    while len(groups) > 1 and len(groups[-1]) <= FEW_TENSORS:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


@cache
def count_layer_groups(name: str) -> int:
    with torch.device("meta"):  # shapes without memory
        return len(layer_groups(build(name, 3, None)))


def native_size(name: str) -> int:
    """Side in pixels of the images that the weights were pretrained on."""
    return int(_pretrained_cfg(name).get("input_size", (3, 224, 224))[-1])


@cache
def closest_size(name: str, wanted: int) -> int:
    """`wanted` where the backbone takes images of that size, else the one of its weights."""
    native = native_size(name)
    if fixed_size(name) or wanted == native:
        return native
    with torch.device("meta"), torch.no_grad():
        try:
            build(name, 3, wanted).eval()(torch.zeros(1, 3, wanted, wanted))
        except NotImplementedError:  # an operation that needs values, not only shapes
            return wanted
        except (AssertionError, RuntimeError):  # blocks of attention that do not fit
            return native
    return wanted


@cache
def _pretrained_cfg(name: str) -> dict[str, Any]:
    """timm's facts about the weights and the input."""
    with torch.device("meta"):  # the model's own, which may differ from those of its family
        return getattr(build(name, 3, None), "pretrained_cfg", None) or {}


def feature_dim(backbone: nn.Module, in_chans: int, image_size: int) -> int:
    """D of the features (B, D), found by a forward pass: attribute names differ between families."""
    was_training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, in_chans, image_size, image_size))
    backbone.train(was_training)
    return int(features.shape[1])


def fitting_feature_dim(name: str, backbone: nn.Module, in_chans: int, image_size: int) -> int:
    """`feature_dim`; UserError where the backbone cannot take images of this size."""
    try:
        return feature_dim(backbone, in_chans, image_size)
    except (AssertionError, RuntimeError) as error:  # patches that do not fit, or an image smaller than a kernel
        raise _does_not_fit(name, image_size, error) from error


def _does_not_fit(name: str, image_size: int | None, error: Exception) -> UserError:
    return UserError(f"--backbone {name} cannot take --image_size {image_size}: {str(error) or type(error).__name__}")
