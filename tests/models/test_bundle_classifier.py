"""A bundle gives back the very network that was saved, or says that it cannot."""

import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spectacles.core.errors import UserError
from spectacles.data.preprocessing import Preprocessing
from spectacles.metrics.calibration import Calibration
from spectacles.models import backbones, ood
from spectacles.models.bundle import (
    ENGINE_FILE,
    FORMAT,
    BundleInfo,
    _model_id,
    load_bundle,
    read_bundle_info,
    save_bundle,
)
from spectacles.models.classifier import Classifier, load_classifier

HALF = (0.5, 0.5, 0.5)
ONNX = b"what nobody reads here " * 10
INFO = BundleInfo(
    backbone="simple_cnn",
    classes=("no", "yes", "ünsure"),
    label_column="label",
    preprocessing=Preprocessing(16, "pad", "bilinear", HALF, (0.25, 0.5, 0.125), 3),
    feature_dim=128,
    dropout=0.2,
    threshold=None,
    temperature=1.25,
    data_fingerprint="f" * 64,
    training_profile={"images": {"no": 3, "yes": 2, "ünsure": 1}, "brightness": {"mean": 100.5, "std": 0.0}},
    class_shares=(0.5, 0.3, 0.2),
    metric="accuracy",
    metric_value=0.75,
    epoch=3,
    phase="head",
    class_scales=(0.5, 1.0, 1.5),
    class_biases=(0.1, 0.0, -0.1),
    confidence_threshold=0.75,
    ood_threshold=0.995,
)


def make_classifier(seed: int) -> Classifier:
    """Random weights, and BatchNorm statistics that are not the initial ones."""
    torch.manual_seed(seed)
    network = Classifier(backbones.build("simple_cnn", 3, 16), 128, 3, 0.2)
    network(torch.randn(8, 3, 16, 16))
    return network.eval()


@pytest.fixture(scope="module")
def network() -> Classifier:
    return make_classifier(0)


@pytest.fixture(scope="module")
def saved(network: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(folder, INFO, network.state_dict(), ONNX)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def network_of(folder: Path) -> Path:
    (path,) = folder.glob("*.onnx")
    return path


def sign(folder: Path, **changes: object) -> None:
    """Changes the manifest and makes its hashes fit, as an attacker would."""
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8")) | changes
    del manifest["model_id"]
    manifest["model_id"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_loaded_bundle_answers_bit_for_bit_as_the_network_saved(network, saved):
    images = torch.randn(5, 3, 16, 16)
    loaded, info, model_id = load_classifier(saved)
    assert torch.equal(loaded(images), network(images))
    assert not loaded.training
    assert info == INFO
    assert read_bundle_info(saved) == (INFO, model_id)


def test_numbers_survive_to_the_last_bit(network, tmp_path):
    odd = replace(INFO, temperature=0.1 + 0.2, metric_value=1e-300, threshold=1 / 3, class_biases=(0.1 + 0.7,) * 3)
    save_bundle(tmp_path, odd, network.state_dict())
    assert read_bundle_info(tmp_path)[0] == odd


def test_a_network_in_another_memory_format_is_saved_alike(saved, tmp_path):
    state = make_classifier(0).to(memory_format=torch.channels_last).state_dict()
    assert save_bundle(tmp_path, INFO, state, ONNX) == read_bundle_info(saved)[1]


def test_the_model_id_changes_with_weights_and_with_facts(saved, tmp_path, network):
    ids = {
        read_bundle_info(saved)[1],
        save_bundle(tmp_path, INFO, make_classifier(1).state_dict()),
        save_bundle(tmp_path, replace(INFO, temperature=2.0), network.state_dict()),
    }
    assert len(ids) == 3


def test_the_same_bundle_is_the_same_file_by_file(saved, network, tmp_path):
    save_bundle(tmp_path, INFO, network.state_dict(), ONNX)
    for path in saved.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_saving_again_leaves_one_weights_file(tmp_path):
    for seed in (0, 1, 1):
        save_bundle(tmp_path, INFO, make_classifier(seed).state_dict())
        assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(load_classifier(tmp_path)[0].head.weight, make_classifier(1).head.weight)


def flip(path: Path, offset: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def test_no_flipped_bit_in_the_weights_goes_unseen(folder):
    path = weights_of(folder)
    size = path.stat().st_size
    for number in range(40):
        offset = size * number // 40
        flip(path, offset, number % 8)
        with pytest.raises(UserError, match="was changed"):
            load_classifier(folder)
        flip(path, offset, number % 8)
    load_classifier(folder)


def test_no_flipped_bit_in_the_manifest_goes_unseen(folder):
    path = folder / "bundle.json"
    for offset in range(0, path.stat().st_size, 5):
        flip(path, offset, offset % 8)
        with pytest.raises(UserError, match=r"bundle\.json"):
            read_bundle_info(folder)
        flip(path, offset, offset % 8)
    read_bundle_info(folder)


def file_of(folder: Path, name: str) -> Path:
    return {"weights": weights_of(folder), "manifest": folder / "bundle.json", "network": network_of(folder)}[name]


@pytest.mark.parametrize("kept", [0, 1, 100])
@pytest.mark.parametrize("name", ["weights", "manifest", "network"])
def test_a_truncated_file_is_seen(folder, name, kept):
    path = file_of(folder, name)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=path.name):
        load_classifier(folder)


@pytest.mark.parametrize("name", ["weights", "manifest", "network"])
def test_a_missing_file_is_named(folder, name):
    path = file_of(folder, name)
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        load_classifier(folder)


def test_a_folder_that_does_not_exist_is_no_bundle(tmp_path):
    with pytest.raises(UserError, match="is not a bundle"):
        load_classifier(tmp_path / "missing")


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1])
def test_another_format_version_is_named(folder, version):
    sign(folder, format=version)
    with pytest.raises(UserError, match=f"format {version}.* train the model again"):
        load_classifier(folder)


def test_a_manifest_that_lacks_something_is_named(folder):
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    del manifest["multi_label"]
    manifest["model_id"] = _model_id(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="lacks 'multi_label'"):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["[]", "null", "5", '"x"', "{}", '{"format": 2}'])
def test_json_that_is_no_manifest_is_rejected(folder, text):
    (folder / "bundle.json").write_text(text)
    with pytest.raises(UserError, match=r"bundle\.json"):
        load_classifier(folder)


def test_a_crash_before_the_manifest_leaves_the_old_bundle_whole(folder, network, monkeypatch):
    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("spectacles.models.bundle.write_json", crash)
    with pytest.raises(OSError, match="disk full"):
        save_bundle(folder, INFO, make_classifier(1).state_dict())
    monkeypatch.undo()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_classifier(folder)[0](images), network(images))


def test_leftovers_of_a_crash_go_with_the_next_saving(folder):
    (folder / "model-0123456789abcdef.safetensors").write_bytes(b"left over")
    (folder / "network-0123456789abcdef.onnx").write_bytes(b"left over")
    save_bundle(folder, INFO, make_classifier(1).state_dict(), ONNX)
    assert len(list(folder.iterdir())) == 3
    save_bundle(folder, INFO, make_classifier(1).state_dict(), without_network="of a test")
    assert len(list(folder.iterdir())) == 2
    bundle = load_bundle(folder)
    assert (bundle.network, bundle.without_network) == (None, "of a test")
    assert read_bundle_info(folder)[1] == bundle.model_id


def test_another_onnx_file_makes_another_model(saved, network, tmp_path):
    assert save_bundle(tmp_path, INFO, network.state_dict(), ONNX + b"!") != read_bundle_info(saved)[1]


def test_what_a_bundle_holds_is_read_by_the_start_of_its_name(saved, network):
    tensors = load_bundle(saved).tensors("head.")
    assert tensors.keys() == {"head.weight", "head.bias"}
    np.testing.assert_array_equal(tensors["head.weight"], network.head.weight.detach())
    assert load_bundle(saved).tensors().keys() == network.state_dict().keys()


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_in_the_place_of_the_weights_is_rejected_and_not_run(folder, tmp_path):
    content = pickle.dumps(Bomb(tmp_path / "exploded"))
    weights_of(folder).write_bytes(content)
    sign(folder, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(UserError, match="not a safetensors file"):
        load_classifier(folder)
    assert not (tmp_path / "exploded").exists()


def test_weights_outside_the_folder_are_not_read(folder, tmp_path):
    shutil.move(weights_of(folder), tmp_path / "outside.safetensors")
    sign(folder, weights="../outside.safetensors")
    with pytest.raises(UserError, match="lacks its weights"):
        load_classifier(folder)


def test_weights_of_another_network_are_the_users_mistake(folder):
    sign(folder, classes=["no", "yes"])
    with pytest.raises(UserError):
        load_classifier(folder)


def test_the_ood_scorer_travels_with_the_weights_and_is_not_part_of_the_network(network, tmp_path):
    maps = np.random.default_rng(0).normal(size=(50, 128)).astype(np.float32)
    known = ood.fit(maps, maps)
    save_bundle(tmp_path, INFO, network.state_dict() | known.tensors())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_classifier(tmp_path)[0](images), network(images))
    kept = ood.from_tensors(load_bundle(tmp_path).tensors(ood.PREFIX))
    np.testing.assert_array_equal(kept(maps), known(maps))
    other = save_bundle(tmp_path, INFO, network.state_dict())
    assert other != save_bundle(tmp_path, INFO, network.state_dict() | known.tensors())


def test_the_calibration_of_a_bundle_is_one_object(saved):
    info, _ = read_bundle_info(saved)
    assert info.calibration == Calibration(1.25, (0.5, 1.0, 1.5), (0.1, 0.0, -0.1))


def test_a_new_model_forgets_which_engine_was_fastest_for_the_one_before(folder: Path, network: Classifier) -> None:
    (folder / ENGINE_FILE).write_text("{}")
    save_bundle(folder, replace(INFO, epoch=4), network.state_dict())
    assert not (folder / ENGINE_FILE).exists()


def test_another_class_mix_moves_the_odds_and_nothing_else() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 3))
    moved = INFO.with_prior("no=0.25")
    assert moved.class_shares == pytest.approx((0.25, 0.45, 0.3))
    before, after = (info.calibration.probabilities(logits) for info in (INFO, moved))
    odds = before * np.array(moved.class_shares) / np.array(INFO.class_shares)
    np.testing.assert_allclose(after, odds / odds.sum(axis=1, keepdims=True))
    assert replace(moved, class_shares=INFO.class_shares, class_biases=INFO.class_biases) == INFO
    plain = replace(INFO, class_scales=(), class_biases=())
    np.testing.assert_allclose(
        plain.with_prior("no=0.5").calibration.probabilities(logits), plain.calibration.probabilities(logits)
    )
