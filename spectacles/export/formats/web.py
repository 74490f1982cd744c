"""A page that computes by itself: a folder for any web server, or one file to open from the disk."""

import json
from pathlib import Path

import numpy as np
import onnx

from spectacles.core.errors import UserError
from spectacles.export import onnx_files, photo_graph, web_page
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import INPUT, Shipped
from spectacles.export.web_page import WebModel
from spectacles.metrics.calibration import Calibration
from spectacles.models import ood
from spectacles.models.bundle import load_bundle
from spectacles.models.engines import onnxruntime_session
from spectacles.models.file_metadata import PHOTO


def write_folder(shipped: Shipped, precision: str, path: Path) -> None:
    path.mkdir(exist_ok=True)
    web_page.write_folder(path, *_parts(shipped, precision))


def write_file(shipped: Shipped, precision: str, path: Path) -> None:
    web_page.write_single_file(path, *_parts(shipped, precision))


def _parts(shipped: Shipped, precision: str) -> tuple[WebModel, bytes, dict[str, bytes]]:
    """Raises UserError."""
    bundle = load_bundle(shipped.folder)
    if bundle.network is None:
        raise UserError(f"--formats web needs the bundle's ONNX file, and {bundle.without_network}.")
    if shipped.info.preprocessing.value_ranges.byte:
        raise UserError(
            "--formats web: the model learned from grey files whose white is below 255, and browsers cannot scale them."
        )
    network = onnx.load_from_string(bundle.network.read_bytes())
    network = onnx_files.halved(network) if precision == "fp16" else network
    outputs = {output.name for output in network.graph.output}
    head = bundle.tensors("head.weight")["head.weight"] if "last_map" in outputs else None
    model = WebModel(shipped.info, shipped.model_id, ood.from_tensors(bundle.tensors(ood.PREFIX)), head)
    joined = photo_graph.joined(shipped.info.preprocessing, network, INPUT)
    return model, onnx_files.content(joined, shipped.metadata(precision)), shipped.web_runtime


def load(path: Path) -> Run:
    """By ONNX Runtime, the same library as in the browser; the page itself calibrates, as is done here."""
    session = onnxruntime_session(web_page.network_in(path))
    known = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()
             if name in ("temperature", "class_scales", "class_biases", "multi_label")}  # fmt: skip
    calibration = Calibration(known["temperature"], known["class_scales"], known["class_biases"], known["multi_label"])

    def run(photo: np.ndarray) -> np.ndarray:
        [logits] = session.run(["logits"], {PHOTO: photo})
        return calibration.probabilities(logits)

    return run


FOLDER = Format(("",), write_folder, load, ("fp32", "fp16"), takes_photos=True)
FILE = Format((".html",), write_file, load, ("fp32", "fp16"), takes_photos=True)
