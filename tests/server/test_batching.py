"""Many requests, one network: batches, the bound, the deadline, what is given up, and what goes wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spectacles.data.preprocessing import Decoded
from spectacles.inference.predictor import Prediction
from spectacles.server import batching
from spectacles.server.batching import Batcher, Overloaded
from spectacles.server.decoders import DecoderDied

PIXELS = np.zeros((2, 2, 3), dtype=np.uint8)


class Model:
    """Predicts what a content says; waits for `go` first."""

    num_streams = 1
    stream_batch_size = 4

    def __init__(self, name: str = "one") -> None:
        self.name, self.info = name, SimpleNamespace(preprocessing=name)
        self.go, self.started = threading.Event(), threading.Event()
        self.go.set()
        self.batches: list[list[str]] = []

    def predict_batch(self, batch: Sequence[Decoded]) -> list[Prediction]:
        self.started.set()
        assert self.go.wait(20)
        names = [item.name for item in batch]
        self.batches.append(names)
        if "poison" in names:
            raise ValueError("cannot be computed")
        return [Prediction(name, f"{self.name}: {name}", 1.0, (), (), item.reason) for name, item in zip(names, batch)]  # noqa: B905


class Decode:
    """Rejects what is bad, and dies of a bomb; waits for `go` first."""

    def __init__(self, count: int = 2) -> None:
        self.count, self.asked = count, list[list[str]]()
        self.go, self.started = threading.Event(), threading.Event()
        self.go.set()

    def most_together(self, preprocessing: Any) -> int:
        return 4

    def __call__(self, content: bytes, preprocessing: Any) -> Decoded:
        [decoded] = self.ask([content], preprocessing)
        return decoded

    def together(self, contents: Sequence[bytes], preprocessing: Any) -> list[Decoded]:
        if b"bomb" in contents:
            self.asked.append([content.decode() for content in contents])
            raise DecoderDied
        return self.ask(contents, preprocessing)

    def ask(self, contents: Sequence[bytes], preprocessing: Any) -> list[Decoded]:
        self.asked.append([content.decode() for content in contents])
        self.started.set()
        assert self.go.wait(20)
        return [self.decoded(name, preprocessing) for name in self.asked[-1]]

    def decoded(self, name: str, preprocessing: Any) -> Decoded:
        rejected = name.startswith("bad") or name == "bomb"
        return Decoded(f"{name} for {preprocessing}" if name == "slow" else name, None if rejected else PIXELS, (),
                       "broken" if rejected else "")  # fmt: skip


def run(
    test: Callable[[Batcher, Model], Awaitable[None]],
    capacity: int = 100,
    seconds: float = 20.0,
    decode: Decode | None = None,
) -> Model:
    model = Model()

    async def inside() -> None:
        async with Batcher(model, decode or Decode(), capacity, seconds) as batcher:  # type: ignore[arg-type]
            await asyncio.wait_for(test(batcher, model), 20)

    asyncio.run(inside())
    return model


async def started(work: Model | Decode) -> None:
    await asyncio.get_running_loop().run_in_executor(None, work.started.wait, 20)


async def settle(batcher: Batcher, decoded: int) -> None:
    """Until so many images are decoded and wait for the network."""
    while batcher._ready.qsize() < decoded:
        await asyncio.sleep(0)


def test_one_image_does_not_wait_for_others() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        answer = await batcher.predict(b"a")
        assert answer.prediction.label == "one: a" and answer.batch == 1 and batcher.inside == 0

    assert run(test).batches == [["a"]]


def test_what_comes_meanwhile_is_computed_together() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.predict(b"first"))
        await started(model)
        others = [asyncio.create_task(batcher.predict(b"%d" % number)) for number in range(6)]
        await settle(batcher, 6)
        model.go.set()
        answers = await asyncio.gather(first, *others)
        assert [answer.prediction.path for answer in answers] == ["first", "0", "1", "2", "3", "4", "5"]
        assert [answer.batch for answer in answers] == [1, 4, 4, 4, 4, 2, 2]

    assert [len(batch) for batch in run(test).batches] == [1, 4, 2]


def test_a_rejected_image_does_not_wait_for_the_network() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.predict(b"first"))
        await started(model)
        model.go.set()  # the model of a rejected image is asked too, but the network is not
        assert (await batcher.predict(b"bad")).prediction.reason == "broken"
        await first

    run(test)


def test_a_rejected_image_waits_for_none_that_was_decoded_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "AHEAD", 0)  # no room before the network is free
    decode = Decode(1)

    async def test(batcher: Batcher, model: Model) -> None:
        decode.go.clear()
        first = asyncio.create_task(batcher.predict(b"bad first"))
        await started(decode)
        a, bad = (asyncio.create_task(batcher.predict(name)) for name in (b"a", b"bad"))
        while batcher._waiting.qsize() < 2:
            await asyncio.sleep(0)
        decode.go.set()
        assert (await first).prediction.reason == (await bad).prediction.reason == "broken"
        assert not a.done()
        batcher._room.release()
        assert (await a).prediction.path == "a"

    run(test, decode=decode)
    assert decode.asked == [["bad first"], ["a", "bad"]]


def test_one_image_spoils_no_other() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.predict(b"first"))
        await started(model)
        names = [b"a", b"poison", b"c"]
        tasks = [asyncio.create_task(batcher.predict(name)) for name in names]
        await settle(batcher, 3)
        model.go.set()
        await first
        a, poison, c = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(poison, ValueError)
        assert [each.prediction.label for each in (a, c)] == ["one: a", "one: c"]  # type: ignore[union-attr]

    run(test)


def decoded_while_busy(names: list[bytes], decode: Decode) -> list[list[str]]:
    """How those are decoded that come while the decoder is at work."""

    async def test(batcher: Batcher, model: Model) -> None:
        decode.go.clear()
        first = asyncio.create_task(batcher.predict(b"first"))
        await started(decode)
        others = [asyncio.create_task(batcher.predict(name)) for name in names]
        while batcher._waiting.qsize() < len(names):
            await asyncio.sleep(0)
        decode.go.set()
        answers = await asyncio.gather(first, *others)
        assert [answer.prediction.path for answer in answers] == ["first", *(name.decode() for name in names)]
        rejected = [answer.prediction.path for answer in answers if answer.prediction.reason]
        assert rejected == [name.decode() for name in names if name == b"bomb"]

    run(test, decode=decode)
    return decode.asked[1:]


def test_what_waits_for_the_decoder_is_decoded_together() -> None:
    names = [b"%d" % number for number in range(6)]
    assert decoded_while_busy(names, Decode(1)) == [["0", "1", "2", "3"], ["4", "5"]]


def test_large_files_are_not_kept_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "ENOUGH_BYTES", 5)
    names = [b"large", b"tiny", b"t", b"wee"]
    assert decoded_while_busy(names, Decode(1)) == [["large"], ["tiny", "t"], ["wee"]]


def test_a_file_that_kills_the_decoder_spoils_no_other() -> None:
    asked = decoded_while_busy([b"a", b"bomb", b"c", b"d", b"e", b"f"], Decode(1))
    assert asked[:2] == [["a", "bomb", "c", "d"], ["e", "f"]]
    assert sorted(asked[2:]) == [["a"], ["bomb"], ["c"], ["d"]]


def test_pictures_are_not_prepared_long_before_they_are_needed() -> None:
    most = batching.AHEAD * Model.stream_batch_size

    async def test(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        tasks = [asyncio.create_task(batcher.predict(b"%d" % number)) for number in range(40)]
        await started(model)
        await settle(batcher, most)
        assert batcher._ready.qsize() == most and not batcher._waiting.empty()
        model.go.set()
        await asyncio.gather(*tasks)

    run(test)


def test_beyond_the_capacity_nothing_is_taken() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        tasks = [asyncio.create_task(batcher.predict(b"%d" % number)) for number in range(3)]
        await started(model)
        batcher.check_room(1)
        with pytest.raises(Overloaded) as rejected:
            batcher.check_room(2)
        assert rejected.value.reason == "queue_full" and rejected.value.seconds >= 1
        model.go.set()
        await asyncio.gather(*tasks)
        batcher.check_room(4)

    run(test, capacity=4)


def test_what_cannot_be_done_in_time_is_not_begun() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.predict(b"first"))
        await started(model)
        batcher.seconds_per_image = 11.0
        with pytest.raises(Overloaded) as rejected:
            batcher.check_room(1)
        assert rejected.value.reason == "too_late" and rejected.value.seconds == 2
        model.go.set()
        await first
        batcher.check_room(1)  # an empty server always tries: an estimate may be wrong

    run(test)


def test_after_the_deadline_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(batching.time, "monotonic", lambda: now)

    async def test(batcher: Batcher, model: Model) -> None:
        nonlocal now
        model.go.clear()
        first = asyncio.create_task(batcher.predict(b"first"))
        await started(model)
        late = asyncio.create_task(batcher.predict(b"late"))
        await settle(batcher, 1)
        now = 6.0
        model.go.set()
        assert (await first).prediction.path == "first"  # it was begun in time
        with pytest.raises(Overloaded, match="too_late"):
            await late

    assert run(test, seconds=5.0).batches == [["first"]]


def test_what_nobody_waits_for_is_not_computed() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.predict(b"first"))
        await started(model)
        gone, stays = (asyncio.create_task(batcher.predict(name)) for name in (b"gone", b"stays"))
        await settle(batcher, 2)
        gone.cancel()
        await asyncio.wait({gone})
        assert batcher.inside == 2
        model.go.set()
        await asyncio.gather(first, stays)

    assert run(test).batches == [["first"], ["stays"]]


def test_an_exchanged_model_answers_what_it_has_prepared_itself() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.predict(b"first"))
        await started(model)
        before = asyncio.create_task(batcher.predict(b"slow"))
        await settle(batcher, 1)
        batcher.model = Model("two")  # type: ignore[assignment]
        after = asyncio.create_task(batcher.predict(b"slow"))
        await settle(batcher, 2)
        model.go.set()
        answers = await asyncio.gather(first, before, after)
        labels = ["one: first", "one: slow for one", "two: slow for two"]
        assert [answer.prediction.label for answer in answers] == labels

    run(test)


def test_of_one_request_all_or_none_are_computed() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        answers = await batcher.predict_all([b"a", b"bad", b"c"])
        assert [answer.prediction.path for answer in answers] == ["a", "bad", "c"]
        with pytest.raises(ValueError, match="cannot be computed"):
            await batcher.predict_all([b"x", b"poison"])
        assert batcher.inside == 0

    run(test)


def test_other_work_waits_in_a_short_queue() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        go = threading.Event()
        tasks = [
            asyncio.create_task(batcher.between_batches(lambda: go.wait(20))) for _ in range(batching.MAX_EXPLANATIONS)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.between_batches(lambda: True)
        go.set()
        assert await asyncio.gather(*tasks) == [True] * batching.MAX_EXPLANATIONS
        assert await batcher.between_batches(lambda: "again") == "again"

    run(test)


def test_ending_leaves_nothing_behind() -> None:
    before = set(threading.enumerate())
    run(lambda batcher, model: batcher.predict_all([b"a", b"b"]))  # type: ignore[arg-type,return-value]
    assert set(threading.enumerate()) == before
