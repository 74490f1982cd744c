"""Which layer groups of the backbone are trained, in which mode, and at which learning rates."""

import math

from torch import nn

from spectacles.models import backbones
from spectacles.models.classifier import Classifier

LayerGroups = list[set[str]]
"""For each layer group of the backbone, from the input up, the names of its modules (or lone parameters)."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def layer_groups_of(classifier: Classifier) -> LayerGroups:
    """Call it before BatchNorm is folded: the names of folded BatchNorms then stand for the convolutions that absorbed
    them."""
    return [{_owner(name) for name in names} for names in backbones.layer_groups(classifier.backbone)]


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def unfrozen_groups(unfreeze: str, groups: int, epoch: int, epochs: int) -> int:
    """How many of the last layer groups are trained in `epoch` (0-based) of `epochs` of fine-tuning."""
    if unfreeze == "all":
        return groups
    if unfreeze == "progressive":
        return math.ceil(groups * (epoch + 1) / epochs)
    return min(groups, int(unfreeze.removeprefix("last:")))


def freeze_below(classifier: Classifier, layer_groups: LayerGroups, unfrozen: int) -> None:
    """Trains the head and the last `unfrozen` layer groups of the backbone. The layers below keep no activations
    either: autograd records nothing before the first parameter that requires a gradient."""
    below = set().union(*layer_groups[: len(layer_groups) - unfrozen])
    for name, parameter in classifier.backbone.named_parameters():
        parameter.requires_grad_(_owner(name) not in below)


def train_mode(classifier: Classifier, batch_norm: str) -> None:
    """Training mode, except for frozen modules, and for BatchNorm unless it is to be trained: a few small batches
    estimate its statistics worse than the images of pretraining did."""
    classifier.train()
    for module in classifier.backbone.modules():
        parameters = list(module.parameters(recurse=False))
        is_frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        if is_frozen or (isinstance(module, BATCH_NORMS) and batch_norm != "train"):
            module.eval()
    if not any(parameter.requires_grad for parameter in classifier.backbone.parameters()):
        classifier.backbone.eval()  # dropout inside it: the head must see the features it will see later


def parameter_groups(
    classifier: Classifier, layer_groups: LayerGroups, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, object]]:
    """Parameter groups for the optimiser: the head first, then each layer group at `layer_decay` times the rate of the
    one above it (Clark et al. 2020), with and without weight decay; vectors (biases, normalisation) never decay."""
    depths: dict[str, int] = {
        name: len(layer_groups) - place for place, names in enumerate(layer_groups) for name in names
    }
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        depth = depths.get(_owner(name.removeprefix("backbone.")), 0) if name.startswith("backbone.") else 0
        groups.setdefault((depth, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "name": f"{f'layer group -{depth}' if depth else 'head'}{'' if decays else ' (no decay)'}",
            "params": members,
            "lr": lr * layer_decay**depth,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (depth, decays), members in sorted(groups.items(), key=lambda group: group[0])
    ]
