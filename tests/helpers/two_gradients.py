"""One step of two processes against plain autograd on the whole batch: in micro-batches, with class weights and a
parameter that no gradient reaches, also where one process has no image of its own. Run by `together.py`."""

import numpy as np
import torch
from torch import nn

from spectacles.core import distributed
from spectacles.core.config import TrainConfig
from spectacles.training import collectives
from spectacles.training.batches import Batch, StepSettings, loss_share, own_part
from spectacles.training.epoch_progress import Position
from spectacles.training.train_loop import EpochPlan, Learner, train_epoch

CPU = torch.device("cpu")
WEIGHTS = torch.tensor([1.0, 0.25, 3.0])


class Network(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3)
        self.unused = nn.Parameter(torch.ones(2))


def main() -> None:
    settings = StepSettings(TrainConfig(device="cpu", clip_grad_norm=0), CPU, 3, WEIGHTS)
    with collectives.process_group(CPU):
        for size in (8, 5, 3, 2):
            check(size, settings)
    if distributed.is_main_process():
        print("the same")


def check(size: int, settings: StepSettings) -> None:
    generator = torch.Generator().manual_seed(size)
    inputs, labels = torch.randn(size, 4, generator=generator), torch.randint(0, 3, (size,), generator=generator)
    torch.manual_seed(0)
    network = Network()
    loss = nn.functional.cross_entropy(network(inputs), labels, weight=WEIGHTS)
    loss.backward()
    expected = [network.weight.detach() - network.weight.grad, network.bias.detach() - network.bias.grad]

    part = own_part(np.arange(size))
    optimizer = torch.optim.SGD([{"params": list(network.parameters()), "lr": 9.9, "base_lr": 1.0}])
    parallel = collectives.data_parallel(network, torch.zeros(1, 4))
    learner = Learner(parallel, optimizer, torch.amp.GradScaler(enabled=False), settings)
    share = loss_share(labels.numpy(), WEIGHTS.numpy())
    plan = EpochPlan(1, [size], lambda step: 1.0, lambda step, mixed: share)
    average = train_epoch(learner, [Batch(inputs[part], labels[part])], plan, Position(micro_batches=3))
    torch.testing.assert_close([network.weight.detach(), network.bias.detach()], expected)
    torch.testing.assert_close(average, float(loss.detach()))
    assert network.unused.tolist() == [1, 1]


if __name__ == "__main__":
    main()
