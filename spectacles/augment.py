"""Random changes to training images, drawn from torch's generator only, so that a seed decides all of them."""

from collections.abc import Callable

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from spectacles.config import AugmentConfig
from spectacles.preprocess import Preprocessing

Augmentation = Callable[[Image.Image], torch.Tensor]


def build(config: AugmentConfig, preprocessing: Preprocessing) -> Augmentation:
    """RGB image -> float32 (C, image_size, image_size); normalisation is the preprocessing's own."""
    size = preprocessing.image_size
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if config.crop_scale < 1:
        if preprocessing.resize == "pad":  # a crop of the padded picture, so that training sees borders too
            steps.append(preprocessing.fit)
        ratio = (0.85, 1.18) if preprocessing.resize != "squash" else None
        steps.append(_RandomCrop(size, config.crop_scale, ratio))
    else:
        steps.append(preprocessing.fit)
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.color_jitter:
        steps.append(v2.ColorJitter(*[config.color_jitter] * 3))
    if config.randaugment:
        steps.append(v2.RandAugment(num_ops=2, magnitude=config.randaugment))
    erase = v2.RandomErasing(p=config.random_erasing) if config.random_erasing else None

    def augment(image: Image.Image) -> torch.Tensor:
        for step in steps:
            image = step(image)
        tensor = preprocessing.to_tensor(image)
        return erase(tensor) if erase else tensor  # type: ignore[no-any-return]

    return augment


class _RandomCrop:
    """Random resized crop whose aspect ratio varies around the target's own (squash: around the photo's)."""

    def __init__(self, size: int, smallest: float, ratio: tuple[float, float] | None) -> None:
        self.size, self.smallest, self.ratio = size, smallest, ratio

    def __call__(self, image: Image.Image) -> Image.Image:
        own = image.width / image.height
        ratio = self.ratio or (own * 0.85, own * 1.18)
        crop = v2.RandomResizedCrop(
            self.size, scale=(self.smallest, 1.0), ratio=ratio, interpolation=InterpolationMode.BILINEAR
        )
        return crop(image)  # type: ignore[no-any-return]
