"""Image size, depth of fine-tuning and epochs, by --recipe, where they were left open."""

from dataclasses import dataclass, replace

from spectacles.core.config import ModelConfig, TrainConfig
from spectacles.core.errors import UserError
from spectacles.models import backbones


@dataclass(frozen=True)
class Recipe:
    size: float
    """Side of the images, relative to those the backbone was pretrained on."""
    depth: float
    """Share of the backbone's layer groups that are trained, counted from the head."""
    epochs: int
    epoch_share: float = 1.0
    """Share of the training images that an epoch takes."""
    progressive_size: bool = False
    """Whether pictures are smaller first, where the backbone takes them."""


RECIPES = {
    "fast": Recipe(0.57, 0.5, 3, 0.5, progressive_size=True),
    "default": Recipe(0.71, 0.5, 4, 0.5, progressive_size=True),
    "thorough": Recipe(1.0, 1.0, 10),
}
"""At 224 px: 128, 160 and 224 px. docs/benchmarks.md has the time and the accuracy of each."""
SCRATCH_EPOCHS = {"fast": 5, "default": 10, "thorough": 30}
"""From random weights, always with full image size and depth."""
STEP = 32
"""Image sides are multiples of it, so that the strides of the common backbones divide them."""
SMALLEST = 0.7
"""Share of --image_size that --progressive_size starts with."""
LR, SCRATCH_LR = 3e-4, 3e-3


def resolve(config: TrainConfig, recipe: Recipe | None = None) -> TrainConfig:
    """The config with everything decided that depends on the backbone and the recipe (--recipe, unless one is given),
    but not on data or machine. Raises UserError for an unknown backbone, and for settings that do not work together."""
    native, scratch = backbones.native_size(config.backbone), config.no_pretrained
    if recipe is None:
        recipe = Recipe(1.0, 1.0, SCRATCH_EPOCHS[config.recipe]) if scratch else RECIPES[config.recipe]
    if config.progressive_size and backbones.fixed_size(config.backbone):
        raise UserError(f"--progressive_size does not work with {config.backbone}: it takes images of one size only.")
    size = config.image_size or backbones.closest_size(config.backbone, round_size(recipe.size * native))
    epochs = config.epochs or recipe.epochs
    grows = not scratch and recipe.progressive_size and _takes_smaller(config, size, epochs)
    return replace(
        config,
        image_size=size,
        epochs=epochs,
        epoch_share=config.epoch_share or (recipe.epoch_share if config.images_can_be_weighed else 1.0),
        progressive_size=grows if config.progressive_size is None else config.progressive_size,
        unfreeze=config.unfreeze or ("all" if scratch else unfreeze_share(config.backbone, recipe.depth)),
        lr=config.lr or (SCRATCH_LR if scratch else LR),
        batch_norm=config.batch_norm if config.batch_norm != "auto" else "train" if scratch else "fold",
        fine_tune="always" if (scratch or config.teacher) and config.fine_tune == "auto" else config.fine_tune,
    )


def _takes_smaller(config: TrainConfig, size: int, epochs: int) -> bool:
    """Whether the backbone takes all sizes that --progressive_size would use."""
    grown = replace(config, image_size=size, progressive_size=not backbones.fixed_size(config.backbone))
    sides = {side(grown, epoch, epochs) for epoch in range(epochs)}
    return bool(grown.progressive_size) and all(backbones.closest_size(config.backbone, each) == each for each in sides)


def image_size(config: ModelConfig) -> int:
    """The side by --image_size, or else by the recipe. Raises UserError for an unknown backbone."""
    share = 1.0 if config.no_pretrained else RECIPES[config.recipe].size
    wanted = round_size(share * backbones.native_size(config.backbone))
    return config.image_size or backbones.closest_size(config.backbone, wanted)


def round_size(side: float) -> int:
    return max(STEP, round(side / STEP) * STEP)


def side(config: TrainConfig, epoch: int, epochs: int) -> int:
    """Side of the images in `epoch` (0-based) of `epochs` of fine-tuning."""
    assert config.image_size is not None
    if not config.progressive_size or epoch + 1 >= epochs:
        return config.image_size
    share = SMALLEST + (1 - SMALLEST) * epoch / (epochs - 1)
    return min(config.image_size, round_size(share * config.image_size))


def unfreeze_share(backbone: str, share: float) -> str:
    """--unfreeze for a share of the backbone's layer groups."""
    return "all" if share >= 1 else f"last:{max(1, round(share * backbones.count_layer_groups(backbone)))}"
