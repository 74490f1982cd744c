"""Which stages of the backbone learn, in what mode, and at which rates."""

import math

from torch import nn

from spectacles.models import backbones
from spectacles.models.classifier import Classifier

Stages = list[set[str]]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def stage_modules(classifier: Classifier) -> Stages:
    """For each stage of the backbone, from the input up, the names of the modules (or lone parameters) it consists of.

    Ask before BatchNorm is folded: its names then stand for the convolutions that took it in.
    """
    return [{_owner(name) for name in names} for names in backbones.stages(classifier.backbone)]


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def depth(unfreeze: str, stages: int, epoch: int, epochs: int) -> int:
    """How many of the last stages learn in `epoch` (0-based) of `epochs` of fine-tuning."""
    if unfreeze == "all":
        return stages
    if unfreeze == "progressive":
        return math.ceil(stages * (epoch + 1) / epochs)
    return min(stages, int(unfreeze.removeprefix("last:")))


def frozen(stages: Stages, learning: int) -> set[str]:
    """What lies below the last `learning` stages."""
    return set().union(*stages[: len(stages) - learning])


def freeze_below(classifier: Classifier, stages: Stages, learning: int) -> None:
    """The head and the last `learning` stages of the backbone learn. What is below keeps no activations either:
    autograd records nothing before the first parameter that learns."""
    below = frozen(stages, learning)
    for name, parameter in classifier.backbone.named_parameters():
        parameter.requires_grad_(_owner(name) not in below)


def train_mode(classifier: Classifier, batch_norm: str) -> None:
    """Training mode, except for what is frozen, and for BatchNorm unless it is to learn: a few small batches estimate
    its statistics worse than the pretraining's images did."""
    classifier.train()
    for module in classifier.backbone.modules():
        own = list(module.parameters(recurse=False))
        is_frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        if is_frozen or (isinstance(module, BATCH_NORMS) and batch_norm != "train"):
            module.eval()
    if not any(parameter.requires_grad for parameter in classifier.backbone.parameters()):
        classifier.backbone.eval()  # dropout within: the head must see the features it will see later


def parameter_groups(
    classifier: Classifier, stages: Stages, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, object]]:
    """Optimiser groups, the head first, then each stage below it at `layer_decay` times the rate above (Clark et al.
    2020), with and without decay; vectors (biases, normalisation) never decay."""
    below: dict[str, int] = {name: len(stages) - place for place, names in enumerate(stages) for name in names}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        steps = below.get(_owner(name.removeprefix("backbone.")), 0) if name.startswith("backbone.") else 0
        groups.setdefault((steps, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "name": f"{f'stage -{steps}' if steps else 'head'}{'' if decays else ' (no decay)'}",
            "params": members,
            "lr": lr * layer_decay**steps,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (steps, decays), members in sorted(groups.items(), key=lambda group: group[0])
    ]
