"""What is done to an ONNX model before it is written."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from spectacles.core.fileio import atomic_path

SMALL = 1000
"""Numbers in a tensor that is not worth halving."""


def write(model: onnx.ModelProto, metadata: Mapping[str, str], path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content(model, metadata))


def content(model: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """Of a file that holds `metadata` too."""
    described = onnx.ModelProto()
    described.CopyFrom(model)
    described.producer_name = "spectacles"
    helper.set_model_props(described, dict(metadata))
    serialized: bytes = described.SerializeToString(deterministic=True)
    return serialized


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with large weights stored in float16, each followed by a Cast back: half the size, computed in
    float32."""
    smaller = onnx.ModelProto()
    smaller.CopyFrom(model)
    casts = []
    for tensor in smaller.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims, dtype=np.int64) < SMALL:
            continue
        name = tensor.name
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *smaller.graph.node]
    del smaller.graph.node[:]
    smaller.graph.node.extend(nodes)
    return smaller
