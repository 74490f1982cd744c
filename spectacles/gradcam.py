"""Grad-CAM (Selvaraju et al. 2017): which parts of a photo speak for a class."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isqrt
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import nn

from spectacles.classifier import Classifier

Forward = Callable[[torch.Tensor], torch.Tensor]


class NoFeatureMap(Exception):
    """The backbone has no last layer that is laid out like the image; the message says what it has instead."""


def grad_cam(classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Images (B, C, S, S) and class indices (B,) int64 -> heat (B, h, w) float32, each image's hottest spot 1.

    h and w are those of the last feature map: of the features before pooling or, in a transformer, of the tokens that
    enter the last block (the tokens after it no longer reach a class token). An image in which nothing speaks for its
    class is 0 everywhere. Raises NoFeatureMap. Leaves the classifier in evaluation mode.
    """
    classifier.eval()
    tap = nn.Identity()
    with _through(tap, classifier, images[:1]) as forward:
        inputs = images.detach().requires_grad_()  # a path for gradients, also where the backbone is frozen
        heat = LayerGradCam(forward, tap).attribute(inputs, target=targets, relu_attributions=True)
    heat = heat.detach().squeeze(1).float().cpu()
    hottest = heat.amax(dim=(1, 2), keepdim=True)
    scaled: np.ndarray = torch.where(hottest > 0, heat / hottest, 0.0).numpy()
    return scaled


@contextmanager
def _through(tap: nn.Module, classifier: Classifier, example: torch.Tensor) -> Iterator[Forward]:
    """The classifier as a function whose last feature map passes through `tap` as (B, C, h, w)."""
    backbone: Any = classifier.backbone  # timm's methods are not nn.Module's
    if not hasattr(backbone, "forward_features"):
        raise NoFeatureMap(f"{type(backbone).__name__} does not tell its features before pooling")
    with torch.no_grad():
        features = backbone.forward_features(example)
    if isinstance(features, torch.Tensor) and features.ndim == 4:
        yield _map_through(tap, classifier, channels_last=_is_channels_last(features, backbone.num_features))
        return
    layer = _last_norm(backbone)
    handle = layer.register_forward_hook(_tokens_through(tap, int(getattr(backbone, "num_prefix_tokens", 0))))
    try:
        yield classifier
    finally:
        handle.remove()


def _is_channels_last(features: torch.Tensor, num_features: int) -> bool:
    """Swin and its like keep (B, h, w, C)."""
    return features.shape[3] == num_features != features.shape[1]


def _map_through(tap: nn.Module, classifier: Classifier, channels_last: bool) -> Forward:
    backbone: Any = classifier.backbone
    to_map, back = ((0, 3, 1, 2), (0, 2, 3, 1)) if channels_last else ((0, 1, 2, 3), (0, 1, 2, 3))

    def forward(images: torch.Tensor) -> torch.Tensor:
        features = tap(backbone.forward_features(images).permute(to_map)).permute(back)
        logits: torch.Tensor = classifier.head(backbone.forward_head(features))
        return logits

    return forward


def _last_norm(backbone: nn.Module) -> nn.Module:
    try:
        layer: nn.Module = backbone.blocks[-1].norm1  # type: ignore[index, union-attr]
    except (AttributeError, TypeError, IndexError):
        raise NoFeatureMap(
            f"{type(backbone).__name__} has neither a feature map nor timm's transformer blocks"
        ) from None
    return layer


def _tokens_through(tap: nn.Module, prefix: int) -> Callable[..., torch.Tensor]:
    """A forward hook: tokens (B, prefix + h * h, C), of which the class and register tokens bypass `tap`."""

    def hook(module: nn.Module, args: object, tokens: torch.Tensor) -> torch.Tensor:
        patches = tokens[:, prefix:].transpose(1, 2)
        side = isqrt(patches.shape[2])
        if side * side != patches.shape[2]:
            raise NoFeatureMap(f"{patches.shape[2]} tokens are no square grid")
        feature_map = tap(patches.reshape(*patches.shape[:2], side, side))
        return torch.cat([tokens[:, :prefix], feature_map.flatten(2).transpose(1, 2)], dim=1)

    return hook
