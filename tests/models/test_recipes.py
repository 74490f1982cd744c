"""A recipe fills in what the person left open, and nothing else."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectacles.core.config import TrainConfig
from spectacles.core.errors import UserError
from spectacles.models import recipes
from spectacles.models.recipes import Recipe

OPEN = ("image_size", "epochs", "epoch_share", "progressive_size", "unfreeze", "lr", "batch_norm", "fine_tune")
"""What a recipe may decide."""
BACKBONES = ["efficientnet_lite0", "resnet18", "mobilenet_v3", "efficientnet_b4", "simple_cnn", "vit_tiny_patch16_224"]

chosen = st.fixed_dictionaries(
    {"recipe": st.sampled_from(list(recipes.RECIPES)), "backbone": st.sampled_from(BACKBONES)},
    optional={
        "image_size": st.sampled_from([100, 224]),
        "epochs": st.integers(1, 50),
        "unfreeze": st.sampled_from(["all", "progressive", "last:2"]),
        "lr": st.floats(1e-5, 1),
        "batch_norm": st.sampled_from(["fold", "eval", "train"]),
        "fine_tune": st.sampled_from(["always", "never"]),
        "no_pretrained": st.booleans(),
        "seed": st.integers(0, 99),
        "head": st.sampled_from(["linear_probe", "sgd"]),
    },
)


@settings(max_examples=60)
@given(chosen)
def test_what_the_person_gave_stays_and_all_the_rest_is_decided(flags):
    config = recipes.resolve(TrainConfig(**flags))
    assert {name: getattr(config, name) for name in flags} == flags
    assert all(getattr(config, name) not in (None, "auto") for name in OPEN if name != "fine_tune")
    untouched = {field.name for field in fields(TrainConfig)} - {*flags, *OPEN}
    assert all(getattr(config, name) == getattr(TrainConfig(), name) for name in untouched)
    assert recipes.resolve(config) == config


@pytest.mark.parametrize(
    ("recipe", "size", "epochs", "share", "unfreeze"),
    [("fast", 128, 3, 0.5, "last:2"), ("default", 160, 4, 0.5, "last:2"), ("thorough", 224, 10, 1, "all")],
)
def test_the_recipes_of_a_common_backbone(recipe, size, epochs, share, unfreeze):
    config = recipes.resolve(TrainConfig(backbone="resnet18", recipe=recipe))
    assert (config.image_size, config.epochs, config.unfreeze) == (size, epochs, unfreeze)
    assert config.epoch_share == share and config.progressive_size is (share < 1)
    assert (config.lr, config.batch_norm, config.fine_tune) == (recipes.LR, "fold", "auto")


@pytest.mark.parametrize("flags", [{"mixup": 0.2}, {"cutmix": 1.0}, {"head": "sgd"}, {"no_pretrained": True}])
def test_epochs_take_all_images_where_none_can_be_weighed(flags):
    assert recipes.resolve(TrainConfig(**flags)).epoch_share == 1
    with pytest.raises(UserError, match="leave --epoch_share out"):
        TrainConfig(epoch_share=0.5, **flags)


@given(st.sampled_from(BACKBONES), st.floats(0.05, 1), st.floats(0.05, 1), st.integers(1, 40))
def test_another_recipe_can_be_given(backbone, size, depth, epochs):
    config = recipes.resolve(TrainConfig(backbone=backbone, recipe="thorough"), Recipe(size, depth, epochs))
    assert config.epochs == epochs
    assert config.image_size % recipes.STEP == 0 and config.image_size > 0
    if config.unfreeze == "all":
        assert depth == 1
    else:
        assert int(config.unfreeze.removeprefix("last:")) >= 1


@given(st.floats(1, 3000))
def test_sides_are_the_nearest_multiple_of_32_and_never_nothing(side):
    rounded = recipes.round_size(side)
    assert rounded % 32 == 0 and rounded >= 32
    assert abs(rounded - side) <= 16 or (rounded == 32 and side < 32)


@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize(("backbone", "size"), [("resnet18", 224), ("simple_cnn", 64), ("vit_tiny_patch16_224", 224)])
def test_from_random_weights_all_layers_learn_at_full_size(recipe, backbone, size):
    config = recipes.resolve(TrainConfig(backbone=backbone, recipe=recipe, no_pretrained=True))
    assert (config.image_size, config.unfreeze, config.batch_norm) == (size, "all", "train")
    assert (config.fine_tune, config.lr) == ("always", recipes.SCRATCH_LR)
    assert config.epochs == recipes.SCRATCH_EPOCHS[recipe]


@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize(
    ("backbone", "size"),
    [("vit_tiny_patch16_224", 224), ("vit_base_patch16_384", 384), ("swin_tiny_patch4_window7_224", 224)],
)
def test_transformers_keep_their_size(recipe, backbone, size):
    config = recipes.resolve(TrainConfig(backbone=backbone, recipe=recipe))
    assert (config.image_size, config.progressive_size) == (size, False)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "simple_cnn"])
def test_pictures_cannot_grow_for_a_backbone_of_one_size(backbone):
    config = TrainConfig(backbone=backbone, no_pretrained=True, progressive_size=True)
    with pytest.raises(UserError, match=f"--progressive_size does not work with {backbone}"):
        recipes.resolve(config)


def test_an_unknown_backbone_is_named():
    with pytest.raises(UserError, match="--backbone resnet9000"):
        recipes.resolve(TrainConfig(backbone="resnet9000"))


def test_pictures_grow_in_equal_steps():
    config = TrainConfig(image_size=640, progressive_size=True)
    assert [recipes.side(config, epoch, 4) for epoch in range(4)] == [448, 512, 576, 640]


@given(st.integers(16, 600), st.integers(1, 40))
def test_pictures_grow_to_their_full_size_and_never_beyond(image_size, epochs):
    config = TrainConfig(image_size=image_size, progressive_size=True)
    sides = [recipes.side(config, epoch, epochs) for epoch in range(epochs)]
    assert sides == sorted(sides)
    assert sides[-1] == image_size
    assert all(side % 32 == 0 or side == image_size for side in sides)
    assert abs(sides[0] - 0.7 * image_size) <= 16 or epochs == 1 or image_size <= 32
    assert {recipes.side(replace(config, progressive_size=False), epoch, epochs) for epoch in range(epochs)} == {
        image_size
    }
