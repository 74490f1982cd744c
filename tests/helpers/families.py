"""Every family of timm, by its smallest model, and what a run does with a backbone: embed, learn, export."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import model
from spectacles.core.config import ModelConfig
from spectacles.core.errors import UserError
from spectacles.models import backbones, bundle_export, engine_choice, recipes
from spectacles.models.all_outputs import AllOutputs
from spectacles.models.normalization import normalize
from spectacles.models.torch_network import PixelNetwork

SMALLEST = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "lcnet_035",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window16_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
"""Family -> its model with the fewest parameters."""
TOO_LARGE = {"deepseek_vit": "deepseek_vit_412m"}
"""Whose smallest model takes too much memory and time for a test."""
WITHOUT_ONNX = {"gemma4_vit_167m": "InvalidArgument", "visformer_tiny": "gives other answers than PyTorch"}
"""Model -> how the export for a bundle fails: it is served by PyTorch."""
NOT_QUICKLY = {
    "csatv2": "SymbolicValueError",
    "gemma4_vit_167m": "UnsupportedOperatorError",
    "halonet_h1": "SymbolicValueError",
    "vgg11": "SymbolicValueError",
    "visformer_tiny": "gives other answers than torch",
    "volo_d1_224": "TypeError",
}
"""Model -> how the quick export for features fails: they are computed by PyTorch."""
LARGEST = 96
"""Side of the images for backbones that take any size."""


def image_size(name: str) -> int:
    """The default recipe's, but of backbones that take any size at most LARGEST."""
    return backbones.closest_size(name, min(LARGEST, recipes.image_size(ModelConfig(backbone=name))))


def check(name: str, for_bundle: bool) -> str:
    """Runs the backbone with random weights as the stages do: features for the head, one step with half its layers
    learning, and the ONNX export, quick or for a bundle. Returns why it cannot be exported, '' where it can; raises
    what else goes wrong."""
    torch.manual_seed(0)
    config = ModelConfig(backbone=name, no_pretrained=True, image_size=image_size(name))
    classifier, preprocessing = model.build(config, num_classes=2)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *preprocessing.shape), dtype=np.uint8)
    network = PixelNetwork(AllOutputs(classifier, preprocessing), preprocessing, "cpu")
    outputs = network.torch_engine()(pixels)
    assert outputs["features"].shape == (2, classifier.head.in_features)
    assert all(np.isfinite(values).all() for values in outputs.values())
    reason = _for_bundle(network, pixels) if for_bundle else _quickly(network)
    groups = backbones.layer_groups(classifier.backbone)
    _step(classifier, {name for group in groups[len(groups) // 2 :] for name in group}, normalize(preprocessing,
        torch.from_numpy(pixels)))  # fmt: skip
    return reason


def _for_bundle(network: PixelNetwork, pixels: np.ndarray) -> str:
    return bundle_export.export(network, engine_choice.relative_difference, pixels).reason


def _quickly(network: PixelNetwork) -> str:
    try:
        engine_choice.choose(network, Path("unused"), "onnxruntime")
    except UserError as error:
        return str(error)
    return ""


def _step(classifier: model.Classifier, learning: set[str], images: torch.Tensor) -> None:
    for name, parameter in classifier.backbone.named_parameters():
        parameter.requires_grad_(name in learning)
    learn = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learn, lr=0.1)
    loss = nn.functional.cross_entropy(classifier.train()(images), torch.tensor([0, 1]))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss) and any(parameter.grad is not None for parameter in classifier.backbone.parameters())
