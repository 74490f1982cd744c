"""From an upright RGB picture to the model's input: one object, stored in the bundle, used by every consumer."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from spectacles.errors import UserError

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """Deterministic. Training replaces only `fit` by a random crop; `to_tensor` is shared."""

    image_size: int
    resize: str
    """squash (stretch), crop (cut the centre out) or pad (black borders)."""
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_chans: int

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> float32 (C, image_size, image_size), normalised."""
        return self.to_tensor(self.fit(image))

    def fit(self, image: Image.Image) -> Image.Image:
        size, resampling = (self.image_size, self.image_size), RESAMPLING[self.interpolation]
        if self.resize == "squash":
            return image.resize(size, resampling, reducing_gap=None)
        if self.resize == "crop":
            return ImageOps.fit(image, size, resampling)
        scale = self.image_size / max(image.size)  # ImageOps.pad loses a picture whose short side rounds to zero
        inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resampling)
        canvas = Image.new("RGB", size)
        canvas.paste(inner, ((self.image_size - inner.width) // 2, (self.image_size - inner.height) // 2))
        return canvas

    def to_tensor(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> float32 (C, H, W): 0..1, minus mean, over std. Grey is ITU-R 601 luma."""
        pixels = np.array(image if self.in_chans == 3 else image.convert("L"), dtype=np.uint8)
        tensor = torch.from_numpy(pixels).reshape(image.height, image.width, self.in_chans).permute(2, 0, 1)
        scaled = tensor.to(torch.float32).div_(255)
        mean, std = torch.tensor(self.mean).view(-1, 1, 1), torch.tensor(self.std).view(-1, 1, 1)
        return scaled.sub_(mean).div_(std).contiguous()

    def to_pixels(self, tensor: torch.Tensor) -> np.ndarray:
        """The way back, for pictures: (C, H, W) -> uint8 (H, W, 3)."""
        mean, std = torch.tensor(self.mean).view(-1, 1, 1), torch.tensor(self.std).view(-1, 1, 1)
        pixels = (tensor.cpu() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocessing":
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def resolve(pretrained_cfg: dict[str, Any], image_size: int | None, resize: str, in_chans: int) -> Preprocessing:
    """The backbone's own size, interpolation, mean and std, with the person's size and channels on top."""
    size = int(pretrained_cfg["input_size"][-1]) if image_size is None else image_size
    if not 16 <= size <= 2048:
        raise UserError(f"--image_size {size} is out of range: use 16 to 2048.")
    mean, std = tuple(pretrained_cfg["mean"]), tuple(pretrained_cfg["std"])
    if in_chans == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    interpolation = pretrained_cfg.get("interpolation", "bicubic")
    return Preprocessing(size, resize, interpolation if interpolation in RESAMPLING else "bicubic", mean, std, in_chans)
