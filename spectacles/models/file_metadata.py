"""What an exported file says of its model: the text that ONNX and OpenVINO keep beside a network."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from spectacles import __version__
from spectacles.core.errors import UserError
from spectacles.models.bundle import BundleInfo, info_from_json, info_to_json

SECTION = "spectacles"
"""Of the metadata in OpenVINO's files."""
PHOTO = "photo"
"""Name of the input of a network that takes whole photos."""
TEXT = frozenset(field.name for field in fields(BundleInfo) if field.type is str)
"""Stored as it is; everything else as JSON."""


class Described(NamedTuple):
    info: BundleInfo
    model_id: str
    precision: str


def to_metadata(described: Described) -> dict[str, str]:
    info = described.info
    facts: dict[str, Any] = info_to_json(info) | {"positive_class": info.positive_class}
    return {name: value if name in TEXT else json.dumps(value) for name, value in facts.items()} | {
        "model_id": described.model_id,
        "precision": described.precision,
        "spectacles": __version__,
    }


def from_metadata(metadata: Mapping[str, str]) -> Described:
    """Without out-of-distribution scores, which no file holds. Raises UserError for what `to_metadata` has not
    written."""
    names = [field.name for field in fields(BundleInfo)]
    if missing := [name for name in (*names, "model_id", "precision") if name not in metadata]:
        raise UserError(f"its metadata lack {missing[0]!r}")
    try:
        values = {name: metadata[name] if name in TEXT else json.loads(metadata[name]) for name in names}
        info = info_from_json(values | {"ood_threshold": 1.0})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"its metadata cannot be read ({type(error).__name__})") from error
    return Described(info, metadata["model_id"], metadata["precision"])
