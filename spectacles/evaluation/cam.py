"""Class activation maps (Zhou et al. 2016): how much each place of the last feature map contributes to a logit.

Only where the features are the mean of that map, and the head is linear: there it is Grad-CAM on the last map, without
a backward pass.
"""

import numpy as np

from spectacles.evaluation.saliency import CannotExplain, Explainable, to_saliency


def class_activation_map(network: Explainable, pixels: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """uint8 (B, S, S, C) and class indices (B,) -> saliency (B, h, w). Raises CannotExplain."""
    outputs = network.outputs(pixels)
    if network.head_weight is None or "last_map" not in outputs:
        raise CannotExplain("it gives no feature map whose mean the features are")
    return to_saliency(np.einsum("bdhw,bd->bhw", outputs["last_map"], network.head_weight[targets]))
