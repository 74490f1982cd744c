"""The server, predict's overlays and /explain where an image has any number of labels."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pictures import encoded, noise
from served import serve

from spectacles.inference.predictor import Predictor

CLASSES = ("cat", "dog", "hat")


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(*CLASSES, temperature=0.1, multi_label=True, label_thresholds=(0.0, 0.5, 1.0))


@pytest.fixture(scope="module")
def client(bundle_dir: Path) -> Iterator[TestClient]:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        yield client


def test_an_answer_lists_its_labels(client: TestClient, bundle_dir: Path) -> None:
    photo = encoded(noise(4))
    answer = client.post("/predict", files={"file": photo}).json()
    [expected] = Predictor(bundle_dir, "cpu", engine="torch").predict([photo])
    assert answer["label"] == expected.label == "|".join(answer["labels"])
    probabilities = answer["probabilities"]
    assert list(probabilities) == list(CLASSES)
    assert answer["labels"] == ["cat"] + ["dog"] * (probabilities["dog"] >= 0.5)
    certain = min(probabilities["cat"], 1 - probabilities["hat"], max(probabilities["dog"], 1 - probabilities["dog"]))
    assert answer["confidence"] == pytest.approx(certain)


def test_an_image_may_have_no_label(make_bundle: Callable[..., Path]) -> None:
    none = make_bundle(*CLASSES, multi_label=True, label_thresholds=(1.0,) * 3)
    with serve(SPECTACLES_BUNDLE=str(none)) as client:
        answer = client.post("/predict", files={"file": encoded(noise(4))}).json()
        assert (answer["label"], answer["labels"]) == ("none", [])
        files = {"file": encoded(noise(4))}
        explained = client.post("/explain", files=files, data={"format": "json", "method": "occlusion"}).json()
        assert explained["label"] == max(answer["probabilities"], key=answer["probabilities"].__getitem__)


def test_the_model_says_how_it_decides(client: TestClient) -> None:
    model = client.get("/model").json()
    assert model["multi_label"] and model["label_thresholds"] == [0.0, 0.5, 1.0] and model["threshold"] is None


def test_probabilities_are_of_each_label(bundle_dir: Path) -> None:
    predictor = Predictor(bundle_dir, "cpu", engine="torch")
    [outcome] = predictor.predict([encoded(noise(4))])
    np.testing.assert_allclose(outcome.probabilities, 1 / (1 + np.exp(-np.array(outcome.logits) / 0.1)), rtol=1e-6)
