"""Parses uploaded forms as they arrive, in memory, never on disk.

FastAPI's forms take several times as long: on a small machine that is time the photos need.
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
MAX_FIELDS = 8
MAX_FIELD_BYTES = 4096
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


async def read(request: Request, usage: str, **defaults: str) -> Form:
    """The files of the field 'file', and the fields named by `defaults`. Raises Rejected, with the advice `usage`, for
    a form that cannot be read or has other fields."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    try:
        if kind == MULTIPART:
            form = await _read_multipart(request, options.get("boundary", ""))
        elif kind == URLENCODED:
            form = _read_urlencoded(await request.body())
        else:
            form = Form()
    except ClientDisconnect:
        raise Rejected(499, "disconnected", "The client disconnected.") from None
    except ValueError as error:
        raise Rejected(400, "bad_request", f"The form cannot be read ({error}). {usage}") from None
    except _Misplaced as misplaced:
        raise Rejected(422, "bad_request", f"{misplaced} {usage}") from None
    if FILE in form.fields:
        text = form.fields[FILE][:40]
        detail = f"The field {FILE!r} is the text {text!r} and not a file; with curl, write {FILE}=@ before its path."
        raise Rejected(422, "bad_request", f"{detail} {usage}")
    unknown = [name for name in form.fields if name not in defaults]
    if unknown:
        known = ", ".join((FILE, *defaults))
        detail = f"The field {unknown[0][:40]!r} is not one of {known}: put the photo in the field {FILE!r}. {usage}"
        raise Rejected(422, "bad_request", detail)
    form.fields = defaults | form.fields
    return form


class _Misplaced(Exception):
    """A photo where none is expected."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Put the photo in the field {FILE!r}: the form has it in {name[:40]!r}.")


async def _read_multipart(request: Request, boundary: str) -> Form:
    form = Form()
    chunks: list[bytes] = []
    part: MultipartSegment | None = None
    with PushMultipartParser(boundary, header_charset="latin-1") as parser:  # file names come in any charset
        async for chunk in request.stream():
            for event in parser.parse(chunk) if chunk else ():
                if isinstance(event, MultipartSegment):
                    part = event
                    chunks = []
                    if _is_file(part) and _name(part) != FILE:
                        raise _Misplaced(_name(part))
                elif event is not None:
                    chunks.append(event)
                elif part is not None:
                    _add_part(form, part, b"".join(chunks))
    return form


def _add_part(form: Form, part: MultipartSegment, content: bytes) -> None:
    name = _name(part)
    if name == FILE and (_is_file(part) or not _is_text(content)):
        form.files.append(content)
    elif not _is_text(content):
        raise _Misplaced(name)
    elif len(content) > MAX_FIELD_BYTES or len(form.fields) == MAX_FIELDS:
        raise ValueError(f"the field {name[:40]!r} is too long, or one too many")
    else:
        form.add(name, content.decode("utf-8", "replace"))
    if len(form.files) > MAX_FILES:
        detail = f"Too many files: send at most {MAX_FILES} per request."
        raise Rejected(413, "bad_request", detail, {"Connection": "close"})


def _name(part: MultipartSegment) -> str:
    name: str = part.name.encode("latin-1").decode("utf-8", "replace")
    return name


def _is_file(part: MultipartSegment) -> bool:
    """By its name or its type. Some clients send a name that is not ASCII only as `filename*` (RFC 5987), which the
    parser ignores; others send bytes without any name."""
    if part.filename is not None or re.search(r";\s*filename\*=", part["Content-Disposition"], re.I):
        return True
    kind = part.content_type or ""
    return kind.startswith("image/") or kind == "application/octet-stream"


def _is_text(content: bytes) -> bool:
    """Every image format has zeros in its header."""
    return b"\0" not in content


def _read_urlencoded(body: bytes) -> Form:
    form = Form()
    for name, value in parse_qsl(body.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS):
        form.add(name, value)
    return form


def choice(form: Form, name: str, values: tuple[str, ...]) -> str:
    """The value of a field, one of `values`. Raises Rejected."""
    given = form.fields[name]
    if given not in values:
        raise Rejected(422, "bad_request", f"{name} {given[:40]!r} is unknown: use {' or '.join(values)}.")
    return given


def openapi_form(max_files: int, **fields: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route with this form."""
    photos = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": max_files}
    texts = {name: {"type": "string", "default": "", "maxLength": MAX_FIELD_BYTES} | each
             for name, each in fields.items()}  # fmt: skip
    schema = {
        "type": "object",
        "properties": {FILE: photos, **texts},
        "additionalProperties": False,
        "required": [FILE],
    }
    return {"requestBody": {"content": {MULTIPART: {"schema": schema}}, "required": True}}
