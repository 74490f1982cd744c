"""Random changes to training images, in whole batches and on the device that trains.

The change of an image is determined by one row of uniform numbers, a function of (seed, epoch, index), independent
of batch, device and timing. The changes were chosen to make a model robust to photos from elsewhere: other frames and
sizes (crop, zoom out, turn), other cameras (light, colour, grey, blur, JPEG), and occlusions (erasing).
"""

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import affine_grid, avg_pool2d, conv2d, grid_sample, pad
from torchvision.transforms import v2

from spectacles.core.config import AugmentConfig
from spectacles.core.device import derive_seed
from spectacles.data.images import jpeg_round_trip
from spectacles.data.preprocessing import Preprocessing
from spectacles.models.normalization import Normalize
from spectacles.models.torch_device import to_device

COLUMNS = (
    "crop_area", "crop_x", "crop_y", "aspect", "flip", "turn", "zooms_out", "zoom",
    "brightness", "contrast", "saturation", "is_grey", "is_blurred", "blur", "is_jpeg", "jpeg",
    "is_erased", "erase_area", "erase_x", "erase_y", "erase_colour",
)  # fmt: skip
"""What each uniform number of a row decides. New ones are added at the end, so that the earlier ones do not change."""

ASPECT = 1.18
ZOOM_OUT = 2.5
"""A zoomed-out image fills at least 1/2.5 of the frame's side; the area around it is filled by reflection."""
BLUR_SIGMA = (0.4, 2.0)
"""In pixels at 224 px; smaller images in proportion."""
JPEG_QUALITY = (15, 85)
ERASED_AREA = (0.02, 0.2)
LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601."""


def draws(seed: int, epoch: int, count: int) -> np.ndarray:
    """Uniform numbers (count, len(COLUMNS)) in [0, 1): row i is a function of (seed, epoch, i)."""
    return np.random.default_rng(derive_seed(seed, "augment", epoch)).random((count, len(COLUMNS)), dtype=np.float32)


def row_for(*parts: int | str) -> np.ndarray:
    """One row of draws that is a function of `parts`."""
    return np.random.default_rng(derive_seed("view", *parts)).random(len(COLUMNS), dtype=np.float32)


class Augmentation(nn.Module):
    """uint8 (B, S, S, C) -> float32 (B, C, size, size), normalised, channels_last, on the module's device.

    `rows` (B, len(COLUMNS)) are the batch's draws everywhere; `size` is the side of the result.
    """

    luma: torch.Tensor

    def __init__(self, config: AugmentConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.config, self.normalize = config, Normalize(preprocessing)
        weights = torch.tensor(LUMA if preprocessing.in_chans == 3 else [1.0])
        self.register_buffer("luma", weights.view(1, -1, 1, 1), persistent=False)
        self._policy = v2.RandAugment(num_ops=2, magnitude=config.randaugment)

    def forward(self, pixels: np.ndarray, rows: np.ndarray, size: int) -> torch.Tensor:
        return self.on_device(self.on_host(pixels, rows), rows, size)

    @property
    def host_part_is_pure(self) -> bool:
        """Whether `on_host` may run in another thread: RandAugment draws from torch's global generator."""
        return not self.config.randaugment

    def on_host(self, pixels: np.ndarray, rows: np.ndarray, pool: Executor | None = None) -> np.ndarray:
        """What is done on the CPU even if there is a GPU, to uint8 (B, S, S, C): on a GPU, every step would wait for
        nvjpeg. Each image is compressed in a thread of `pool`."""
        pixels = self._randaugment(pixels, rows)
        drawn = dict(zip(COLUMNS, rows.T, strict=True))
        chosen = np.flatnonzero(drawn["is_jpeg"] < self.config.jpeg)
        if not len(chosen):
            return pixels
        qualities = [round(_between(JPEG_QUALITY, float(drawn["jpeg"][place]))) for place in chosen]
        compressed = (pool.map if pool else map)(jpeg_round_trip, pixels[chosen], qualities)
        pixels = pixels.copy()
        for place, picture in zip(chosen, compressed, strict=True):
            pixels[place] = picture
        return pixels

    def on_device(self, pixels: np.ndarray, rows: np.ndarray, size: int) -> torch.Tensor:
        """The rest, of what `on_host` returned."""
        images = self._change(pixels, rows, size)
        normalized: torch.Tensor = self.normalize(images.permute(0, 2, 3, 1))
        return normalized.contiguous(memory_format=torch.channels_last)

    def view(self, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The changed images as pixels again, uint8 (B, S, S, C)."""
        changed = self._change(self.on_host(pixels, rows), rows, pixels.shape[1])
        return changed.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).contiguous().cpu().numpy()

    def _change(self, pixels: np.ndarray, rows: np.ndarray, size: int) -> torch.Tensor:
        """float32 (B, C, size, size), 0..255."""
        drawn = dict(zip(COLUMNS, rows.T, strict=True))
        images = to_device(pixels, self.luma.device)
        images = self._frame(images.permute(0, 3, 1, 2).float(), drawn, size)
        return self._erase(self._blur(self._recolour(images, drawn), drawn), drawn)

    def _randaugment(self, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if not self.config.randaugment:
            return pixels
        changed = []
        with torch.random.fork_rng(devices=[]):
            for picture, row in zip(pixels, rows, strict=True):
                torch.default_generator.manual_seed(derive_seed(row.tobytes().hex()))
                changed.append(self._policy(torch.from_numpy(picture).permute(2, 0, 1)).permute(1, 2, 0).numpy())
        return np.stack(changed)

    def _frame(self, images: torch.Tensor, drawn: dict[str, np.ndarray], size: int) -> torch.Tensor:
        """Crops or zooms out, mirrors and rotates, in one resampling; strong reductions start from a halved copy, to
        avoid aliasing."""
        theta, reduction = affine(self.config, drawn)
        grid = affine_grid(
            to_device(theta, images.device), [len(images), images.shape[1], size, size], align_corners=False
        )
        framed = grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
        strong = np.flatnonzero(reduction * images.shape[-1] / size > 1.5)
        if len(strong):
            places = to_device(strong, images.device)
            framed[places] = grid_sample(
                avg_pool2d(images[places], 2), grid[places], "bilinear", "reflection", align_corners=False
            )
        return framed

    def _recolour(self, images: torch.Tensor, drawn: dict[str, np.ndarray]) -> torch.Tensor:
        """Brightness, contrast (around the image's mean grey) and saturation, as torchvision's ColorJitter."""
        strength = self.config.color_jitter
        grey_channels = images.shape[1] == 1
        if not strength and (grey_channels or not self.config.grayscale):
            return images
        factors = {n: 1 + strength * (2 * drawn[n] - 1) for n in ("brightness", "contrast", "saturation")}
        factors["saturation"] = np.where(drawn["is_grey"] < self.config.grayscale, 0, factors["saturation"])
        brightness, contrast, saturation = (
            to_device(value, images.device).view(-1, 1, 1, 1) for value in factors.values()
        )  # fmt: skip
        images = images * brightness
        grey = (images * self.luma).sum(1, keepdim=True)
        images = torch.lerp(grey, images, saturation) if not grey_channels else images
        mean = grey.mean((2, 3), keepdim=True)
        return torch.lerp(mean.expand_as(images), images, contrast).clamp_(0, 255)

    def _blur(self, images: torch.Tensor, drawn: dict[str, np.ndarray]) -> torch.Tensor:
        chosen = np.flatnonzero(drawn["is_blurred"] < self.config.blur)
        if not len(chosen):
            return images
        places, size = to_device(chosen, images.device), images.shape[-1]
        sigma = _between(BLUR_SIGMA, to_device(drawn["blur"][chosen], images.device)) * size / 224
        radius = max(1, math.ceil(2 * BLUR_SIGMA[1] * size / 224))
        offsets = torch.arange(-radius, radius + 1, device=images.device)
        kernels = torch.softmax(-0.5 * (offsets / sigma[:, None]).square(), dim=1)  # (M, 2r+1), each sums to 1
        channels = images.shape[1]
        kernels = kernels.repeat_interleave(channels, 0)[:, None, :, None]
        blurred = pad(images[places], [radius] * 4, mode="reflect").flatten(0, 1)[None]
        groups = len(chosen) * channels
        blurred = conv2d(conv2d(blurred, kernels, groups=groups), kernels.transpose(2, 3), groups=groups)
        images[places] = blurred.view(len(chosen), channels, size, size)
        return images

    def _erase(self, images: torch.Tensor, drawn: dict[str, np.ndarray]) -> torch.Tensor:
        """Covers a part with a grey square (Zhong et al. 2017). Slices with known bounds: nothing waits for a GPU."""
        size = images.shape[-1]
        for place in np.flatnonzero(drawn["is_erased"] < self.config.random_erasing):
            row = {name: float(values[place]) for name, values in drawn.items()}
            side = round(size * math.sqrt(_between(ERASED_AREA, row["erase_area"])))
            x, y = (int(row[name] * (size - side + 1)) for name in ("erase_x", "erase_y"))
            images[place, :, y : y + side, x : x + side] = 255 * row["erase_colour"]
        return images


def affine(config: AugmentConfig, drawn: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(theta (B, 2, 3) float32 from output to input coordinates in -1..1, reduction (B,): input per output length).

    A crop keeps `crop_scale` to 1 of the area and lies within the frame; its aspect ratio varies by 18 %. A zoomed-out
    picture (a share `zoom_out` of them) lies within the frame as a whole.
    """
    out = drawn["zooms_out"] < config.zoom_out
    crop = np.sqrt(_between((config.crop_scale, 1.0), drawn["crop_area"]))
    scale = np.where(out, ZOOM_OUT ** drawn["zoom"], crop)
    stretch = ASPECT ** (drawn["aspect"] - 0.5) if config.crop_scale < 1 else np.ones_like(scale)
    # The aspect ratio must neither push a crop over the border nor cut a zoomed-out picture.
    stretch = np.clip(stretch, np.minimum(scale, 1 / scale), np.maximum(scale, 1 / scale))
    wide, high = scale * stretch, scale / stretch
    x, y = (np.abs(1 - side) * (2 * drawn[name] - 1) for side, name in ((wide, "crop_x"), (high, "crop_y")))
    mirrored = np.where((drawn["flip"] < 0.5) & config.flip, -1, 1)
    angle = np.deg2rad(config.rotation) * (2 * drawn["turn"] - 1)
    cos, sin = np.cos(angle), np.sin(angle)
    theta = np.stack(
        [np.stack([wide * cos * mirrored, -wide * sin, x], 1), np.stack([high * sin * mirrored, high * cos, y], 1)], 1
    )
    return theta.astype(np.float32), scale


def _between(bounds: tuple[float, float], share: Any) -> Any:
    return bounds[0] + (bounds[1] - bounds[0]) * share


class View:
    """A fixed change of every image, identified by its number: 1 is the mirror image, from 2 on augmented ones."""

    def __init__(self, number: int, augmentation: Augmentation) -> None:
        self.number, self.augmentation = number, augmentation

    def name(self, digest: str) -> str:
        """The name in the table of features; that of an augmented view depends on the settings as well."""
        if self.number == 1:
            return f"{digest}/mirror"
        settings = hashlib.sha256(repr(self.augmentation.config).encode()).hexdigest()[:8]
        return f"{digest}/{self.number}/{settings}"

    def __call__(self, pixels: np.ndarray, digests: list[str]) -> np.ndarray:
        """uint8 (B, S, S, C) -> the same; the draws depend on (number, file content)."""
        if self.number == 1:
            return np.ascontiguousarray(pixels[:, :, ::-1])
        return self.augmentation.view(pixels, self.rows(digests))

    def rows(self, digests: Sequence[str]) -> np.ndarray:
        """(N, len(COLUMNS)): what is drawn for each image, unless the view is the mirror image."""
        return np.stack([row_for(self.number, digest) for digest in digests])
