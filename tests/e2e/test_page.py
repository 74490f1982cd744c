"""The server's page in a real browser: every way to add photos, and every answer of the server."""

import asyncio
import base64
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import uvicorn
from PIL import Image

import api
from spectacles.data.preprocessing import Preprocessing
from spectacles.metrics.abstention import NEVER
from spectacles.models import ood
from spectacles.server import auth
from spectacles.server.service import LOADING, Service

HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = (HOSTILE, "__proto__", "7", "a word without a place to break it " + "o" * 60)
LABELS = ("cat", "dog", "hat")
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
BUSY = {"detail": "The server has more photos to look at than it can."}


@dataclass
class Server:
    address: str
    service: Service
    bundle: Path

    def swap(self, bundle: Path) -> None:
        if bundle == self.bundle:
            return
        self.bundle = bundle
        asyncio.run_coroutine_threadsafe(self.service.swap(bundle), self.service.loop).result()


def is_ready(address: str) -> bool:
    """Fails the test where the server will never be."""
    try:
        urlopen(f"{address}/health/ready").close()
    except HTTPError as error:
        problem = json.load(error)["detail"]
        if problem != LOADING:
            pytest.fail(problem)
        return False
    return True


@contextmanager
def serving(bundle: Path, **environment: str) -> Iterator[Server]:
    """The server on a free port of this machine, in a thread."""
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        for name in [name for name in os.environ if name.startswith("SPECTACLES_") and name != "SPECTACLES_ENGINE"]:
            patch.delenv(name)
        for name, value in {"SPECTACLES_DEVICE": "cpu", "SPECTACLES_BUNDLE": str(bundle), **environment}.items():
            patch.setenv(name, value)
        server = uvicorn.Server(uvicorn.Config(api.app, log_level="warning", access_log=False))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            address = "http://127.0.0.1:{1}".format(*listening.getsockname())
            while not is_ready(address):  # the first question is answered once the server has started
                pass
            yield Server(address, api.app.state.service, bundle)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def bundles(make_bundle: Callable[..., Path]) -> dict[str, Path]:
    maps = np.random.default_rng(0).normal(size=(50, 128)).astype(np.float32)  # nothing like what a network gives
    return {
        "classes": make_bundle(*CLASSES, temperature=0.01),
        "two": make_bundle("0", "1", label_column="glasses", threshold=0.3),
        "many": make_bundle(*(f"kind {number}" for number in range(12))),
        "low confidence": make_bundle("no", "yes", confidence_threshold=0.999),
        "always abstains": make_bundle("no", "yes", confidence_threshold=NEVER),
        "out of distribution": make_bundle("no", "yes", ood_scorer=ood.fit(maps, maps), ood_threshold=0.995),
        "labels": make_bundle(*LABELS, multi_label=True, label_thresholds=(0.0, 1.0, 0.001)),
        "no labels": make_bundle(*LABELS, multi_label=True, label_thresholds=(1.0,) * 3),
        "uncertain labels": make_bundle(
            *LABELS, multi_label=True, label_thresholds=(0.0, 1.0, 0.0), confidence_threshold=NEVER
        ),
    }


@pytest.fixture(scope="module")
def server(browser: Any, bundles: dict[str, Path]) -> Iterator[Server]:
    with serving(bundles["classes"]) as server:
        yield server


def encoded(number: int, width: int = 64, height: int = 48) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def upload(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def photos(count: int) -> list[dict[str, Any]]:
    return [upload(f"{number}.png", encoded(number)) for number in range(count)]


class Opened:
    """The page, and everything that went wrong in it."""

    def __init__(self, browser: Any, address: str, open_at_once: bool = True, **options: Any) -> None:
        from playwright.sync_api import expect

        self.address, self.expect = address, expect
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[Any] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._listen)
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("filechooser", lambda chooser: None)  # so that choosers are caught from the first one on
        self.page.on("request", lambda request: self.requests.append(request))
        if open_at_once:
            self.open()

    def _listen(self, message: Any) -> None:
        if not message.text.startswith("Failed to load resource"):  # how Chromium logs a 4xx or 5xx
            self.problems.append(message.text)

    def open(self) -> None:
        self.page.goto(self.address)
        self.sees("#card", "Model ")

    def close(self) -> None:
        self.context.close()
        assert self.problems == []
        elsewhere = (self.address, "blob:", "data:")
        assert not [request.url for request in self.requests if not request.url.startswith(elsewhere)]

    def sees(self, selector: str, *texts: str) -> None:
        for text in texts:
            self.expect(self.page.locator(selector)).to_contain_text(text)

    def counts(self, selector: str, count: int, text: str | None = None) -> None:
        self.expect(self.page.locator(selector).filter(has_text=text)).to_have_count(count)

    def give(self, *files: dict[str, Any]) -> None:
        self.page.set_input_files("#chooser", list(files))

    def ask(self, *files: dict[str, Any]) -> None:
        """Adds the files and waits for their answers."""
        self.give(*files)
        self.expect(self.page.locator(".answer")).to_have_count(len(files))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def texts(self, selector: str) -> list[str]:
        return list(self.page.locator(selector).all_inner_texts())

    def posted(self, path: str) -> list[str]:
        return [
            (request.post_data_buffer or b"").decode("latin-1")
            for request in self.requests
            if request.url.endswith(path) and request.method == "POST"
        ]

    def focused(self) -> str:
        return str(self.page.evaluate("document.activeElement.id || document.activeElement.innerText"))


@pytest.fixture
def opened(browser: Any, server: Server, bundles: dict[str, Path]) -> Iterator[Opened]:
    server.swap(bundles["classes"])
    opened = Opened(browser, server.address)
    yield opened
    opened.close()


@contextmanager
def opening(browser: Any, address: str, **options: Any) -> Iterator[Opened]:
    opened = Opened(browser, address, **options)
    yield opened
    opened.close()


@contextmanager
def showing(browser: Any, server: Server, bundle: Path, **options: Any) -> Iterator[Opened]:
    server.swap(bundle)
    with opening(browser, server.address, **options) as opened:
        yield opened


def answered(opened: Opened, content: bytes) -> dict[str, Any]:
    """By the server, to another client."""
    files = {"file": upload("photo.png", content)}
    return dict(opened.context.request.post(f"{opened.address}/predict", multipart=files).json())


def explained(opened: Opened, content: bytes, label: str) -> np.ndarray:
    """By the server, to another client: (H, W, 3)."""
    form = {"file": upload("photo.png", content), "label": label}
    body = opened.context.request.post(f"{opened.address}/explain", multipart=form).body()
    with Image.open(BytesIO(body)) as image:
        return np.asarray(image)


def pixels(picture: Any) -> np.ndarray:
    """Of an image in the page: (H, W, 3)."""
    url = picture.evaluate(
        """(image) => {
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          canvas.getContext("2d").drawImage(image, 0, 0);
          return canvas.toDataURL("image/png");
        }"""
    )
    with Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


def percent(probability: float) -> str:
    near = {"> 99.9 %": 0.999 < probability < 1, "< 0.1 %": 0 < probability < 0.001}
    return next((text for text, is_near in near.items() if is_near), f"{100 * probability:.1f} %")


def transfer(opened: Opened, files: Sequence[dict[str, Any]]) -> Any:
    """A DataTransfer object with these files, as drag and drop and the clipboard deliver them."""
    packed = [[file["name"], base64.b64encode(file["buffer"]).decode()] for file in files]
    return opened.page.evaluate_handle(
        """(files) => {
          const transfer = new DataTransfer();
          for (const [name, content] of files) {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
          }
          return transfer;
        }""",
        packed,
    )


def fail_first(
    opened: Opened, path: str, times: int, status: int, retry_after: str = "", detail: object = None
) -> None:
    """The first `times` requests get this answer, later ones reach the server; status 0: the connection fails."""
    left = [times]

    def handle(route: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            route.fallback()
        elif status == 0:
            route.abort()
        else:
            headers = {"Retry-After": retry_after} if retry_after else {}
            route.fulfill(status=status, json=detail or BUSY, headers=headers)

    opened.page.route(f"**/{path}", handle)


def test_chosen_photos_get_the_servers_answers_and_a_broken_one_its_reason(opened: Opened) -> None:
    good = photos(2)
    with opened.page.expect_file_chooser() as waiting:
        opened.page.click("#choose")
    assert waiting.value.is_multiple()
    waiting.value.set_files([good[0], upload("broken.png", b"no picture at all"), good[1]])
    opened.sees("#count", "3 photos, 1 without an answer")
    assert opened.texts(".file") == ["0.png", "broken.png", "1.png"]
    cards = opened.page.locator(".result")
    opened.sees(".result >> nth=1", "The image is rejected: not an image of a known format")
    assert cards.nth(1).get_by_role("button").count() == 0  # trying it again would not help
    for place, file in ((0, good[0]), (2, good[1])):
        answer = answered(opened, file["buffer"])
        assert cards.nth(place).locator(".answer").inner_text() == in_words(answer["label"])
        expected = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
        shown = [text.split("\n") for text in cards.nth(place).locator(".bars button").all_inner_texts()]
        assert shown == [[in_words(name), percent(probability)] for name, probability in expected]
        assert re.fullmatch(r"\d+ ms", cards.nth(place).locator(".facts").inner_text())
        assert cards.nth(place).locator("img").evaluate("image => image.naturalWidth") == 64
    opened.sees("#said", "0.png: ", "broken.png: The image is rejected")


def in_words(name: str) -> str:
    return f"label: {name}" if name == "7" else name


def test_photos_are_dropped_and_pasted(opened: Opened) -> None:
    opened.page.dispatch_event("h1", "dragover", {"dataTransfer": transfer(opened, photos(2))})
    assert opened.page.locator("#drop.over").count() == 1
    opened.page.dispatch_event("h1", "drop", {"dataTransfer": transfer(opened, photos(2))})
    opened.counts(".answer", 2)
    assert opened.page.locator("#drop.over").count() == 0
    opened.page.evaluate(
        "clipboardData => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }))",
        transfer(opened, [upload("pasted.png", encoded(5))]),
    )
    opened.counts(".answer", 3)
    assert opened.texts(".file") == ["pasted.png", "0.png", "1.png"]
    for kind in ("drop", "paste"):  # of text: nothing happens
        opened.page.evaluate(
            """kind => {
              const data = new DataTransfer();
              data.setData("text/plain", "words");
              const options = { bubbles: true, dataTransfer: data, clipboardData: data };
              document.body.dispatchEvent(new (kind === "drop" ? DragEvent : ClipboardEvent)(kind, options));
            }""",
            kind,
        )
    assert opened.page.locator(".result").count() == 3


def test_a_phone_takes_photos_and_nothing_is_wider_than_it(
    browser: Any, server: Server, bundles: dict[str, Path]
) -> None:
    for bundle in ("classes", "out of distribution", "uncertain labels"):
        with showing(browser, server, bundles[bundle], **PHONE) as opened:
            assert opened.page.get_attribute("#camera", "capture") == "environment"
            with opened.page.expect_file_chooser() as waiting:
                opened.page.tap("#shoot")
            waiting.value.set_files(upload("n" * 90 + ".png", encoded(1, 20, 300)))
            opened.counts(".answer", 1)
            opened.page.locator(".more button").tap()
            opened.counts(".saliency", 1)
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
            boxes = [button.bounding_box() for button in opened.page.locator("#drop button, .more button").all()]
            assert all(box["height"] >= 44 and box["x"] + box["width"] <= 360 for box in boxes)


def test_where_it_looks_is_shown_over_the_photo_for_any_class(opened: Opened) -> None:
    opened.ask(upload("photo.png", encoded(1, 60, 90)))
    button = opened.page.locator(".more button")
    button.click()
    label = answered(opened, encoded(1, 60, 90))["label"]
    opened.sees("figcaption", f"Saliency for {in_words(label)} (")
    saliency, photo = opened.page.locator(".saliency"), opened.page.locator(".view img").first
    np.testing.assert_array_equal(pixels(saliency), explained(opened, encoded(1, 60, 90), label))
    assert saliency.bounding_box() == photo.bounding_box()
    assert photo.bounding_box()["height"] == pytest.approx(photo.bounding_box()["width"] * 1.5, abs=1)
    assert saliency.evaluate("image => getComputedStyle(image).objectFit") == "fill"  # the bundle squashes photos
    button.click()
    opened.counts(".saliency", 0)
    assert opened.page.locator("figcaption").is_hidden()

    rows, pressed = opened.page.locator(".bars button"), opened.page.locator("[aria-pressed=true]")
    for place in (3, 0):
        rows.nth(place).click()
        name = rows.nth(place).locator("span").inner_text()
        opened.sees("figcaption", f"Saliency for {name} (")
        assert pressed.count() == 1 and name in pressed.inner_text()
        np.testing.assert_array_equal(
            pixels(saliency), explained(opened, encoded(1, 60, 90), name.removeprefix("label: "))
        )
    assert len(opened.posted("/explain")) == 2  # answers are kept
    rows.nth(0).click()
    opened.counts("[aria-pressed=true]", 0)
    opened.counts(".saliency", 0)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(200, 120), (90, 200)])
def test_the_overlay_lies_on_the_part_of_the_photo_that_the_model_sees(
    browser: Any, server: Server, make_bundle: Callable[..., Path], resize: str, size: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(32, resize, "bilinear", (0.5,) * 3, (0.5,) * 3, 3)
    photo = Image.new("RGB", size)
    middle = (size[0] * 0.55, size[1] * 0.42)
    photo.paste((255, 255, 255), (*(int(place - 10) for place in middle), *(int(place + 10) for place in middle)))
    buffer = BytesIO()
    photo.save(buffer, "PNG")
    with showing(browser, server, make_bundle("no", "yes", preprocessing=preprocessing)) as opened:
        opened.ask(upload("spot.png", buffer.getvalue()))
        bare = brightest(opened.page.locator(".view").screenshot())
        opened.page.click(".more button")
        opened.counts(".saliency", 1)
        covered = brightest(opened.page.locator(".view").screenshot())
    np.testing.assert_allclose(covered, bare, atol=2)


def brightest(picture: bytes) -> np.ndarray:
    """(row, column) in the middle of what is as bright as no colour of a saliency map over black."""
    with Image.open(BytesIO(picture)) as image:
        return np.argwhere(np.asarray(image.convert("L")) > 130).mean(axis=0)


def test_a_network_without_a_feature_map_is_explained_by_occlusion(opened: Opened) -> None:
    fail_first(opened, "explain", 1, 422, detail={"detail": "gradcam does not work with this"})
    opened.ask(*photos(1))
    opened.page.click(".more button")
    opened.counts(".saliency", 1)
    first, second = opened.posted("/explain")
    assert "occlusion" in second and "occlusion" not in first


def test_the_page_shows_why_a_class_cannot_be_explained(opened: Opened) -> None:
    fail_first(opened, "explain", 2, 422, detail={"detail": "This class cannot be explained."})
    opened.ask(*photos(1))
    opened.page.click(".more button")
    opened.sees("figcaption", "This class cannot be explained.")
    opened.sees(".more button", "Where does it look?")
    opened.page.click(".more button")
    opened.counts(".saliency", 1)


@pytest.mark.parametrize(
    ("bundle", "title", "note"),
    [
        (
            "low confidence",
            "Not confident enough",
            r"The model abstains: \d\d\.\d %, below the 99\.9 % that it needs\. Its best guess is (no|yes)\.",
        ),
        ("always abstains", "Not confident enough", r"The model abstains\. Its best guess is (no|yes)\."),
        ("out of distribution", "Unlike the training photos", r"The model abstains: .* Its best guess is (no|yes)\."),
        ("uncertain labels", "Not confident enough", r"The model abstains\. Its best guess is cat, hat\."),
    ],
)
def test_abstention_is_explained_in_words(
    browser: Any, server: Server, bundles: dict[str, Path], bundle: str, title: str, note: str
) -> None:
    with showing(browser, server, bundles[bundle]) as opened:
        opened.ask(*photos(1))
        assert opened.texts(".answer") == [title]
        assert re.fullmatch(note, opened.page.inner_text(".note"))
        opened.sees("#said", "%; the model abstains.")


def test_any_number_of_labels(browser: Any, server: Server, bundles: dict[str, Path]) -> None:
    with showing(browser, server, bundles["labels"]) as opened:
        opened.sees("#about", "which of these a photo shows, if any: cat, dog, or hat. A mark on a bar")
        opened.ask(*photos(1))
        assert opened.texts(".chips li") == ["cat", "hat"]
        answer = answered(opened, photos(1)[0]["buffer"])["probabilities"]
        rows = {name: row for row in opened.page.locator(".bars button").all() for name in row.all_inner_texts()}
        marks = {name.split("\n")[0]: row.locator(".mark").evaluate("m => m.style.left") for name, row in rows.items()}
        assert marks == {"cat": "0%", "dog": "100%", "hat": "0.1%"}
        opened.page.click(".more button")
        likely = max(("cat", "hat"), key=answer.__getitem__)
        opened.sees("figcaption", f"Saliency for {likely} (")
    with showing(browser, server, bundles["no labels"]) as opened:
        opened.ask(*photos(1))
        assert opened.texts(".answer") == ["none of the labels"]


def test_bare_numbers_get_a_name_and_the_threshold_a_mark(
    browser: Any, server: Server, bundles: dict[str, Path]
) -> None:
    with showing(browser, server, bundles["two"]) as opened:
        opened.sees("#about", "chooses between glasses: 0 and glasses: 1. A mark")
        opened.ask(*photos(1))
        marks = {row.locator("span").inner_text(): row.locator(".mark").evaluate("mark => mark.style.left")
                 for row in opened.page.locator(".bars button").all()}  # fmt: skip
        assert marks == {"glasses: 0": "70%", "glasses: 1": "30%"}


def test_the_rest_of_many_classes_is_folded_away(browser: Any, server: Server, bundles: dict[str, Path]) -> None:
    with showing(browser, server, bundles["many"]) as opened:
        opened.sees("#about", "12 classes")
        opened.ask(*photos(1))
        opened.counts(".bars button", 8)
        opened.page.focus("summary")
        opened.press("Enter")
        opened.counts(".bars button", 12)
        last = opened.page.locator(".bars button").last
        last.click()
        opened.sees("figcaption", f"Saliency for {last.locator('span').inner_text()} (")
        opened.press("Tab")
        assert last.get_attribute("aria-pressed") == "true"


def test_hostile_names_are_text(opened: Opened) -> None:
    opened.ask(upload(f"{HOSTILE}.png", encoded(1)))
    names = opened.texts(".bars span")
    assert sorted(names) == sorted(map(in_words, CLASSES))
    opened.page.get_by_role("button", name=HOSTILE).first.click()
    opened.sees("figcaption", HOSTILE)
    opened.sees("#about", HOSTILE)
    assert opened.texts(".file") == [f"{HOSTILE}.png"]
    assert opened.page.locator("[onerror]").count() == 0


def test_everything_works_with_the_keyboard_alone(opened: Opened) -> None:
    opened.press("Tab")
    assert opened.focused() == "choose"
    for key in ("Enter", "Space"):
        with opened.page.expect_file_chooser() as waiting:
            opened.press(key)
        waiting.value.set_files(photos(1))
    opened.counts(".answer", 2)
    assert opened.focused() == "choose"
    opened.press("Tab")
    assert opened.focused() == "clear"
    opened.press("Tab")
    [first, *_] = opened.texts(".bars button")
    assert opened.focused() == first
    outline = "getComputedStyle(document.activeElement).outline"
    assert "3px" in opened.page.evaluate(outline) and "solid" in opened.page.evaluate(outline)
    opened.press("Space")
    opened.counts(".saliency", 1)
    assert opened.focused() == first
    opened.press("Tab", "Tab", "Tab", "Tab")
    assert opened.focused() == "Show the photo alone"
    opened.press("Enter")
    opened.counts(".saliency", 0)
    assert opened.focused() == "Where does it look?"
    opened.page.focus("#clear")
    opened.press("Enter")
    opened.counts(".result", 0)
    assert opened.focused() == "choose"


def test_every_control_and_picture_has_a_name(opened: Opened) -> None:
    opened.ask(*photos(1))
    opened.page.click(".more button")
    opened.counts(".saliency", 1)
    assert all(text.strip() for text in opened.texts("button:visible"))
    assert opened.page.get_attribute(".saliency", "alt").startswith("saliency map for ")
    assert opened.page.locator("img:not([alt])").count() == 0
    assert opened.page.get_by_role("log").count() == 1
    assert opened.page.get_by_role("list", name="Results, the newest first").get_by_role("listitem").count() > 0


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = Array.from(rgb(colour)).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return rgb(colour)[3] === 255 ? colour : behind(node.parentElement);
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = Array.from(node.childNodes).some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility()) continue;
    const pair = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
    found.push([(pair[0] + 0.05) / (pair[1] + 0.05), node.textContent]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_contrast_of_all_texts_meets_wcag_aa(
    browser: Any, server: Server, bundles: dict[str, Path], scheme: str
) -> None:
    with showing(browser, server, bundles["out of distribution"], color_scheme=scheme) as opened:
        opened.give(*photos(1), upload("broken.png", b""))
        opened.sees("#count", "without an answer")
        opened.page.click(".bars button")
        opened.counts(".saliency", 1)
        opened.page.evaluate(
            "document.querySelectorAll('#locked, #notice').forEach((node) => { node.hidden = false; })"
        )
        opened.page.locator("#notice").evaluate("node => { node.textContent = 'a notice'; }")
        ratios = opened.page.evaluate(CONTRAST)
        assert len(ratios) > 15
        assert not [pair for pair in ratios if pair[0] < 4.5]


@pytest.mark.parametrize(("wanted", "animation"), [("reduce", "none"), ("no-preference", "slide")])
def test_motion_is_reduced_on_request(browser: Any, server: Server, wanted: str, animation: str) -> None:
    with opening(browser, server.address, reduced_motion=wanted) as opened:
        held: list[Any] = []
        opened.page.route("**/predict", lambda route: held.append(route))
        opened.give(*photos(1))
        opened.sees(".waiting", "Looking at it")
        style = "getComputedStyle(document.querySelector('.waiting'), '::after').animationName"
        assert opened.page.evaluate(style) == animation
        held[0].continue_()
        opened.counts(".answer", 1)


def test_four_photos_are_sent_at_once(opened: Opened) -> None:
    held: list[Any] = []
    opened.page.route("**/predict", lambda route: held.append(route))
    opened.give(*photos(6))
    opened.counts(".waiting", 4, "Looking at it")
    opened.counts(".waiting", 2, "Waiting for its turn")
    opened.sees("#count", "0 of 6 photos done")
    for done in range(1, 6):
        held.pop().continue_()
        opened.sees("#count", f"{done} of 6 photos done")
        opened.counts(".waiting", min(4, 6 - done), "Looking at it")
    held.pop().continue_()
    opened.counts(".answer", 6)
    opened.sees("#count", "6 photos")


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_server_is_retried_after_the_time_it_names(opened: Opened, status: int) -> None:
    opened.page.clock.install()
    fail_first(opened, "predict", 2, status, retry_after="3")
    opened.give(*photos(1))
    for _ in range(2):
        opened.sees(".waiting", "The server is busy: trying again in 3 s")
        sent = len(opened.posted("/predict"))
        opened.page.clock.run_for(2000)
        assert len(opened.posted("/predict")) == sent  # not before
        with opened.page.expect_request("**/predict"):
            opened.page.clock.run_for(1000)
    opened.counts(".answer", 1)


def test_after_many_retries_the_page_leaves_it_to_the_person(opened: Opened) -> None:
    fail_first(opened, "predict", 1, 503, retry_after="300")
    opened.give(*photos(1))
    opened.sees(".error", BUSY["detail"])
    opened.sees("#count", "1 photo, 1 without an answer")
    opened.page.get_by_role("button", name="Try again").focus()
    opened.press("Enter")
    opened.counts(".answer", 1)
    assert opened.page.evaluate("document.activeElement.className").startswith("result")
    opened.page.clock.install()
    fail_first(opened, "predict", 100, 429, retry_after="1")
    opened.give(*photos(1))
    for _ in range(5):
        opened.sees(".waiting", "trying again in 1 s")
        with opened.page.expect_request("**/predict"):
            opened.page.clock.run_for(1000)
    opened.sees(".error", BUSY["detail"])


def test_photos_wait_for_a_model_that_is_being_loaded(browser: Any, server: Server) -> None:
    opened = Opened(browser, server.address, open_at_once=False)
    opened.page.clock.install()
    fail_first(opened, "health/ready", 2, 503, retry_after="2", detail={"detail": "The model is being loaded."})
    opened.page.goto(server.address)
    opened.sees("#notice", "Not ready: The model is being loaded. This page keeps trying.")
    opened.give(*photos(1))
    opened.sees(".waiting", "Waiting for the server")
    for _ in range(2):
        with opened.page.expect_response("**/health/ready"):
            opened.page.clock.run_for(2000)
    opened.counts(".answer", 1)
    assert opened.page.locator("#notice").is_hidden()
    opened.close()


def test_a_server_that_is_away_for_a_while_answers_when_it_is_back(opened: Opened) -> None:
    opened.page.clock.install()
    away = "**/*"
    opened.page.route(away, lambda route: route.abort())
    opened.give(*photos(2))
    opened.sees("#notice", "The server cannot be reached: is it still running? This page keeps trying.")
    opened.counts(".waiting", 2, "Waiting for the server")
    opened.page.unroute(away)
    opened.page.clock.run_for(1000)
    opened.counts(".answer", 2)
    assert opened.page.locator("#notice").is_hidden()


def test_an_answer_that_is_not_json_is_reported(opened: Opened) -> None:
    opened.page.route("**/predict", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    opened.give(*photos(1))
    opened.sees(".error", "The server failed (HTTP 502): its log says why.")
    opened.page.unroute("**/predict")
    opened.page.click("text=Try again")
    opened.counts(".answer", 1)


def test_a_file_that_is_too_large_is_not_sent(opened: Opened, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(33 * 2**20)
    opened.page.set_input_files("#chooser", large)
    opened.sees(".error", "larger than 32 MiB")
    assert opened.posted("/predict") == []


def test_another_model_changes_the_header_and_looks_again(
    opened: Opened, server: Server, bundles: dict[str, Path]
) -> None:
    opened.ask(upload("first.png", encoded(1)))
    before = opened.page.inner_text("#card")
    server.swap(bundles["labels"])
    opened.give(upload("second.png", encoded(2)))
    opened.counts(".answer", 2)
    opened.sees("#about", "which of these a photo shows")
    assert opened.page.inner_text("#card") != before
    assert opened.page.locator(".chips").count() == 1
    opened.page.locator(".result", has_text="first.png").locator(".bars button").first.click()
    opened.counts(".chips", 2)
    assert opened.posted("/explain") == []


def test_the_page_asks_for_a_key_and_keeps_it_in_the_tab(browser: Any, bundles: dict[str, Path]) -> None:
    key, digest = auth.make_key()
    with serving(bundles["classes"], SPECTACLES_API_KEYS=f"me:{digest}") as server:
        opened = Opened(browser, server.address, open_at_once=False)
        opened.page.goto(server.address)
        opened.sees("#locked", "answers only those who have a key")
        opened.give(*photos(1))
        opened.sees(".waiting", "Waiting for the server")
        opened.page.get_by_label("This server answers only those who have a key:").fill("wrong")
        opened.press("Enter")
        opened.sees("#kept", "The server does not know this key.")
        assert opened.focused() == "key"
        opened.page.fill("#key", key)
        opened.press("Enter")
        opened.counts(".answer", 1)
        assert opened.page.locator("#locked").is_hidden()
        assert opened.focused() == "choose"
        opened.page.click(".more button")
        opened.counts(".saliency", 1)
        assert opened.page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [
            [key], 0, ""]  # fmt: skip
        assert all(key not in request.url for request in opened.requests)
        opened.page.reload()
        opened.sees("#card", "Model ")
        assert opened.page.locator("#locked").is_hidden()
        opened.close()
        with opening(browser, server.address, open_at_once=False) as other:
            other.page.goto(server.address)
            other.sees("#locked", "answers only those who have a key")
