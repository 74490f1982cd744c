"""The form reader: whatever a client may send as a form comes out as it was meant, or is rejected in words."""

import asyncio
from contextlib import suppress
from itertools import pairwise
from typing import Any

import httpx2
import pytest
import requests
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, noise, photo
from starlette.datastructures import UploadFile
from starlette.types import Message

from spectacles.server import forms
from spectacles.server.auth import Rejected
from spectacles.server.forms import Form
from spectacles.server.limits import MAX_FILES

ADVICE = "Send a photo."
MULTIPART = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\nphoto\r\n'


def request_of(body: bytes, content_type: str, cuts: list[int]) -> Request:
    """The body arrives in pieces."""
    edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    pieces = [body[start:end] for start, end in pairwise(edges)]
    messages = iter([*({"type": "http.request", "body": piece, "more_body": True} for piece in pieces),
                     {"type": "http.request", "body": b"", "more_body": False}])  # fmt: skip

    async def receive() -> Message:
        return next(messages)

    return Request({"type": "http", "headers": [(b"content-type", content_type.encode())]}, receive)


def read(
    body: bytes, content_type: str = MULTIPART, cuts: list[int] | None = None, names: tuple[str, ...] = ()
) -> Form:
    return asyncio.run(forms.read(request_of(body, content_type, cuts or []), ADVICE, **dict.fromkeys(names, "")))


def rejection(*args: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(Rejected) as rejected:
        read(*args, **options)
    return rejected.value.status_code, rejected.value.detail


NAMES = ("url", "label")
# Line ends: a browser makes \r\n of all of them before it sends a field. A field with a zero is taken for a photo.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=40)


@given(
    contents=st.lists(st.binary(max_size=200) | st.just(b"\r\n--b--\r\n"), min_size=1, max_size=MAX_FILES),
    fields=st.dictionaries(st.sampled_from(NAMES), TEXT),
    cuts=st.lists(st.integers(0, 5000), max_size=8),
)
def test_what_a_client_sends_comes_out(contents: list[bytes], fields: dict[str, str], cuts: list[int]) -> None:
    sent = httpx2.Request("POST", "http://a", data=fields, files=[("file", ("ä.jpg", each)) for each in contents])
    content_type, body = sent.headers["content-type"], sent.read()
    assert read(body, content_type, cuts, NAMES) == Form(contents, dict.fromkeys(NAMES, "") | fields)

    async def of_starlette() -> tuple[list[bytes], dict[str, str]]:
        async with request_of(body, content_type, []).form() as form:
            files = [await each.read() for each in form.getlist("file") if isinstance(each, UploadFile)]
            return files, {name: value for name, value in form.items() if isinstance(value, str)}

    assert asyncio.run(of_starlette()) == (contents, fields)


@given(
    fields=st.dictionaries(st.sampled_from(NAMES), TEXT.filter(bool)), cuts=st.lists(st.integers(0, 500), max_size=3)
)
def test_a_form_without_files_may_be_url_encoded(fields: dict[str, str], cuts: list[int]) -> None:
    sent = httpx2.Request("POST", "http://a", data=fields)
    assert (
        read(sent.read(), "application/x-www-form-urlencoded", cuts, NAMES).fields == dict.fromkeys(NAMES, "") | fields
    )


def test_of_two_values_none_is_ignored() -> None:
    twice = b'--b\r\nContent-Disposition: form-data; name="url"\r\n\r\nu\r\n' * 2 + b"--b--\r\n"
    for status, detail in (
        rejection(twice, names=("url",)),
        rejection(b"url=u&url=", "application/x-www-form-urlencoded", names=("url",)),
    ):
        assert status == 400 and "'url' comes twice" in detail


@given(
    body=st.binary(max_size=300) | st.binary(max_size=100).map(lambda tail: PART + tail), cuts=st.lists(st.integers())
)
def test_rubbish_is_rejected_or_read_but_never_fails(body: bytes, cuts: list[int]) -> None:
    for content_type in (MULTIPART, "application/x-www-form-urlencoded", "image/jpeg", "multipart/form-data", ""):
        with suppress(Rejected):
            read(body, content_type, cuts)


@given(end=st.integers(0, len(PART) + 3))
def test_a_body_that_ends_in_the_middle_is_no_form(end: int) -> None:
    assert read(PART + b"--b--\r\n") == Form([b"photo"])
    status, detail = rejection((PART + b"--b--\r\n")[:end])
    assert status == 400 and ADVICE in detail


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="file"; filename="h\xe4nde.jpg"',
        b'form-data; name="file"; filename="h\xc3\xa4nde.jpg"',
        b"form-data; name=file; filename=haende.jpg",
        b"form-data; name=\"file\"; filename*=utf-8''h%C3%A4nde.jpg",
        b'form-data; name="file"; filename=""',
        b'form-data; filename="a;\\"b.jpg"; name="file"',
    ],
)
def test_a_file_is_one_however_its_name_is_written(disposition: bytes) -> None:
    for header in (b"Content-Disposition: ", b"content-disposition:"):
        body = b"--b\r\n" + header + disposition + b"\r\nContent-Type: image/jpeg\r\n\r\nphoto\r\n--b--\r\n"
        assert read(body).files == [b"photo"]


def test_a_field_that_nobody_reads_is_named() -> None:
    wrong = PART + b'--b\r\nContent-Disposition: form-data; name="methd"\r\n\r\nocclusion\r\n--b--\r\n'
    assert rejection(wrong, names=("method",)) == (
        422,
        "The field 'methd' is not one of file, method: put the photo in the field 'file'. " + ADVICE,
    )


SMALL, LARGE = encoded(noise(1)), encoded(photo(2, 200, 200))
assert len(SMALL) < forms.MAX_FIELD_BYTES < len(LARGE)


def form_of(headers: str, content: bytes) -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + headers.encode() + b"\r\n\r\n" + content + b"\r\n--b--\r\n"


OKHTTP = 'name="{0}"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\nContent-Length: {1}'
SPRING = 'name="{0}"\r\nContent-Type: application/octet-stream\r\nContent-Length: {1}'
"""Of bytes without a file name; others of Java's clients send image/*."""
GO = 'name="{0}"'
"""CreateFormField, and whoever builds a form by hand."""
WRITTEN = [
    'name="{0}"; filename="a.jpg"\r\nContent-Type: image/jpeg', 'name="{0}"; filename="blob"', OKHTTP, SPRING, GO,
    "name=\"{0}\"; filename*=UTF-8''%C3%A4.jpg", 'name="{0}"\r\nContent-Type: image/png',
]  # fmt: skip
"""How browsers and curl, axios, OkHttp, Spring, Go and requests with a name beyond ASCII send a photo."""


@pytest.mark.parametrize("content", [SMALL, LARGE])
@pytest.mark.parametrize("written", WRITTEN)
def test_a_photo_of_any_client_and_size_is_read_in_its_field_and_sent_there_from_another(
    written: str, content: bytes
) -> None:
    assert read(form_of(written.format("file", len(content)), content)).files == [content]
    for name in ("image", "files", "file[]", "photo"):
        status, detail = rejection(form_of(written.format(name, len(content)), content), names=("url",))
        assert (status, detail) == (
            422, f"Put the photo in the field 'file': the form has it in {name!r}. {ADVICE}"
        )  # fmt: skip


def test_a_path_instead_of_a_photo_is_answered_with_the_remedy() -> None:
    status, detail = rejection(form_of(GO.format("file"), b"photo.jpg"))
    assert status == 422 and "is the text 'photo.jpg' and not a file; with curl, write file=@" in detail
    assert rejection(b"file=photo.jpg", "application/x-www-form-urlencoded") == (422, detail)


@pytest.mark.parametrize("content", [SMALL, LARGE])
@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_the_photo_itself_is_answered_with_the_remedy(kind: str, content: bytes) -> None:
    """requests and axios with `data=`, curl with --data-binary."""
    if kind != "application/x-www-form-urlencoded":
        assert read(content, kind) == Form()  # the route asks for a photo then
        return
    status, detail = rejection(content, kind)
    assert status in (400, 422) and ADVICE in detail


def test_more_than_a_form_may_hold_is_rejected() -> None:
    assert len(read(PART * MAX_FILES + b"--b--\r\n").files) == MAX_FILES
    assert rejection(PART * (MAX_FILES + 1) + b"--b--\r\n")[0] == 413
    long = b'--b\r\nContent-Disposition: form-data; name="url"\r\n\r\n%s\r\n--b--\r\n'
    assert read(long % b"u", names=("url",)).fields["url"] == "u"
    assert rejection(long % (b"u" * (forms.MAX_FIELD_BYTES + 1)), names=("url",))[0] == 400
    many = b"".join(b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n' % number for number in range(9))
    assert rejection(many + b"--b--\r\n")[0] == 400
    assert rejection(b"&".join(b"f%d=1" % number for number in range(9)), "application/x-www-form-urlencoded")[0] == 400
    headers = b"--b\r\n" + b"X: y\r\n" * 100 + b"\r\n--b--\r\n"
    assert rejection(headers)[0] == 400


@pytest.mark.parametrize("file", [SMALL, ("ä.jpg", SMALL), ("a.jpg", SMALL, "application/octet-stream")])
def test_what_requests_sends_comes_out(file: Any) -> None:
    sent = requests.Request("POST", "http://a", files={"file": file}).prepare()
    assert isinstance(sent.body, bytes)
    assert read(sent.body, sent.headers["Content-Type"]).files == [SMALL]
