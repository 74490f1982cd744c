"""OpenVINO's own two files, from pixels: for Intel's processors and graphics cards."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from spectacles.core.device import cpu_count
from spectacles.core.fileio import atomic_path
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import LOGITS, PROBABILITIES, Probabilities, Shipped
from spectacles.models import quantization
from spectacles.models.engines import import_openvino
from spectacles.models.file_metadata import SECTION

FILES = (".xml", ".bin")


def write(shipped: Shipped, precision: str, path: Path) -> None:
    model = _read(shipped) if precision != "int8" else _with_probabilities(shipped)
    save(model, shipped.metadata(precision), path, compress_to_fp16=precision == "fp16")


def _read(shipped: Shipped) -> Any:
    return import_openvino().Core().read_model(shipped.onnx.SerializeToString(), b"")


def quantize(shipped: Shipped, pixels: np.ndarray) -> tuple[Any, Run]:
    openvino, model = import_openvino(), _read(shipped)
    to_logits = openvino.Model([model.output(LOGITS).get_node()], model.get_parameters(), "classifier")
    network = quantization.quantized(to_logits, pixels)
    return network, _run_of(network, LOGITS)


def _with_probabilities(shipped: Shipped) -> Any:
    """The quantised network with a calibration that is fitted to it: what `FromPixels` gives."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    network, calibrate = shipped.quantized, Probabilities(shipped.info.calibration, len(shipped.info.classes))
    logits = network.output(LOGITS).get_node().input_value(0)
    scaled = ops.add(ops.multiply(logits, calibrate.scales.numpy()), calibrate.biases.numpy())
    probabilities = ops.sigmoid(scaled) if calibrate.multi_label else ops.softmax(scaled, axis=1)
    probabilities.output(0).set_names({PROBABILITIES})
    results = [ops.result(each) for each in (probabilities.output(0), logits)]
    return openvino.Model(results, network.get_parameters(), "classifier")


def save(model: Any, metadata: dict[str, str], path: Path, compress_to_fp16: bool = False) -> None:
    openvino = import_openvino()
    for name, value in metadata.items():
        model.set_rt_info(value, [SECTION, name])
    with TemporaryDirectory() as folder:
        written = Path(folder, "model.xml")
        openvino.save_model(model, written, compress_to_fp16=compress_to_fp16)
        for suffix in reversed(FILES):  # the file that is opened last
            with atomic_path(path.with_suffix(suffix)) as temporary:
                temporary.write_bytes(written.with_suffix(suffix).read_bytes())


def load(path: Path) -> Run:
    return _run_of(str(path), PROBABILITIES)


def _run_of(model: Any, output: str) -> Run:
    """`model`: OpenVINO's, or the path of its file."""
    openvino = import_openvino()
    # By default OpenVINO computes in bfloat16 where the processor can, which gives other answers.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpu_count()}
    compiled = openvino.Core().compile_model(model, "CPU", settings)

    def run(pixels: np.ndarray) -> np.ndarray:
        values: np.ndarray = compiled([pixels])[output].copy()
        return values

    return run


FORMAT = Format(FILES, write, load, ("fp32", "fp16", "int8"), quantize)
