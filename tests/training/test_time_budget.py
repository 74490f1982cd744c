"""A time budget buys the best plan that fits, and never touches what the person chose."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spectacles.core.config import TrainConfig, parse_duration
from spectacles.core.errors import UserError
from spectacles.data import preprocessing
from spectacles.models import backbones
from spectacles.models.classifier import Classifier
from spectacles.training import time_budget
from spectacles.training.time_budget import Rates

CPU = torch.device("cpu")
DECODING = 0.001


def rates_of(config: TrainConfig, *_: object) -> Rates:
    """A machine whose time goes with the pixels, and three times so long where all layers learn."""
    each = 1e-6 * config.image_size**2
    return Rates(training=each * (3 if config.unfreeze == "all" else 1), inference=each / 3)


def choose(config: TrainConfig, images: int = 1000) -> tuple[TrainConfig, list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_budget, "measure", rates_of)
        return time_budget.choose(config, images, images // 5, lambda _: None, DECODING, CPU)


def cost(config: TrainConfig) -> float:
    return time_budget.estimate(config, rates_of(config), DECODING, 1000, 200)


@given(st.integers(30, 20_000))
def test_the_plan_fits_and_the_next_better_one_would_not(allowed: int) -> None:
    plan, reasons = choose(TrainConfig(time_budget=f"{allowed}s"))
    assert cost(plan) <= time_budget.PLANNED_SHARE * allowed + 0.5
    rungs = [time_budget.with_recipe(TrainConfig(), rung) for rung in time_budget.LADDER]
    place = [(r.image_size, r.epochs, r.unfreeze, r.fine_tune) for r in rungs].index(
        (plan.image_size, plan.epochs, plan.unfreeze, plan.fine_tune)
    )
    assert place + 1 == len(rungs) or cost(rungs[place + 1]) > time_budget.PLANNED_SHARE * allowed - 0.5
    assert f"{plan.image_size} px" in reasons[-1]


def test_what_the_person_chose_stays() -> None:
    given_flags = TrainConfig(time_budget="1h", image_size=96, unfreeze="last:1", epochs=2)
    plan, _ = choose(given_flags)
    assert (plan.image_size, plan.unfreeze, plan.epochs) == (96, "last:1", 2)


def test_a_budget_below_every_plan_takes_the_cheapest_and_warns() -> None:
    plan, reasons = choose(TrainConfig(time_budget="1s"))
    assert plan.fine_tune == "never"
    assert "may be more than the budget" in reasons[-1]


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45), (" 2 m ", 120)])
def test_times_are_read(text: str, value: float) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize("text", ["", "ten", "-5m", "0s", "5d", "1h30m"])
def test_what_is_no_time_is_rejected_by_name(text: str) -> None:
    with pytest.raises(UserError, match="--time_budget"):
        TrainConfig(time_budget=text)


def test_measuring_gives_times_and_leaves_the_network_alone() -> None:
    config = TrainConfig(
        backbone="simple_cnn", no_pretrained=True, image_size=32, epochs=1, unfreeze="all", batch_norm="fold"
    )
    classifier = Classifier(backbones.build("simple_cnn", 3, 32), 128, 2, 0.5)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    rates = time_budget.measure(config, classifier, CPU)
    assert rates.inference > 0
    assert rates.training > 0
    after = classifier.state_dict()
    assert after.keys() == before.keys()
    assert all(value.equal(after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_decoding_is_measured_on_some_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    looked_at: list[Path] = []
    real = preprocessing.decode_one
    monkeypatch.setattr(preprocessing, "decode_one", lambda path, *rest: looked_at.append(path) or real(path, *rest))
    seconds_a_file = time_budget.decoding_seconds([str(tmp_path / "photo.png")] * 1000, TrainConfig(image_size=32))
    assert seconds_a_file > 0
    assert 1 <= len(looked_at) <= time_budget.FILES_TIMED
