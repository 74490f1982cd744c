"""How much training spends where the person left it open: image size, depth of fine-tuning, epochs."""

from dataclasses import dataclass, replace

from spectacles.core.config import ModelConfig, TrainConfig
from spectacles.core.errors import UserError
from spectacles.models import backbones


@dataclass(frozen=True)
class Recipe:
    size: float
    """Side of the pictures as a share of what the backbone was trained with."""
    depth: float
    """Share of the backbone's layer groups that are trained, counted from the head."""
    epochs: int


RECIPES = {"fast": Recipe(0.57, 0.4, 3), "default": Recipe(0.71, 0.5, 5), "thorough": Recipe(1.0, 1.0, 10)}
"""At 224 px: 128, 160 and 224 px. What each costs and reaches is measured in the README."""
SCRATCH_EPOCHS = {"fast": 5, "default": 10, "thorough": 30}
"""From random weights, always at full size and depth."""
STEP = 32
"""Sides are multiples of it, so that every stride of the common backbones divides them."""
SMALLEST = 0.7
"""Of --image_size, where --progressive_size begins."""
LR, SCRATCH_LR = 3e-4, 3e-3


def resolve(config: TrainConfig, recipe: Recipe | None = None) -> TrainConfig:
    """The config with everything decided that depends on the backbone and the recipe (of --recipe, or another one) but
    not on data or machine. Raises UserError for an unknown backbone, and for settings that cannot work together."""
    native, scratch = backbones.native_size(config.backbone), config.no_pretrained
    if recipe is None:
        recipe = Recipe(1.0, 1.0, SCRATCH_EPOCHS[config.recipe]) if scratch else RECIPES[config.recipe]
    rigid = backbones.fixed_size(config.backbone) or config.backbone == "simple_cnn"
    if config.progressive_size and rigid:
        raise UserError(f"--progressive_size does not work with {config.backbone}: it takes pictures of one size only.")
    size = native if rigid else round_size(recipe.size * native)
    return replace(
        config,
        image_size=config.image_size or size,
        epochs=config.epochs or recipe.epochs,
        unfreeze=config.unfreeze or ("all" if scratch else depth(config.backbone, recipe.depth)),
        lr=config.lr or (SCRATCH_LR if scratch else LR),
        batch_norm=config.batch_norm if config.batch_norm != "auto" else "train" if scratch else "fold",
        fine_tune="always" if scratch and config.fine_tune == "auto" else config.fine_tune,
    )


def image_size(config: ModelConfig) -> int:
    """The side that --image_size, or else the recipe, gives. Raises UserError for an unknown backbone."""
    native = backbones.native_size(config.backbone)
    rigid = backbones.fixed_size(config.backbone) or config.backbone == "simple_cnn"
    size = 1.0 if config.no_pretrained else RECIPES[config.recipe].size
    return config.image_size or (native if rigid else round_size(size * native))


def round_size(side: float) -> int:
    return max(STEP, round(side / STEP) * STEP)


def side(config: TrainConfig, epoch: int, epochs: int) -> int:
    """Side of the pictures in `epoch` (0-based) of `epochs` of fine-tuning."""
    assert config.image_size is not None
    if not config.progressive_size or epoch + 1 >= epochs:
        return config.image_size
    share = SMALLEST + (1 - SMALLEST) * epoch / (epochs - 1)
    return min(config.image_size, round_size(share * config.image_size))


def depth(backbone: str, share: float) -> str:
    """--unfreeze for a share of the backbone's layer groups."""
    return "all" if share >= 1 else f"last:{max(1, round(share * backbones.count_layer_groups(backbone)))}"
