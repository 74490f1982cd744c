"""The exported page in a real browser: it answers as predict.py does, without a server and without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_bundles import exported
from pictures import encoded, exif, photo
from PIL import Image

from benchmarks.browser import ANSWERS, go_offline
from spectacles.core.errors import UserError
from spectacles.evaluation.saliency import to_saliency
from spectacles.export import web_page
from spectacles.export.formats import web
from spectacles.export.shipped import Shipped
from spectacles.inference.predictor import Prediction, Predictor
from spectacles.models import ood
from spectacles.models.classifier import load_classifier

CLASSES = ("cat", "dog", "hat")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-web, once."""
    folder = tmp_path_factory.mktemp("dist")
    try:
        files = web_page.runtime_files(None)
    except UserError as error:
        pytest.skip(str(error))
    for name, (file, _) in web_page.RUNTIME.items():
        (folder / file).write_bytes(files[name])
    return folder


@pytest.fixture(scope="module")
def bundles(make_bundle: Callable[..., Path]) -> dict[str, Path]:
    two, three = (exported(make_bundle(*CLASSES[:count])) for count in (2, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    seen = Predictor(make_bundle("no", "yes", exported=two), "cpu").outputs(pixels)["ood_features"]
    return {
        "classes": make_bundle("no", "yes", threshold=0.4, temperature=0.7, class_scales=(1.2, 0.8),
                               class_biases=(0.1, -0.1), ood_scorer=ood.fit(seen, seen), ood_threshold=0.5,
                               exported=two),
        "labels": make_bundle(*CLASSES, multi_label=True, label_thresholds=(0.5, 0.45, 0.6), confidence_threshold=0.6,
                              exported=three),
    }  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of odd sizes, turned by EXIF, transparent, grey, and large enough to be reduced first."""
    folder = tmp_path_factory.mktemp("photos")
    clear = photo(5, 70, 90)
    clear.putalpha(photo(6, 70, 90).convert("L"))
    contents = {
        "wide.png": encoded(photo(1, 61, 33)), "tall.png": encoded(photo(2, 33, 119)),
        "tiny.png": encoded(photo(3, 9, 7)),
        "turned.jpg": encoded(photo(4, 50, 40), "JPEG", exif=exif(6), quality=95), "clear.png": encoded(clear),
        "grey.png": encoded(photo(7, 40, 45).convert("L")), "large.png": encoded(photo(8, 600, 400)),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def shipped(bundle: Path, runtime: Path) -> Shipped:
    return Shipped(*load_classifier(bundle), bundle, runtime)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    contexts = []

    def open_one(address: str = "", **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(message.text))
        if address:
            page.goto(address)
            page.evaluate("ready.then(() => null)")
        return page

    yield open_one
    for context in contexts:
        context.close()


def predicted(bundle: Path, photos: list[Path]) -> dict[str, Prediction]:
    outcomes = Predictor(bundle, "cpu", engine="onnxruntime").predict(photos)
    return {path.name: outcome for path, outcome in zip(photos, outcomes, strict=True)}


def assert_answers_as(found: dict[str, Any], expected: dict[str, Prediction], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, answer in found.items():
        ours = expected[name]
        apart = np.abs(np.array(list(answer["probabilities"].values())) - ours.probabilities).max()
        assert apart <= tolerance, f"{name}: {apart}"
        assert answer["label"] == ours.label and answer["abstain_reason"] == ours.abstain_reason, name
        assert answer["confidence"] == pytest.approx(ours.confidence, abs=tolerance), name
        if ours.ood_score is not None:
            assert answer["ood_score"] == pytest.approx(ours.ood_score, abs=0.02), name


def test_a_folder_answers_as_predict_does_when_its_server_and_the_network_are_gone(
    open_page, runtime, bundles, photos, tmp_path
):
    web.write_folder(shipped(bundles["classes"], runtime), "fp32", folder := tmp_path / "web")
    page = open_page()
    go_offline(page, folder)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_input_files("#chooser", photos)
    found = page.evaluate(ANSWERS)
    assert_answers_as(found, predicted(bundles["classes"], photos), 1e-3)
    assert found["clear.png"]["conversions"] == ["transparency put on white"]
    assert not [url for url in asked if not url.startswith(("blob:", "data:"))]
    assert page.problems == []


def test_a_single_file_opens_from_the_disk(open_page, runtime, bundles, photos, tmp_path):
    for name, bundle in bundles.items():
        web.write_file(shipped(bundle, runtime), "fp16", tmp_path / f"{name}.html")
    page = open_page((tmp_path / "labels.html").as_uri(), offline=True)
    page.set_input_files("#chooser", photos)
    assert_answers_as(page.evaluate(ANSWERS), predicted(bundles["labels"], photos), 0.01)
    page.locator(".result .more button").first.click()  # this network has no last map that the features are a mean of
    page.get_by_text("the page cannot tell where it looks").first.wait_for()
    last_map, weights = np.random.default_rng(0).normal(size=(1, 5, 3, 4)), np.random.default_rng(1).normal(size=5)
    arguments = [last_map.ravel().tolist(), weights.tolist()]
    shown = page.evaluate("([data, weights]) => saliencyOf({ data, dims: [1, 5, 3, 4] }, weights)", arguments)
    expected = to_saliency(np.tensordot(weights, last_map[0], 1)[None])[0]
    np.testing.assert_allclose(shown["cells"], expected.ravel(), atol=1e-6)
    assert page.problems == []


def test_what_is_not_a_photo_gets_a_sentence(open_page, runtime, bundles, tmp_path):
    web.write_file(shipped(bundles["labels"], runtime), "fp32", tmp_path / "page.html")
    (broken := tmp_path / "broken.png").write_bytes(b"not a photo")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)).save(deep := tmp_path / "deep.png")
    page = open_page((tmp_path / "page.html").as_uri())
    page.set_input_files("#chooser", [broken, deep])
    answers = page.evaluate(ANSWERS)
    assert "This browser cannot read the file as an image" in answers["broken.png"]
    assert "The file has 16 bits for each value" in answers["deep.png"]
