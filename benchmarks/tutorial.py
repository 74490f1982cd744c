"""The loop of a typical transfer-learning tutorial: 2 epochs with a frozen backbone, then 3 of all layers.

`python -m benchmarks.tutorial --splits splits.csv --seed 0 --output result.json`
Plain torch: NCHW, eager, Adam, no scheduler, no allocator settings. Validation accuracy is printed after each epoch, as
in tutorials, and selects nothing.
"""

import argparse

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks import common
from spectacles.models.pretrained import build_pretrained

PHASES = (("head", 2, 1e-3), ("all", 3, 1e-4))
"""(what learns, epochs, learning rate)."""
NORMALIZE = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Photos(Dataset):
    """Files and class indices -> (float32 (3, S, S), class index)."""

    def __init__(self, files: list[str], targets: np.ndarray, transform: transforms.Compose) -> None:
        self.files, self.targets, self.transform = files, targets, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), int(self.targets[index])


def run(args: argparse.Namespace) -> None:
    table = common.read_splits(args.splits)
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    train, val, test = (make_loader(table, split, args) for split in common.SPLITS)
    num_classes = table["label"].nunique()
    backbone = build_pretrained("efficientnet_lite0", 3, args.image_size, None)
    model = nn.Sequential(backbone, nn.Linear(1280, num_classes)).to(device)
    clock, curve = common.Clock(device), []
    for phase, epochs, lr in PHASES:
        backbone.requires_grad_(phase == "all")
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
        for epoch in range(epochs):
            loss = train_epoch(model, train, optimizer, device)
            scores = common.score(*predict(model, val, device), num_classes)
            print(f"{phase} {epoch + 1}/{epochs}: loss {loss:.4f}, val accuracy {scores['accuracy']:.4f}", flush=True)
            seconds = clock.seconds()
            with clock.stopped():
                scores = common.score(*predict(model, test, device), num_classes)
                curve.append({"seconds": seconds, "accuracy": scores["accuracy"]})
    values = {
        **scores,
        "train_seconds": curve[-1]["seconds"],
        "images_per_second": common.fine_tuning_rate(curve, PHASES[0][1], len(train.dataset)),
        "curve": curve,
    }
    common.write_result(args, "tutorial", table, values)


def make_loader(table: pd.DataFrame, split: str, args: argparse.Namespace) -> DataLoader:
    size = args.image_size
    if split == "train":
        steps = [transforms.RandomResizedCrop(size, scale=(0.7, 1.0)), transforms.RandomHorizontalFlip()]
    else:
        steps = [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)]
    transform = transforms.Compose([*steps, transforms.ToTensor(), NORMALIZE])
    photos = Photos(*common.files_and_targets(table, split), transform)
    workers = common.workers(args.device)
    return DataLoader(photos, batch_size=common.BATCH_SIZE, shuffle=split == "train", num_workers=workers)


def train_epoch(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    model.train()
    total = 0.0
    for images, targets in loader:
        images, targets = images.to(device), targets.to(device)
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(images)
    return total / len(loader.dataset)


@torch.no_grad()
def predict(model: nn.Module, loader: DataLoader, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """(targets (N,), predicted (N,))."""
    model.eval()
    pairs = [(targets, model(images.to(device)).argmax(1).cpu()) for images, targets in loader]
    targets, predicted = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    return targets, predicted


def main() -> None:
    with common.exit_codes():
        run(common.competitor_arguments(__doc__).parse_args())


if __name__ == "__main__":
    main()
