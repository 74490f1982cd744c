"""Build the classifier: backbone, head, and the preprocessing that goes with them.

`python model.py --backbone resnet50` prints what a backbone is made of.
"""

from spectacles import cli
from spectacles.core.config import ModelConfig

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.start("model", lambda arguments: cli.parse(ModelConfig, arguments, __doc__))

from spectacles.data.preprocessing import Preprocessing, resolve_preprocessing
from spectacles.models import backbones, pretrained
from spectacles.models.classifier import Classifier

DROPOUT = {"simple_cnn": 0.5}


def build(config: ModelConfig, num_classes: int) -> tuple[Classifier, Preprocessing]:
    """A classifier with a new head on a pretrained (or, by --no_pretrained, random) backbone, and its preprocessing."""
    if config.no_pretrained:
        backbone = backbones.build(config.backbone, config.in_chans, config.image_size)
    else:
        backbone = pretrained.build_pretrained(config.backbone, config.in_chans, config.image_size, config.weights)
    preprocessing = resolve_preprocessing(backbone.pretrained_cfg, config.image_size, config.resize, config.in_chans)
    dim = backbones.fitting_feature_dim(config.backbone, backbone, config.in_chans, preprocessing.image_size)
    dropout = config.dropout if config.dropout is not None else DROPOUT.get(config.backbone, 0.2)
    return Classifier(backbone, dim, num_classes, dropout), preprocessing


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
            f"  groups      {len(backbones.layer_groups(classifier.backbone))} of layers (--unfreeze last:N)",
        ]
    )


def main(config: ModelConfig) -> None:
    classifier, preprocessing = build(config, num_classes=2)
    print(describe(classifier, preprocessing, config.backbone))
