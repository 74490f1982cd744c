"""The network: a backbone that turns images into features, and a linear head on top."""

from pathlib import Path

import torch
from torch import nn

from spectacles import backbones, bundle
from spectacles.bundle import BundleInfo
from spectacles.errors import UserError


class Classifier(nn.Module):
    """images (B, C, S, S) -> features (B, D) -> dropout -> logits (B, K)."""

    def __init__(self, backbone: nn.Module, feature_dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(feature_dim, num_classes)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) -> (B, D)."""
        features: torch.Tensor = self.backbone(images)
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) -> logits (B, K)."""
        logits: torch.Tensor = self.head(self.dropout(self.embed(images)))
        return logits


def load(folder: Path) -> tuple[Classifier, BundleInfo, str]:
    """A bundle's (classifier in evaluation mode on the CPU, info, model id). UserError for a damaged bundle."""
    info, state, model_id = bundle.load(folder)
    backbone = backbones.build(info.backbone, info.preprocessing.in_chans, info.preprocessing.image_size)
    classifier = Classifier(backbone, info.feature_dim, len(info.classes), info.dropout)
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"the weights in {folder} do not fit its {info.backbone}: use the timm that wrote it."
        ) from error
    return classifier.eval(), info, model_id
