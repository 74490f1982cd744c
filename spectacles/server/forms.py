"""The forms that photos come in: read while they arrive, kept in memory, never on the disk.

FastAPI's own forms take several times as long a request: on a small machine that is time the photos need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from spectacles.server.access import Refused
from spectacles.server.limits import MAX_FILES

MULTIPART, URLENCODED = b"multipart/form-data", b"application/x-www-form-urlencoded"
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
    Refused, for anything that the form should not have too; `how_to_ask` is the advice then."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    try:
        if kind == MULTIPART:
            form = await _Multipart(options.get(b"boundary", b"")).read(request)
        elif kind == URLENCODED:
            form = _read_urlencoded(await request.body())
        else:
            form = Form()
    except ClientDisconnect:
        raise Refused(499, "disconnected", "The client went away.") from None
    except (FormParserError, ValueError) as error:
        raise Refused(400, "bad_request", f"The form cannot be read ({error}). {how_to_ask}") from None
    unknown = [name for name in form.fields if name not in defaults]
    if unknown:
        detail = f"The field {unknown[0][:40]!r} is none of {', '.join((FILE, *defaults))}, or is no file. {how_to_ask}"
        raise Refused(422, "bad_request", detail)
    form.fields = defaults | form.fields
    return form


def _read_urlencoded(body: bytes) -> Form:
    form = Form()
    for name, value in parse_qsl(body.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_FIELDS):
        form.add(name, value)
    return form


def choice(form: Form, name: str, values: tuple[str, ...]) -> str:
    """What a field says. Raises Refused."""
    given = form.fields[name]
    if given not in values:
        raise Refused(422, "bad_request", f"{name} {given[:40]!r} is unknown: use {' or '.join(values)}.")
    return given


class _Multipart:
    """One body, read part by part."""

    def __init__(self, boundary: bytes) -> None:
        if not boundary:
            raise ValueError("multipart without a boundary")
        self.form, self.ended = Form(), False
        self.name, self.value, self.headers = b"", b"", dict[bytes, bytes]()
        self.content = bytearray()
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_name,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    async def read(self, request: Request) -> Form:
        async for chunk in request.stream():
            self.parser.write(chunk)
        if not self.ended:
            raise ValueError("its multipart body ends in the middle")
        return self.form

    def _begin_part(self) -> None:
        self.headers, self.content = {}, bytearray()

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def _end_header(self) -> None:
        self.headers[self.name.lower()] = self.value
        self.name = self.value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self.content += data[start:end]

    def _end_part(self) -> None:
        _, options = parse_options_header(self.headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == FILE and b"filename" in options:
            self.form.files.append(bytes(self.content))
        elif len(self.content) > MOST_FIELD_BYTES or len(self.form.fields) == MOST_FIELDS:
            raise ValueError("a field is too long, or there are too many")
        else:
            self.form.add(name, self.content.decode("utf-8", "replace"))
        if len(self.form.files) > MAX_FILES:
            detail = f"These are too many files: send at most {MAX_FILES} a request."
            raise Refused(413, "bad_request", detail, {"Connection": "close"})

    def _end(self) -> None:
        self.ended = True


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
    return {"requestBody": {"content": {MULTIPART.decode(): {"schema": schema}}, "required": True}}
