"""What a training plans, and which settings it rejects."""

import math

import pytest

import train
from spectacles.core.config import TrainConfig
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir
from spectacles.models import recipes
from spectacles.training.trainer import planned_phases


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 4}, [("head", 1), ("fine_tune", 4)]),
        ({"epochs": 4, "no_pretrained": True}, [("fine_tune", 4)]),
        ({"epochs": 4, "head_epochs": 3}, [("head", 1), ("fine_tune", 4)]),
        ({"head": "sgd", "epochs": 10}, [("head", 2), ("fine_tune", 8)]),
        ({"head": "sgd", "epochs": 4}, [("head", 1), ("fine_tune", 3)]),
        ({"head": "sgd", "epochs": 1}, [("head", 1)]),
        ({"head": "sgd", "epochs": 10, "no_pretrained": True}, [("fine_tune", 10)]),
        ({"head": "sgd", "epochs": 10, "head_epochs": 0}, [("fine_tune", 10)]),
        ({"head": "sgd", "epochs": 10, "head_epochs": 3}, [("head", 3), ("fine_tune", 7)]),
        ({"head": "sgd", "epochs": 10, "head_epochs": 99}, [("head", 10)]),
        ({"head": "sgd", "epochs": 10, "head_epochs": 3, "no_pretrained": True}, [("head", 3), ("fine_tune", 7)]),
    ],
)
def test_a_linear_probe_is_one_epoch_more_and_gradient_descent_shares_them(settings, expected):
    assert planned_phases(recipes.resolve(TrainConfig(**settings))) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("image_size", 15),
        ("lr", 0.0),
        ("lr", math.nan),
        ("head_lr", 0.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.5),
        ("head_epochs", -1),
        ("views", 0),
        ("patience", 0),
        ("num_workers", -1),
        ("dropout", 1.5),
        ("crop_scale", 0.0),
        ("crop_scale", 1.5),
        ("zoom_out", 1.5),
        ("rotation", 181.0),
        ("color_jitter", -0.1),
        ("grayscale", -0.1),
        ("blur", 1.1),
        ("jpeg", 1.1),
        ("randaugment", 31),
        ("random_erasing", 2.0),
        ("mixup", -1.0),
        ("cutmix", -1.0),
        ("label_smoothing", 1.5),
        ("weight_decay", -1.0),
        ("clip_grad_norm", -1.0),
        ("warmup_epochs", -1.0),
        ("pixel_cache_gb", -1.0),
        ("cache_gb", -1.0),
        ("unfreeze", "last"),
        ("unfreeze", "last:0"),
        ("time_budget", "soon"),
    ],
)
def test_a_setting_out_of_range_is_named(tmp_path, field, value):
    with pytest.raises(UserError, match=f"--{field}"):
        train.run(TrainConfig(**{field: value}), RunDir(tmp_path, "train"))
