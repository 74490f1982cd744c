"""Who is who among several processes, and how long they wait, in simulated environments."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from spectacles.core import distributed
from spectacles.core.errors import UserError
from spectacles.training import collectives
from spectacles.training.batches import loss_share, own_part

CUDA = torch.device("cuda")


@pytest.fixture
def second_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "first"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_an_address_alone_is_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "first")
    assert (distributed.world_size(), distributed.rank(), distributed.local_world_size()) == (1, 0, 1)


@pytest.mark.parametrize(("variable", "ask"), [("RANK", distributed.rank), ("LOCAL_RANK", distributed.local_rank)])
def test_a_process_that_does_not_know_which_one_it_is_names_the_remedy(
    second_of_four: None, variable: str, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask() == 1
    for value, problem in (("first", "is 'first'"), (None, "is not set")):
        monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable)
        with pytest.raises(UserError, match=f" {variable} {problem}: start them with torchrun"):
            ask()


def test_more_processes_than_cards_is_an_error_with_the_number_of_cards(
    second_of_four: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"started 2 processes .* has 1 CUDA GPUs: use --nproc_per_node 1"):
        collectives.process_device(CUDA)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert collectives.process_device(CUDA) == torch.device("cuda", 1) and chosen == [torch.device("cuda", 1)]
    assert collectives.process_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda:0 is one GPU"):
        collectives.process_device(torch.device("cuda", 0))


@pytest.mark.parametrize(("device", "backend"), [("cuda", "cpu:gloo,cuda:nccl"), ("cpu", "gloo")])
def test_only_the_wait_for_work_of_the_main_process_takes_hours(
    second_of_four: None, device: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[object, timedelta]] = []
    group = dist.ProcessGroup.__new__(dist.ProcessGroup)

    def begin(backend: str, timeout: timedelta) -> dist.ProcessGroup:
        begun.append((backend, timeout))
        return group

    monkeypatch.setattr(dist, "init_process_group", begin)
    monkeypatch.setattr(dist, "new_group", begin)
    monkeypatch.setattr(dist, "destroy_process_group", lambda group=None: None)
    with collectives.process_group(torch.device(device)), collectives.long_wait():
        pass
    (used, exchanges), (waiting, hours) = begun
    assert used == backend and exchanges <= timedelta(minutes=30)
    assert waiting == "gloo" and hours >= timedelta(hours=1)


def test_a_process_that_never_comes_is_one_sentence(second_of_four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(backend: str, timeout: timedelta) -> None:
        raise dist.DistStoreError("Timed out after 601 seconds waiting for clients. 1/4 clients joined.")

    monkeypatch.setattr(dist, "init_process_group", wait)
    with pytest.raises(UserError, match="has not answered"), collectives.process_group(torch.device("cpu")):
        pass


@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    processes=st.integers(2, 6),
    weights=st.none() | st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
)
def test_the_mean_of_weighed_losses_over_uneven_parts_is_that_of_the_whole_batch(
    labels: list[int], processes: int, weights: list[float] | None
) -> None:
    known, each = np.array(labels), None if weights is None else np.array(weights)
    losses = np.random.default_rng(0).random(len(known))
    image_weights = np.ones(len(known)) if each is None else each[known]
    parts, seen = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_ADDR", "first")
        patch.setenv("WORLD_SIZE", str(processes))
        for number in range(processes):
            patch.setenv("RANK", str(number))
            part = own_part(np.arange(len(known)))
            share = loss_share(known, each)
            parts.append(share * np.average(losses[part], weights=image_weights[part]))
            seen += part.tolist() if share else []
    assert sorted(seen) == list(range(len(known)))
    assert np.mean(parts) == pytest.approx(np.average(losses, weights=image_weights))
