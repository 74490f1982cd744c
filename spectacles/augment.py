"""Random changes to training images, drawn from torch's generator only, so that a seed decides all of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from spectacles.config import AugmentConfig
from spectacles.preprocess import Preprocessing

ImageStep = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Augmentation:
    """RGB image -> float32 (C, image_size, image_size). An object, because worker processes receive it pickled."""

    steps: tuple[ImageStep, ...]
    preprocessing: Preprocessing
    erase: Callable[[torch.Tensor], torch.Tensor] | None

    def __call__(self, image: Image.Image) -> torch.Tensor:
        for step in self.steps:
            image = step(image)
        tensor = self.preprocessing.to_tensor(image)
        return self.erase(tensor) if self.erase else tensor


def build(config: AugmentConfig, preprocessing: Preprocessing) -> Augmentation:
    """What the flags ask for; normalisation is the preprocessing's own."""
    steps: list[ImageStep] = []
    if config.crop_scale == 1 or preprocessing.resize == "pad":  # crops of a padded picture: training sees borders too
        steps.append(preprocessing.fit)
    if config.crop_scale < 1:
        steps.append(RandomCrop(preprocessing.image_size, config.crop_scale, preprocessing.resize == "squash"))
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.color_jitter:
        steps.append(v2.ColorJitter(*[config.color_jitter] * 3))
    if config.randaugment:
        steps.append(v2.RandAugment(num_ops=2, magnitude=config.randaugment))
    erase = v2.RandomErasing(p=config.random_erasing) if config.random_erasing else None
    return Augmentation(tuple(steps), preprocessing, erase)


@dataclass(frozen=True)
class RandomCrop:
    """Random resized crop (Szegedy et al. 2014) of at least `smallest` of the area.

    Its aspect ratio varies by 18 % around the input's square or, where photos are squashed, around the photo's own.
    """

    size: int
    smallest: float
    squash: bool

    def __call__(self, image: Image.Image) -> Image.Image:
        own = image.width / image.height if self.squash else 1.0
        crop = v2.RandomResizedCrop(
            self.size,
            scale=(self.smallest, 1.0),
            ratio=(own / 1.18, own * 1.18),
            interpolation=InterpolationMode.BILINEAR,
        )
        return crop(image)  # type: ignore[no-any-return]
