"""Files are decoded in processes that can die of them."""

from collections.abc import Iterator
from io import BytesIO
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection

import numpy as np
import pytest
from pictures import encoded, noise, odd_files, png_header
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from spectacles.data.preprocessing import Preprocessing, decode_one
from spectacles.server import decoders
from spectacles.server.decoders import DecoderDied, Decoders, NoDecoder

SQUARE = Preprocessing(32, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)
MAX_PIXELS = 25_000_000


@pytest.fixture(scope="module")
def pool() -> Iterator[Decoders]:
    with Decoders(1, MAX_PIXELS) as started:
        started.warm(SQUARE)
        yield started


@pytest.mark.parametrize("name", odd_files())
def test_every_file_fares_as_it_does_in_this_process(pool: Decoders, name: str) -> None:
    content = odd_files()[name]
    there, here = pool(content, SQUARE), decode_one(content, SQUARE, MAX_PIXELS)
    assert (there.conversions, there.reason) == (here.conversions, here.reason)
    assert (there.pixels is None) == (here.pixels is None)
    np.testing.assert_array_equal(there.pixels, here.pixels)


def test_another_preprocessing_is_another_shape(pool: Decoders) -> None:
    small = pool(encoded(noise(1)), SQUARE.at(20)).pixels
    assert small is not None and small.shape == (20, 20, 3)


def test_a_bomb_is_rejected(pool: Decoders) -> None:
    assert "is more than 25 million" in pool(png_header(6000, 6000), SQUARE).reason
    for side in (10_000, 30_000):  # Pillow's own warning, which is an error there, and its error
        assert pool(png_header(side, side), SQUARE).reason == "too many pixels"


def test_a_process_that_dies_is_replaced(pool: Decoders) -> None:
    [decoder] = pool._all
    before = decoder.process.pid
    decoder.process.kill()
    decoder.process.join()
    assert pool(encoded(noise(1)), SQUARE).reason == "", "no file is blamed for it"
    assert decoder.process.pid != before


def test_several_come_back_in_their_order(pool: Decoders) -> None:
    contents = [encoded(noise(1)), b"rubbish", encoded(noise(2)), png_header(6000, 6000)]
    found = pool.together(contents, SQUARE)
    for there, content in zip(found, contents, strict=True):
        here = decode_one(content, SQUARE, MAX_PIXELS)
        assert (there.conversions, there.reason) == (here.conversions, here.reason)
        np.testing.assert_array_equal(there.pixels, here.pixels)


@pytest.mark.parametrize("size", [16, 224, 2048])
def test_as_many_as_there_is_room_for(pool: Decoders, size: int) -> None:
    most = pool.most_together(SQUARE.at(size))
    assert most >= 1 and most * 3 * size**2 <= decoders.MAX_BYTES
    found = pool.together([encoded(noise(1))] * most, SQUARE.at(size))
    assert all(each.pixels is not None for each in found)


def test_of_several_none_is_blamed_for_a_process_that_dies(pool: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    [decoder] = pool._all
    contents = [encoded(noise(1)), encoded(noise(2))]
    monkeypatch.setattr(decoder.process, "is_alive", lambda: True)  # it dies while it is at work
    decoder.process.kill()
    with pytest.raises(DecoderDied):
        pool.together(contents, SQUARE)
    assert [pool(content, SQUARE).reason for content in contents] == ["", ""]


def test_several_that_take_too_long_are_given_back(pool: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "TOGETHER_SECONDS", 0.0)
    with pytest.raises(DecoderDied):
        pool.together([encoded(noise(1, 2000, 2000))] * 2, SQUARE)
    assert pool(encoded(noise(1)), SQUARE).reason == ""


@pytest.mark.parametrize("said", [b"no json", b"[]", b"7", b'[["a"]]', b'[[["a"], "b", "c"]]', b"[[7, null]]"])
def test_a_process_that_says_nonsense_is_replaced(pool: Decoders, said: bytes) -> None:
    [decoder] = pool._all
    before = decoder.process.pid
    (decoder.connection, taken_over), old = Pipe(), decoder.connection
    taken_over.send_bytes(said)
    assert pool(encoded(noise(1)), SQUARE).reason == decoders.TOO_LARGE
    old.close()  # not before: its process would end by itself
    assert decoder.process.pid != before
    assert pool(encoded(noise(1)), SQUARE).reason == ""


def test_what_takes_too_long_is_killed(pool: Decoders) -> None:
    [decoder] = pool._all
    before = decoder.process.pid
    with pytest.raises(DecoderDied, match=decoders.TOO_SLOW):
        decoder([encoded(noise(1, 2000, 2000))], SQUARE, seconds=0.0)
    assert decoder.process.pid != before
    assert pool(encoded(noise(1)), SQUARE).reason == ""


def test_memory_is_capped() -> None:
    buffer = BytesIO()
    Image.new("L", (4900, 5000)).convert("F").save(buffer, "TIFF", compression="tiff_lzw")
    with Decoders(1, MAX_PIXELS, memory=64 << 20) as small:
        found = small(buffer.getvalue(), SQUARE)
        assert found.pixels is None and ("MemoryError" in found.reason or found.reason == decoders.TOO_LARGE)
        assert small(encoded(noise(1)), SQUARE).reason == ""


def test_a_comment_that_unfolds_is_rejected(pool: Decoders) -> None:
    chunks = PngInfo()
    chunks.add_text("Comment", "x" * (2 * decoders.MAX_TEXT), zip=True)
    assert pool(encoded(noise(1), pnginfo=chunks), SQUARE).reason


STARTS = ["Pipe", "RawArray", "Process"]


def fail_at(name: str, error: type[Exception], patch: pytest.MonkeyPatch, pool: Decoders) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("injected")

    patch.setattr(pool._all[0].context, name, fail)


@pytest.mark.parametrize("error", [OSError, EOFError])
@pytest.mark.parametrize("name", STARTS)
def test_where_no_process_can_be_started_no_file_is_blamed_and_the_next_try_may_succeed(
    pool: Decoders, name: str, error: type[Exception]
) -> None:
    [decoder] = pool._all
    decoder.process.kill()
    decoder.process.join()
    with pytest.MonkeyPatch.context() as patch:
        fail_at(name, error, patch, pool)
        for decode in (lambda: pool(encoded(noise(1)), SQUARE), lambda: pool.warm(SQUARE)):
            with pytest.raises(NoDecoder, match="injected"):
                decode()
        assert "injected" in pool.problem
    pool.warm(SQUARE)
    assert pool.problem == "" == pool(encoded(noise(1)), SQUARE).reason


def test_a_file_whose_decoder_cannot_be_replaced_is_not_blamed_either(pool: Decoders) -> None:
    [decoder] = pool._all
    with pytest.MonkeyPatch.context() as patch:
        fail_at("Pipe", OSError, patch, pool)
        with pytest.raises(NoDecoder):
            decoder([encoded(noise(1, 2000, 2000))], SQUARE, seconds=0.0)
    assert pool(encoded(noise(1)), SQUARE).reason == ""


def test_a_process_that_does_not_answer_is_not_taken(pool: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "START_SECONDS", 0.0)
    pool._all[0].close()
    with pytest.raises(NoDecoder, match="no answer"):
        pool(encoded(noise(1)), SQUARE)
    monkeypatch.undo()
    assert pool(encoded(noise(1)), SQUARE).reason == ""


def start_in_a_daemon(connection: Connection) -> None:
    try:
        Decoders(1, MAX_PIXELS).warm(SQUARE)
    except NoDecoder as error:
        connection.send_bytes(str(error).encode())
    connection.close()


def test_a_daemon_process_which_may_not_have_children_is_told_what_to_do() -> None:
    ours, theirs = Pipe()
    process = get_context("fork").Process(target=start_in_a_daemon, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    assert b"with hypercorn, use --workers 0" in ours.recv_bytes()
    process.join()
