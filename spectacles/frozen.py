"""Features of the backbone as it was before training: they have seen no label of the person's data."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from spectacles import backbones, embeddings, preprocess, recipes
from spectacles.bundle import BundleInfo
from spectacles.config import ComputeConfig, ModelConfig
from spectacles.pixels import Pixels
from spectacles.preprocess import Preprocessing
from spectacles.run_dir import RunDir


def load(config: ModelConfig) -> tuple[nn.Module, Preprocessing]:
    """The pretrained backbone and its preprocessing. Raises UserError where its weights cannot be had; with
    --no_pretrained there is nothing to ask for."""
    backbone: Any = backbones.build_pretrained(
        config.backbone, config.in_chans, recipes.image_size(config), config.weights
    )
    return backbone, preprocess.resolve(
        backbone.pretrained_cfg, recipes.image_size(config), config.resize, config.in_chans
    )


def of_run(run_dir: RunDir, info: BundleInfo) -> nn.Module | None:
    """The backbone that the run's model started from; None where that was random. Raises UserError where its weights
    cannot be had."""
    saved, preprocessing = run_dir.load_config(), info.preprocessing
    if saved.get("no_pretrained"):
        return None
    weights = Path(saved["weights"]) if saved.get("weights") else None
    return backbones.build_pretrained(info.backbone, preprocessing.in_chans, preprocessing.image_size, weights)


def features(
    rows: pd.DataFrame,
    backbone: nn.Module,
    name: str,
    preprocessing: Preprocessing,
    cache: Path,
    device: torch.device,
    config: ComputeConfig,
    num_workers: int | None,
) -> np.ndarray:
    """(N, D) float32 for `rows` (columns path, sha256); from the cache where another stage or run computed them."""
    with Pixels(rows, preprocessing, cache / "pixels", 0, num_workers) as pixels:
        return embeddings.embed(backbone, name, pixels, cache / "embeddings", device, config.batch_size, config.engine)
