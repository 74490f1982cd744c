"""Feeds training: what a sample looks like depends on (seed, epoch, index) alone, never on workers or on timing."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from spectacles.augment import Augmentation
from spectacles.errors import UserError
from spectacles.images import ImageRefused, decode
from spectacles.preprocess import Preprocessing
from spectacles.runtime import derive_seed

Key = tuple[int, int]
"""(epoch, index): the sampler hands the epoch to the worker along with the index."""
Sample = tuple[torch.Tensor, int, int]


class ImageDataset(Dataset[Sample]):
    """Files with labels -> (float32 (C, H, W), label, index). Without augmentation: the bundle's preprocessing."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.paths, self.labels = list(paths), list(labels)
        self.preprocessing, self.augmentation, self.seed = preprocessing, augmentation, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        try:
            image = decode(Path(self.paths[index])).image
        except ImageRefused as error:
            raise UserError(
                f"{self.paths[index]} was readable when the data set was indexed and is not any more ({error}): "
                "restore it or run the dataset stage again."
            ) from error
        if self.augmentation is None:
            return self.preprocessing(image), self.labels[index], index
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the GPUs as well and so change dropout.
            torch.default_generator.manual_seed(derive_seed(self.seed, "augment", epoch, index))
            return self.augmentation(image), self.labels[index], index


class EpochSampler(Sampler[Key]):
    """All indices once, in an order that is a function of (seed, epoch); set `epoch` before each pass."""

    def __init__(self, size: int, seed: int, shuffle: bool) -> None:
        self.size, self.seed, self.shuffle, self.epoch = size, seed, shuffle, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Key]:
        if not self.shuffle:
            return iter([(self.epoch, index) for index in range(self.size)])
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.size, generator=generator).tolist()
        return iter([(self.epoch, index) for index in order])


class Loader(DataLoader[Sample]):
    """Gives a worker's UserError back as it was: torch wraps it into its traceback."""

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except UserError as error:
            text = str(error.with_traceback(None)).rpartition("UserError: ")[2].strip()
            raise UserError(text) from None


def make_loader(
    dataset: ImageDataset, batch_size: int, num_workers: int, seed: int = 0, shuffle: bool = False, pin: bool = False
) -> tuple[DataLoader[Sample], EpochSampler]:
    """A loader and the sampler whose `epoch` its caller sets. A last batch of one is dropped in training, because
    BatchNorm cannot normalise a single value; another permutation brings that image in the next epoch."""
    sampler = EpochSampler(len(dataset), seed, shuffle)
    lone_rest = shuffle and len(dataset) > batch_size and len(dataset) % batch_size == 1
    loader = Loader(
        dataset,
        batch_sampler=BatchSampler(sampler, batch_size, drop_last=lone_rest),  # type: ignore[arg-type]
        num_workers=num_workers,
        pin_memory=pin,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # its own: a loader must not draw from the generator that decides dropout
    )
    return loader, sampler
