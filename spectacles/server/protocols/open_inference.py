"""The Open Inference Protocol (KServe V2, Triton): photos are elements of a BYTES tensor `image`.

kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, and its extension for binary tensors.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from spectacles import __version__
from spectacles.server.auth import Rejected
from spectacles.server.handlers import Answered
from spectacles.server.protocols.protocol import Protocol, bad_request, body, photo, predict, read_json, ready
from spectacles.server.schemas import ImagePrediction, RejectedImage

INPUT = "image"
USAGE = (
    f'Send {{"inputs": [{{"name": "{INPUT}", "shape": [1], "datatype": "BYTES", "data": ["BASE64 OF A PHOTO"]}}]}}, '
    "or the photos as a binary tensor."
)
HEADER_LENGTH = "inference-header-content-length"
"""Bytes of JSON in front of binary tensors."""
OUTPUTS = {"label": "BYTES", "confidence": "FP64", "probabilities": "FP64", "classes": "BYTES", "abstained": "BOOL",
           "abstain_reason": "BYTES", "ood_score": "FP64"}  # fmt: skip
"""Name -> datatype, each with one element an image, but for `probabilities` (N, K) and `classes` (K,)."""


def protocol(environment: Mapping[str, str]) -> Protocol:
    one, version = "/v2/models/{model}", "/versions/{version}"
    return Protocol(
        photos={one + "/infer": infer, one + version + "/infer": infer},
        health={"/v2/health/live": live, "/v2/health/ready": ready},
        facts={
            "/v2": server,
            one: metadata,
            one + version: metadata,
            one + "/ready": model_ready,
            one + version + "/ready": model_ready,
        },
        error="error",
    )


async def live(request: Request) -> Response:
    return JSONResponse({"live": True})


async def server(request: Request) -> Response:
    return JSONResponse({"name": "spectacles", "version": __version__, "extensions": ["binary_tensor_data"]})


async def model_ready(request: Request) -> Response:
    check_model(request)
    return await ready(request)


async def metadata(request: Request) -> Response:
    name, version = check_model(request)
    model = request.state.service.ready_batcher().model
    sizes = {"probabilities": [-1, len(model.info.classes)], "classes": [len(model.info.classes)]}
    outputs = [{"name": output, "datatype": kind, "shape": sizes.get(output, [-1])} for output, kind in OUTPUTS.items()
               if output != "ood_score" or model.ood_scorer]  # fmt: skip
    inputs = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
    return JSONResponse(
        {"name": name, "versions": [version], "platform": "spectacles", "inputs": inputs, "outputs": outputs}
    )


def check_model(request: Request) -> tuple[str, str]:
    """(name, version) of the model that is served. Raises Rejected where the path names another one."""
    service = request.state.service
    name, version = service.settings.model_name, service.ready_batcher().model.model_id
    asked = request.path_params
    if asked["model"] != name or asked.get("version", version) != version:
        raise Rejected(404, "bad_request", f"This server has the model {name!r} in the version {version!r} only.")
    return name, version


async def infer(request: Request) -> Response:
    """All images or none: an image that is rejected is an error, as the protocol has no answer for a part."""
    name, _ = check_model(request)
    content = await body(request)
    asked, binary = _split(content, request.headers.get(HEADER_LENGTH, ""))
    wanted = _wanted(asked)
    answered = await predict(request, _photos(asked, binary), USAGE)
    for number, outcome in enumerate(answered.outcomes):
        if isinstance(outcome, RejectedImage):
            raise Rejected(outcome.status, "image", f"Image {number}: {outcome.error}")
    tensors = _tensors(answered)
    outputs = [tensors[output] for output in wanted or tensors if output in tensors]
    identity = {"id": asked["id"]} if "id" in asked else {}
    version = answered.envelope["model_id"]
    return JSONResponse({"model_name": name, "model_version": version, **identity, "outputs": outputs})


def _split(content: bytes, header_length: str) -> tuple[dict[str, Any], bytes]:
    """(the JSON, the binary tensors behind it). Raises Rejected."""
    if not header_length:
        return read_json(content, USAGE), b""
    if not header_length.isdecimal() or int(header_length) > len(content):
        raise bad_request(f"{HEADER_LENGTH} {header_length[:40]!r} is not a length within the body.")
    return read_json(content[: int(header_length)], USAGE), content[int(header_length) :]


def _wanted(asked: dict[str, Any]) -> list[str]:
    """Names of outputs; empty for all. Raises Rejected."""
    outputs = asked.get("outputs") or []
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise bad_request(f"outputs has to be a list of objects with a name. {USAGE}")
    names = [str(each.get("name")) for each in outputs]
    if unknown := [name for name in names if name not in OUTPUTS]:
        raise bad_request(f"The output {unknown[0][:40]!r} is not one of {', '.join(OUTPUTS)}.")
    return names


def _photos(asked: dict[str, Any], binary: bytes) -> list[bytes]:
    """Raises Rejected."""
    inputs = asked.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise bad_request(f"One input is needed, {INPUT!r}. {USAGE}")
    [tensor] = inputs
    if tensor.get("name") != INPUT or tensor.get("datatype") != "BYTES":
        raise bad_request(f"The input has to be {INPUT!r} with the datatype BYTES. {USAGE}")
    size = (tensor.get("parameters") or {}).get("binary_data_size")
    if size is None:
        data = tensor.get("data")
        photos = [photo(each, USAGE) for each in _flat(data)] if isinstance(data, list) else []
    else:
        photos = _elements(binary[:size] if isinstance(size, int) else b"")
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or not all(isinstance(each, int) for each in shape)
        or math.prod(shape) != len(photos)
    ):
        raise bad_request(f"The input's shape {shape} does not fit its {len(photos)} elements. {USAGE}")
    return photos


def _flat(data: list[Any]) -> list[Any]:
    """Nested lists in row-major order."""
    return [cell for each in data for cell in (_flat(each) if isinstance(each, list) else [each])]


def _elements(content: bytes) -> list[bytes]:
    """Of a binary BYTES tensor: each is four bytes of length, the lowest first, and so many bytes. Raises Rejected."""
    found = []
    while content:
        end = 4 + struct.unpack("<I", content[:4])[0] if len(content) >= 4 else math.inf
        if end > len(content):
            raise bad_request("The binary tensor ends within an element: its binary_data_size is wrong.")
        found.append(content[4 : int(end)])
        content = content[int(end) :]
    return found


def _tensors(answered: Answered) -> dict[str, dict[str, Any]]:
    predictions = [outcome for outcome in answered.outcomes if isinstance(outcome, ImagePrediction)]
    values: dict[str, list[Any]] = {
        "label": [each.label for each in predictions],
        "confidence": [each.confidence for each in predictions],
        "probabilities": [value for each in predictions for value in each.probabilities.values()],
        "classes": list(predictions[0].probabilities),
        "abstained": [each.abstained for each in predictions],
        "abstain_reason": [each.abstain_reason or "" for each in predictions],
        "ood_score": [each.ood_score for each in predictions if each.ood_score is not None],
    }
    shapes = {"probabilities": [len(predictions), len(values["classes"])]}
    return {
        name: {"name": name, "datatype": OUTPUTS[name], "shape": shapes.get(name, [len(data)]), "data": data}
        for name, data in values.items()
        if data
    }
