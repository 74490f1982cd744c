"""TFLite (LiteRT), from the pixels of one picture: for Android and small devices."""

import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from spectacles.core.device import cpu_count
from spectacles.core.fileio import atomic_path
from spectacles.export import litert_environment
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import PROBABILITIES, Shipped
from spectacles.models import onnx_export


class OnlyProbabilities(torch.nn.Module):
    """uint8 (1, S, S, C) -> probabilities (1, K), the file's only output."""

    def __init__(self, from_pixels: torch.nn.Module) -> None:
        super().__init__()
        self.from_pixels = from_pixels

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        probabilities: torch.Tensor = self.from_pixels(pixels)[PROBABILITIES]
        return probabilities


def write(shipped: Shipped, precision: str, path: Path) -> None:
    """Labels and metadata are a zip archive behind the network, as LiteRT's own associated files are."""
    module = OnlyProbabilities(shipped.module).eval()
    with torch.no_grad(), onnx_export.initial_precision(), onnx_export.quiet():
        program = torch.export.export(module, (shipped.example[:1],))
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
        saved = Path(folder, "program.pt2")
        torch.export.save(program, saved)
        litert_environment.convert(saved, temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr("labels.txt", "".join(f"{label}\n" for label in shipped.info.classes))
            archive.writestr("metadata.json", json.dumps(shipped.metadata(precision), indent=2))


def load(path: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=cpu_count())
    signature = interpreter.get_signature_runner()
    [taken], [given] = signature.get_input_details(), signature.get_output_details()

    def run(pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([signature(**{taken: pixels[place : place + 1]})[given] for place in range(len(pixels))])

    return run


FORMAT = Format((".tflite",), write, load, needs=("ai_edge_litert",))
