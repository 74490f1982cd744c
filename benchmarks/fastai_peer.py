"""fastai's standard recipe: `vision_learner` and `fine_tune(3)` with its default head, augmentation and schedule.

`.venv-fastai/bin/python -m benchmarks.fastai_peer --splits splits.csv --seed 0 --output result.json`; its environment
is benchmarks/requirements-fastai.txt.
"""

import argparse
import sys

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks import common
from spectacles.models.pretrained import build_pretrained

try:
    from fastai.vision.all import (
        Callback,
        CategoryBlock,
        ColReader,
        ColSplitter,
        DataBlock,
        DataLoaders,
        ImageBlock,
        Learner,
        Normalize,
        Resize,
        TfmdDL,
        accuracy,
        aug_transforms,
        set_seed,
        vision_learner,
    )
except ImportError:
    print("error: fastai is not installed here: use the environment of requirements-fastai.txt.", file=sys.stderr)
    sys.exit(2)

EPOCHS = 3
FREEZE_EPOCHS = 1
"""fine_tune's default."""


class Curve(Callback):
    """Scores the test split after each epoch, with the clock stopped."""

    order = 90  # after fastai's own callbacks

    def __init__(self, clock: common.Clock, test: TfmdDL, targets: np.ndarray) -> None:
        self.clock, self.test, self.targets = clock, test, targets
        self.points, self.scores = [], {}

    def after_epoch(self) -> None:
        seconds = self.clock.seconds()
        with self.clock.stopped():
            self.scores = common.score(self.targets, predict(self.learn.model, self.test), self.learn.dls.c)
        self.points.append({"seconds": seconds, "accuracy": self.scores["accuracy"]})


def run(args: argparse.Namespace) -> None:
    table = common.read_splits(args.splits)
    set_seed(args.seed)
    loaders = make_loaders(table, args)
    learner = make_learner(loaders, args.image_size)
    _, targets = common.files_and_targets(table, "test")
    test = loaders.test_dl(table[table["split"] == "test"])
    curve = Curve(common.Clock(loaders.device), test, targets)
    with learner.no_bar():
        learner.fine_tune(EPOCHS, freeze_epochs=FREEZE_EPOCHS, cbs=curve)
    values = {
        **curve.scores,
        "train_seconds": curve.points[-1]["seconds"],
        "images_per_second": common.fine_tuning_rate(curve.points, FREEZE_EPOCHS, len(loaders.train_ds)),
        "curve": curve.points,
    }
    common.write_result(args, "fastai", table, values)


def make_loaders(table: pd.DataFrame, args: argparse.Namespace) -> DataLoaders:
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader("file"),
        get_y=ColReader("label"),
        splitter=ColSplitter("is_valid"),
        item_tfms=Resize(args.image_size),
        # vision_learner adds this normalisation itself where it fetches the weights itself.
        batch_tfms=[*aug_transforms(), Normalize.from_stats((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))],
    )
    seen = table[table["split"] != "test"]
    seen = seen.assign(is_valid=seen["split"] == "val")
    workers = common.workers(args.device)
    return block.dataloaders(seen, bs=common.BATCH_SIZE, num_workers=workers, device=torch.device(args.device))


def make_learner(loaders: DataLoaders, image_size: int) -> Learner:
    """Its own fetching of weights needs timm's hub; ours go into the same timm model."""
    learner = vision_learner(loaders, "tf_efficientnet_lite0", pretrained=False, metrics=accuracy)
    backbone = build_pretrained("efficientnet_lite0", 3, image_size, None)
    learner.model[0].model.load_state_dict(backbone.state_dict())
    return learner


@torch.no_grad()
def predict(model: nn.Module, test: TfmdDL) -> np.ndarray:
    """(N,) class indices. fastai sets the training mode again when the next epoch begins."""
    model.eval()
    return torch.cat([model(images).argmax(1).cpu() for (images,) in test]).numpy()


def main() -> None:
    with common.exit_codes():
        run(common.competitor_arguments(__doc__).parse_args())


if __name__ == "__main__":
    main()
