"""A network as an ONNX file: thoroughly, for what is shipped, and quickly, for an engine that lives as long as this
process."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from threading import RLock
from typing import Any

import onnx_ir.passes.common
import torch
from torch import nn

EXPORTING = RLock()


class _Ordered(nn.Module):
    """An ONNX file has its outputs in an order."""

    def __init__(self, network: nn.Module, pixels: torch.Tensor) -> None:
        super().__init__()
        self.network, self.names = network, list(network(pixels))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.network(pixels)
        return tuple(outputs[name] for name in self.names)


@torch.no_grad()
def export(network: nn.Module, pixels: torch.Tensor) -> bytes:
    """The content of an ONNX file for any batch size, by torch.export. `network`, in evaluation mode: pixels, uint8 (B,
    S, S, C) -> outputs by name; `pixels`: two pictures. Raises what the exporter raises where it cannot."""
    ordered = _Ordered(network, pixels).eval()
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    with quiet(), _out_of_place(ordered), initial_precision():
        program = torch.export.export(ordered, (pixels,), dynamic_shapes=shapes)
        try:
            exported = torch.onnx.export(program, (), input_names=["pixels"], output_names=ordered.names, verbose=False)
        except torch.onnx.OnnxExporterError:  # of an operation that only the former exporter knows
            return export_quickly(network, pixels)
    assert exported is not None
    # Where in our files each operation comes from: paths of this machine, half of a small network's size.
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(exported.model)
    content: bytes = exported.model_proto.SerializeToString(deterministic=True)
    return content


@torch.no_grad()
def export_quickly(network: nn.Module, pixels: torch.Tensor) -> bytes:
    """The same by the TorchScript exporter: half a second for a network that `export` takes eight for. It is deprecated
    and can export fewer networks."""
    ordered = _Ordered(network, pixels).eval()
    batch = {name: {0: "batch"} for name in ("pixels", *ordered.names)}
    # Where it fails, it prints the whole graph on the process's standard output, whatever its `verbose` says.
    with tempfile.TemporaryDirectory() as folder, quiet(), _silent_stdout():
        path = Path(folder, "network.onnx")
        torch.onnx.export(ordered, (pixels,), path, dynamo=False, input_names=["pixels"], output_names=ordered.names,
                          dynamic_axes=batch)  # fmt: skip
        return path.read_bytes()


@contextmanager
def quiet() -> Iterator[None]:
    """What exporters report while they try is for their authors; what makes them fail is raised. One thread at a time:
    logs and output belong to the process, and exporters keep what they trace there too."""
    with EXPORTING, warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        disabled = logging.root.manager.disable
        logging.disable(logging.ERROR)
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)


@contextmanager
def _out_of_place(network: nn.Module) -> Iterator[None]:
    """Activations that overwrite their input take most of the time of an export: each is taken apart separately."""
    overwriting = [module for module in network.modules() if getattr(module, "inplace", False) is True]
    for module in overwriting:
        module.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in overwriting:
            module.inplace = True  # type: ignore[assignment]


@contextmanager
def initial_precision() -> Iterator[None]:
    """torch.export asks whether cuDNN may round, and fails where that has been set for convolutions alone. Nothing is
    computed inside."""
    settings: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Sends file descriptor 1, on which C++ code writes, to the null device."""
    with os.fdopen(os.dup(1), "wb") as stdout, open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(stdout.fileno(), 1)
