"""The network: a backbone that turns images into features, and a linear head on top."""

from pathlib import Path

import torch
from torch import nn

from spectacles.core.errors import UserError
from spectacles.models import backbones
from spectacles.models.block_network import block_features
from spectacles.models.bundle import Bundle, BundleInfo, load_bundle
from spectacles.models.feature_blocks import Taps

LAST_LAYER = Taps()


class Classifier(nn.Module):
    """images (B, C, S, S) -> features (B, D) -> dropout -> logits (B, K): of exclusive classes, or with `multi_label`
    of independent labels."""

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_classes: int,
        dropout: float,
        multi_label: bool = False,
        taps: Taps = LAST_LAYER,
    ) -> None:
        super().__init__()
        self.multi_label, self.taps = multi_label, taps
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(feature_dim, num_classes)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) -> (B, D): what the head looks at, the features of the backbone's last layer and those of the
        `taps`."""
        return torch.cat(list(block_features(self.backbone, images, self.taps).values()), dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) -> logits (B, K)."""
        logits: torch.Tensor = self.head(self.dropout(self.embed(images)))
        return logits


def load_classifier(folder: Path) -> tuple[Classifier, BundleInfo, str]:
    """A bundle's (classifier in evaluation mode on the CPU, info, model id). UserError for a damaged bundle."""
    bundle = load_bundle(folder)
    return build_classifier(bundle), bundle.info, bundle.model_id


def build_classifier(bundle: Bundle) -> Classifier:
    """In evaluation mode, on the CPU. Raises UserError where the weights do not fit."""
    info = bundle.info
    backbone = backbones.build(info.backbone, info.preprocessing.in_chans, info.preprocessing.image_size)
    classifier = Classifier(backbone, info.feature_dim, len(info.classes), info.dropout, info.multi_label, info.taps)
    state = {name: torch.tensor(values) for name, values in bundle.tensors("backbone.", "head.").items()}
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"the weights in {bundle.weights} do not fit its {info.backbone}: use the timm that wrote it."
        ) from error
    return classifier.eval()
