"""Builds the classifier and sets its two phases.

`python model.py --backbone resnet50` prints what a backbone is made of.
"""

import sys

from torch import nn

from spectacles import backbones, cli, preprocess
from spectacles.classifier import Classifier
from spectacles.config import ModelConfig
from spectacles.errors import UserError
from spectacles.preprocess import Preprocessing

DROPOUT = {"simple_cnn": 0.5}


def build(config: ModelConfig, num_classes: int) -> tuple[Classifier, Preprocessing]:
    """A classifier with pretrained (or, when asked for, random) backbone and a fresh head, and its preprocessing."""
    if config.no_pretrained:
        backbone = backbones.build(config.backbone, config.in_chans, config.image_size)
    else:
        backbone = backbones.build_pretrained(config.backbone, config.in_chans, config.image_size, config.weights)
    preprocessing = preprocess.resolve(backbone.pretrained_cfg, config.image_size, config.resize, config.in_chans)
    try:
        dim = backbones.feature_dim(backbone, config.in_chans, preprocessing.image_size)
    except (AssertionError, RuntimeError) as error:  # patches that do not fit, or a picture smaller than a kernel
        raise UserError(
            f"--backbone {config.backbone} cannot take --image_size {preprocessing.image_size}: {error}"
        ) from error
    dropout = config.dropout if config.dropout is not None else DROPOUT.get(config.backbone, 0.2)
    return Classifier(backbone, dim, num_classes, dropout), preprocessing


def set_phase(classifier: Classifier, phase: str) -> None:
    """`head`: only the head learns. `fine_tune`: everything does."""
    for parameter in classifier.backbone.parameters():
        parameter.requires_grad_(phase == "fine_tune")


def train_mode(classifier: Classifier, phase: str, pretrained: bool) -> None:
    """Training mode, except that BatchNorm keeps its statistics where they were learnt from far more images.

    In the head phase the whole backbone is in evaluation mode: the head must see the features it will see later.
    """
    classifier.train()
    if phase == "head":
        classifier.backbone.eval()
    elif pretrained:
        for module in classifier.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def parameter_groups(
    classifier: Classifier, phase: str, lr: float, backbone_lr: float, weight_decay: float
) -> list[dict[str, object]]:
    """Optimiser groups: head and backbone, each with and without decay; vectors (biases, normalisation) never decay."""
    groups = []
    for name, module, rate in (("head", classifier.head, lr), ("backbone", classifier.backbone, backbone_lr)):
        learnable = [p for p in module.parameters() if p.requires_grad]
        for suffix, decay, members in (
            ("", weight_decay, [p for p in learnable if p.ndim > 1]),
            (" (no decay)", 0.0, [p for p in learnable if p.ndim <= 1]),
        ):
            if members:
                groups.append({"name": name + suffix, "params": members, "lr": rate, "weight_decay": decay})
    return groups


def describe(classifier: Classifier, preprocessing: Preprocessing, name: str) -> str:
    total = sum(p.numel() for p in classifier.parameters())
    head = sum(p.numel() for p in classifier.head.parameters())
    size, channels = preprocessing.image_size, preprocessing.in_chans
    return "\n".join(
        [
            f"{name} ({backbones.timm_name(name)})",
            f"  input       ({channels}, {size}, {size}), {preprocessing.resize}, {preprocessing.interpolation}",
            f"  normalised  mean {preprocessing.mean}, std {preprocessing.std}",
            f"  features    {classifier.head.in_features}",
            f"  parameters  {total:,}; in the head phase {head:,} of them learn",
        ]
    )


def main() -> None:
    with cli.exit_codes():
        config = cli.parse(ModelConfig, sys.argv[1:], "Show what a backbone is made of.")
        classifier, preprocessing = build(config, num_classes=2)
        print(describe(classifier, preprocessing, config.backbone))


if __name__ == "__main__":
    main()
