"""A network in int8, by nncf: weights and most activations as integers, with ranges measured on photos."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path
from spectacles.models import engines
from spectacles.models.bundle import INT8_FILES
from spectacles.models.engine_choice import Runnable

CALIBRATION_IMAGES = 300


def require_nncf() -> None:
    """Raises UserError where it is not installed."""
    if not engines.is_installed("nncf"):
        raise UserError("--precision int8 takes nncf: pip install -r requirements-export.txt")


def quantized(network: Any, pixels: np.ndarray) -> Any:
    """An OpenVINO model whose input is `pixels`, uint8 (B, S, S, C), in int8; `pixels`: (N, S, S, C) of training
    photos. Raises UserError where nncf is not installed."""
    require_nncf()
    import nncf

    nncf.set_log_level("ERROR")
    attention = any(node.get_type_name() == "Softmax" for node in network.get_ops())
    return nncf.quantize(
        network,
        nncf.Dataset(list(pixels[:, None])),
        preset=nncf.QuantizationPreset.MIXED,  # activations need not be symmetric around 0
        subset_size=len(pixels),
        model_type=nncf.ModelType.TRANSFORMER if attention else None,
    )


def quantize(model: Runnable, pixels: np.ndarray, folder: Path) -> None:
    """Writes INT8_FILES into `folder`; `pixels`: uint8 (N, S, S, C) of training photos. Raises UserError."""
    openvino = engines.import_openvino()
    with TemporaryDirectory() as temporary, engines.explained("--precision int8", "--precision fp32"):
        network = quantized(openvino.Core().read_model(model.onnx(), b""), pixels)
        written = Path(temporary) / INT8_FILES[0]
        openvino.save_model(network, written, compress_to_fp16=False)
        for name in INT8_FILES:
            with atomic_path(folder / name) as target:
                target.write_bytes(written.with_name(name).read_bytes())
