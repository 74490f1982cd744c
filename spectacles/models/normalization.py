"""The network's side of preprocessing: from pixels as files give them to what a backbone was trained on."""

import torch
from torch import nn

from spectacles.data.preprocessing import Preprocessing


class Normalize(nn.Module):
    """uint8 (or float 0..255) (B, S, S, C) -> float32 (B, C, S, S) in channels_last memory: 0..1, minus mean, over std.

    Element by element, so an image's values do not depend on the batch it is in. Its constants move to a device with
    the module, so that no batch waits until they are copied there.
    """

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("offset", mean / std, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float() * self.scale - self.offset).permute(0, 3, 1, 2)


def normalize(preprocessing: Preprocessing, pixels: torch.Tensor) -> torch.Tensor:
    """`Normalize` of a single batch, on its device."""
    normalized: torch.Tensor = Normalize(preprocessing).to(pixels.device)(pixels)
    return normalized
