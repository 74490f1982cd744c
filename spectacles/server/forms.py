"""The forms that photos come in: read while they arrive, kept in memory, never on the disk.

FastAPI's own forms take several times as long a request: on a small machine that is time the photos need.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from multipart import MultipartSegment, PushMultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from spectacles.server.auth import Rejected
from spectacles.server.limits import MAX_FILES

MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
MOST_FIELDS, MOST_FIELD_BYTES = 8, 4096
FILE = "file"


@dataclass
class Form:
    files: list[bytes] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: str) -> None:
        """Raises ValueError for a second value of the same name: one of them would be ignored."""
        if name in self.fields:
            raise ValueError(f"the field {name[:40]!r} comes twice")
        self.fields[name] = value


async def read(request: Request, how_to_ask: str, **defaults: str) -> Form:
    """The files of the field 'file', and the fields of these names, with these values where one is missing. Raises
    Rejected, for anything that the form should not have too; `how_to_ask` is the advice then."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    try:
        if kind == MULTIPART:
            form = await _read_multipart(request, options.get("boundary", ""))
        elif kind == URLENCODED:
            form = _read_urlencoded(await request.body())
        else:
            form = Form()
    except ClientDisconnect:
        raise Rejected(499, "disconnected", "The client went away.") from None
    except ValueError as error:
        raise Rejected(400, "bad_request", f"The form cannot be read ({error}). {how_to_ask}") from None
    unknown = [name for name in form.fields if name not in defaults]
    if unknown:
        detail = f"The field {unknown[0][:40]!r} is none of {', '.join((FILE, *defaults))}, or is no file. {how_to_ask}"
        raise Rejected(422, "bad_request", detail)
    form.fields = defaults | form.fields
    return form


async def _read_multipart(request: Request, boundary: str) -> Form:
    form, chunks = Form(), list[bytes]()
    part: MultipartSegment | None = None
    with PushMultipartParser(boundary, header_charset="latin-1") as parser:  # file names come in any charset
        async for chunk in request.stream():
            for event in parser.parse(chunk) if chunk else ():
                if isinstance(event, MultipartSegment):
                    part, chunks = event, []
                elif event is not None:
                    chunks.append(event)
                elif part is not None:
                    _add_part(form, part, b"".join(chunks))
    return form


def _add_part(form: Form, part: MultipartSegment, content: bytes) -> None:
    name = part.name.encode("latin-1").decode("utf-8", "replace")
    if name == FILE and _has_file_name(part):
        form.files.append(content)
    elif len(content) > MOST_FIELD_BYTES or len(form.fields) == MOST_FIELDS:
        raise ValueError(f"the field {name[:40]!r} is too long, or one too many")
    else:
        form.add(name, content.decode("utf-8", "replace"))
    if len(form.files) > MAX_FILES:
        detail = f"These are too many files: send at most {MAX_FILES} a request."
        raise Rejected(413, "bad_request", detail, {"Connection": "close"})


def _has_file_name(part: MultipartSegment) -> bool:
    """Some clients send one that is not ASCII as `filename*` alone (RFC 5987), which the parser leaves out."""
    return part.filename is not None or re.search(r";\s*filename\*=", part["Content-Disposition"], re.I) is not None


def _read_urlencoded(body: bytes) -> Form:
    form = Form()
    for name, value in parse_qsl(body.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_FIELDS):
        form.add(name, value)
    return form


def choice(form: Form, name: str, values: tuple[str, ...]) -> str:
    """What a field says. Raises Rejected."""
    given = form.fields[name]
    if given not in values:
        raise Rejected(422, "bad_request", f"{name} {given[:40]!r} is unknown: use {' or '.join(values)}.")
    return given


def described(most_files: int, **fields: dict[str, Any]) -> dict[str, Any]:
    """The form for the OpenAPI page: `openapi_extra` of a route."""
    photos = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": most_files}
    texts = {name: {"type": "string", "default": "", "maxLength": MOST_FIELD_BYTES} | each
             for name, each in fields.items()}  # fmt: skip
    schema = {
        "type": "object",
        "properties": {FILE: photos, **texts},
        "additionalProperties": False,
        "required": [FILE],
    }
    return {"requestBody": {"content": {MULTIPART: {"schema": schema}}, "required": True}}
