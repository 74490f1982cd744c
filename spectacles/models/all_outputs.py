"""A classifier with everything that predictions, out-of-distribution scores and explanations need, from one pass."""

from typing import Any

import torch
from torch import nn

from spectacles.data.preprocessing import Preprocessing
from spectacles.models.classifier import Classifier
from spectacles.models.feature_layouts import as_map, prefix_tokens

TOLERANCE = 1e-4
"""Largest difference of two ways to the features, relative to the largest of them, that rounding explains."""


class AllOutputs(nn.Module):
    """images (B, C, S, S) -> by name

    logits (B, K) and features (B, D);
    ood_features (B, E): the last feature map that timm knows of, averaged over the image, or the features where it
    knows of none. What stands before a network's last layers still tells apart what training has taught those to treat
    alike;
    last_map (B, D, h, w), only where the features are its mean over the image: the head's weights then say how much
    each place contributes to a logit.

    Sets the classifier to evaluation mode. One thread at a time.
    """

    def __init__(self, classifier: Classifier, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.classifier = classifier.eval()
        layer, self.channels = _last_layer_with_a_map(classifier.backbone)
        self._seen: list[object] | None = None
        layer.register_forward_hook(self._note)
        self.with_last_map = self._features_are_a_mean(preprocessing)

    def _note(self, _module: nn.Module, _inputs: object, output: object) -> None:
        if self._seen is not None:
            self._seen.append(output)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen: list[object] = []
        self._seen = seen
        try:
            features, last_map = self._embed(images)
        finally:
            self._seen = None
        last = seen[0] if len(seen) == 1 else features
        outputs = {
            "logits": self.classifier.head(features),
            "features": features,
            "ood_features": _averaged(last, self.channels) if isinstance(last, torch.Tensor) else features,
        }
        return outputs if last_map is None else outputs | {"last_map": last_map}

    def _embed(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self.with_last_map:
            return self.classifier.embed(images), None
        backbone: Any = self.classifier.backbone  # timm's methods are not nn.Module's
        unpooled = backbone.forward_features(images)
        found = as_map(unpooled, prefix_tokens(backbone))
        assert found is not None
        return backbone.forward_head(unpooled, pre_logits=True), found[0]

    @torch.no_grad()
    def _features_are_a_mean(self, preprocessing: Preprocessing) -> bool:
        """Whether all that the head looks at is the mean of the backbone's last map, tried on noise."""
        backbone: Any = self.classifier.backbone
        if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
            return False
        size, channels = preprocessing.image_size, preprocessing.in_chans
        images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
        images = images.to(next(self.classifier.parameters()).device)
        features, unpooled = self.classifier.embed(images), backbone.forward_features(images)
        found = as_map(unpooled, prefix_tokens(backbone))
        if found is None or found[0].shape[:2] != features.shape:
            return False
        return all(
            bool((way - features).abs().max() <= TOLERANCE * features.abs().max())
            for way in (found[0].mean(dim=(2, 3)), backbone.forward_head(unpooled, pre_logits=True))
        )


def _last_layer_with_a_map(backbone: nn.Module) -> tuple[nn.Module, int]:
    """(the module whose output it is, its channels); the backbone itself where timm knows of none."""
    known = getattr(backbone, "feature_info", None)
    try:
        return backbone.get_submodule(known[-1]["module"]), int(known[-1]["num_chs"])  # type: ignore[index]
    except (TypeError, KeyError, IndexError, AttributeError):
        return backbone, 0


def _averaged(output: torch.Tensor, channels: int) -> torch.Tensor:
    """(B, C, h, w), (B, h, w, C), tokens (B, N, C) or (B, C) -> (B, C)."""
    if output.ndim == 4 and output.shape[1] == channels:
        return output.mean(dim=(2, 3))
    return output.flatten(1, -2).mean(dim=1) if output.ndim > 2 else output
