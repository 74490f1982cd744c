"""Gradient descent step by step: arithmetic, micro-batches, values that are not finite, resuming in an epoch."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from spectacles.core.config import TrainConfig
from spectacles.core.errors import UserError
from spectacles.training import train_loop
from spectacles.training.batches import Batch, StepSettings
from spectacles.training.epoch_progress import NotFinite, Position
from spectacles.training.train_loop import (
    EpochPlan,
    Hooks,
    Learner,
    balanced_weights,
    make_optimizer,
    training_dtype,
)

CPU = torch.device("cpu")


def settings_for(num_classes: int = 7, weights: list[float] | None = None, **config: object) -> StepSettings:
    on_device = None if weights is None else torch.tensor(weights)
    return StepSettings(TrainConfig(device="cpu", **config), CPU, num_classes, on_device)


def batches_of(seed: int, *sizes: int, weighted: bool = False) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randn(size, 4, generator=generator),
            torch.randint(0, 3, (size,), generator=generator),
            torch.rand(size, generator=generator) if weighted else None,
        )
        for size in sizes
    ]


def train_epoch(
    network: nn.Module,
    batches: list[Batch],
    settings: StepSettings,
    epoch: int = 1,
    rate: float = 1.0,
) -> float:
    """With plain gradient descent at a base rate of 0.1."""
    optimizer = torch.optim.SGD([{"params": list(network.parameters()), "lr": 9.9, "base_lr": 0.1}])
    learner = Learner(network, optimizer, torch.amp.GradScaler(enabled=False), settings)
    plan = EpochPlan(epoch, [len(batch.targets) for batch in batches], lambda step: rate / (step + 1))
    position = Position(micro_batches=settings.config.grad_accum_steps)
    return train_loop.train_epoch(learner, batches, plan, position)


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 0.25, 3.0]])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_epoch_is_gradient_descent_on_the_cross_entropy(clip, smoothing, weights, weighted):
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    weight, bias = (tensor.detach().clone().double() for tensor in network.parameters())
    batches = batches_of(1, 8, 8, 3, weighted=weighted)
    settings = settings_for(3, weights, clip_grad_norm=clip, label_smoothing=smoothing)
    loss = train_epoch(network, batches, settings)

    total = 0.0
    class_weights = torch.tensor(weights or [1.0] * 3).double()
    for step, (inputs, labels, of_images, _) in enumerate(batches):
        inputs = inputs.double()
        probabilities = torch.softmax(inputs @ weight.T + bias, dim=1)
        hot = nn.functional.one_hot(labels, 3).double()
        scale = 1 / class_weights[labels].sum()
        targets = ((1 - smoothing) * hot + smoothing / 3) * class_weights
        targets = targets if of_images is None else targets * of_images[:, None].double()
        total += float(-(targets * probabilities.log()).sum() * scale) * len(inputs)
        gradient = (targets.sum(1, keepdim=True) * probabilities - targets) * scale
        by_weight, by_bias = gradient.T @ inputs, gradient.sum(0)
        norm = float(torch.cat([by_weight.flatten(), by_bias]).norm())
        shrink = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        weight = weight - 0.1 / (step + 1) * shrink * by_weight
        bias = bias - 0.1 / (step + 1) * shrink * by_bias
    np.testing.assert_allclose(network.weight.detach(), weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(network.bias.detach(), bias, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(total / 19, rel=1e-5)


def test_dropout_is_a_function_of_seed_and_epoch():
    def loss(seed: int, epoch: int) -> float:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
        torch.rand(seed + epoch)  # where the generator stands must not matter
        return train_epoch(network, batches_of(1, 8, 8), settings_for(3, seed=seed), epoch)

    assert loss(0, 1) == loss(0, 1)
    assert len({loss(0, 1), loss(0, 2), loss(1, 1)}) == 3


@pytest.mark.parametrize("flags", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixing_is_a_function_of_seed_epoch_and_step_and_leaves_odd_batches_alone(flags):
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch(torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for size in (4, 4, 3)
    ]
    kept = [batch.inputs.clone() for batch in batches]

    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = nn.Linear(3 * 64, 3), []

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen.append(images.clone())
            return self.layer(images.flatten(1))

    def seen(seed: int, epoch: int) -> list[torch.Tensor]:
        network = Recorder()
        fresh = [Batch(images.clone(), batch.targets) for images, batch in zip(kept, batches, strict=True)]
        train_epoch(network, fresh, settings_for(3, seed=seed, **flags), epoch)
        return network.seen

    first = seen(0, 1)
    assert all(torch.equal(one, other) for one, other in zip(first, seen(0, 1), strict=True))
    assert torch.equal(first[2], kept[2])
    changed = [not torch.equal(one, other) for one, other in zip(first[:2], kept[:2], strict=True)]
    assert any(changed)
    assert not all(torch.equal(one, other) for one, other in zip(first, seen(0, 2), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(first, seen(1, 1), strict=True))


def test_frozen_parameters_get_no_gradients_and_do_not_change():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    train_epoch(network, batches_of(1, 8), settings_for(3))
    assert torch.equal(network[0].weight, before) and network[0].weight.grad is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_no_weights(value):
    network = nn.Linear(4, 3)
    nn.init.constant_(network.bias, value)
    before = network.weight.clone()
    with pytest.raises(NotFinite, match="the loss became"):
        train_epoch(network, batches_of(1, 4), settings_for(3))
    assert torch.equal(network.weight, before)


class Steep(torch.autograd.Function):
    """x, with a gradient that overflows."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_gradients_that_are_not_finite_change_no_weights(clip):
    class Network(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return Steep.apply(super().forward(inputs))

    network = Network(4, 3)
    before = network.weight.clone()
    with pytest.raises(NotFinite, match="the gradients are not finite"):
        train_epoch(network, batches_of(1, 4), settings_for(3, clip_grad_norm=clip))
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 0.25, 3.0]])
@given(micro_batches=st.integers(2, 9))
def test_micro_batches_give_the_same_step_as_the_whole_batch(weights, smoothing, micro_batches):
    def learnt(steps: int) -> tuple[list[torch.Tensor], float]:
        torch.manual_seed(0)
        network = nn.Linear(4, 3)
        settings = settings_for(3, weights, label_smoothing=smoothing, grad_accum_steps=steps)
        loss = train_epoch(network, batches_of(1, 8, 8, 3), settings)
        return [parameter.detach() for parameter in network.parameters()], loss

    (whole, loss), (parted, parted_loss) = learnt(1), learnt(micro_batches)
    for one, other in zip(whole, parted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert parted_loss == pytest.approx(loss, rel=1e-5)


def test_batch_norm_that_learns_sees_at_least_two_images_of_a_small_last_batch():
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    sizes = []
    network[0].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    settings = settings_for(3, batch_norm="train", batch_size=8, grad_accum_steps=4)
    train_epoch(network, batches_of(1, 8, 5, 3, 2), settings)
    assert sizes == [2, 2, 2, 2, 3, 2, 3, 2]


def out_of_memory(kind: str) -> Exception:
    if kind == "cuda":
        return torch.OutOfMemoryError("CUDA out of memory.")
    return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


class Small(nn.Linear):
    """Has memory for `room` images at once, from call number `since` on."""

    def __init__(self, room: int, kind: str, since: int = 0) -> None:
        torch.manual_seed(0)
        super().__init__(4, 3)
        self.room, self.kind, self.since, self.sizes = room, kind, since, []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(inputs))
        if len(inputs) > self.room and len(self.sizes) > self.since:
            raise out_of_memory(self.kind)
        return super().forward(inputs)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_first_batch_that_does_not_fit_the_memory_is_halved(kind, caplog):
    caplog.set_level("INFO", "spectacles")
    small, whole = Small(2, kind), Small(99, kind)
    for network in (small, whole):
        train_epoch(network, batches_of(1, 8, 8), settings_for(3))
    assert small.sizes == [8, 4, *[2] * 8], "the second batch is not tried whole again"
    torch.testing.assert_close(small.weight, whole.weight)
    assert "split into 4 micro-batches" in caplog.text


@pytest.mark.parametrize(("room", "since"), [(0, 0), (7, 1)])
def test_where_halving_does_not_help_or_comes_too_late_the_error_names_the_remedy(room, since):
    with pytest.raises(UserError, match=r"out of memory: .* --grad_accum_steps"):
        train_epoch(Small(room, "cuda", since), batches_of(1, 8, 8), settings_for(3))


@pytest.mark.parametrize("stop", range(1, 5))
def test_an_epoch_resumes_after_any_step_as_if_it_had_not_stopped(stop):
    settings = settings_for(3, mixup=0.0, dropout=0.5)
    batches = batches_of(1, 8, 8, 8, 8, 3)

    class Stop(Exception):
        pass

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
        return network, torch.optim.AdamW([{"params": list(network.parameters()), "lr": 9.9, "base_lr": 0.1}])

    def go(network: nn.Module, optimizer: torch.optim.Optimizer, position: Position, last: int) -> float:
        def after_step() -> None:
            if position.step == last:
                raise Stop

        learner = Learner(network, optimizer, torch.amp.GradScaler(enabled=False), settings)
        plan = EpochPlan(1, [8, 8, 8, 8, 3], lambda step: 1 / (step + 1))
        return train_loop.train_epoch(learner, batches[position.step :], plan, position, Hooks(after_step))

    whole, optimizer = begin()
    expected = go(whole, optimizer, Position(), 99)
    network, optimizer = begin()
    position = Position()
    with pytest.raises(Stop):
        go(network, optimizer, position, stop)
    torch.rand(7)  # where the generator stands must not matter
    assert go(network, optimizer, Position(**asdict(position)), 99) == expected
    for one, other in zip(whole.parameters(), network.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("optimizer", "expected"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_every_parameter_group_keeps_its_base_rate(optimizer, expected):
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": rate, "weight_decay": 0.0} for rate in (0.1, 0.02)]
    made = make_optimizer(TrainConfig(optimizer=optimizer), groups, CPU)
    assert type(made) is expected
    assert [group["base_lr"] for group in made.param_groups] == [0.1, 0.02]


@pytest.mark.parametrize("mixed_precision", ["auto", "off", "bf16", "fp16"])
def test_the_cpu_trains_in_float32(mixed_precision):
    assert training_dtype(TrainConfig(mixed_precision=mixed_precision), CPU) == torch.float32


@pytest.mark.parametrize(("ampere", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_card_that_only_emulates_bf16_trains_in_fp16(ampere, expected, monkeypatch):
    def supported(including_emulation: bool = True) -> bool:
        return ampere or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert training_dtype(TrainConfig(), torch.device("cuda")) == expected


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_balanced_weights_equal_those_of_scikit_learn(labels):
    present = np.unique(labels)
    weights = balanced_weights(np.searchsorted(present, labels), len(present))
    expected = compute_class_weight("balanced", classes=present, y=np.array(labels))
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_a_class_without_images_has_weight_zero():
    np.testing.assert_allclose(balanced_weights(np.array([0, 0, 2]), 3), [0.5, 0, 1])
