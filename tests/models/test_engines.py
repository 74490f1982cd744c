"""Whatever runs a network gives torch's answers, and the fastest one is found once."""

import hashlib
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import noise
from torch import nn

from spectacles.core.errors import UserError
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import backbones, engine_choice, engines, onnx_export
from spectacles.models.engine_choice import MIN_IMAGES_TO_BUILD, MIN_IMAGES_TO_MEASURE, TOLERANCE
from spectacles.models.engines import ENGINES, Outputs
from spectacles.models.normalization import normalize
from spectacles.models.sample_pictures import sample_pictures
from spectacles.models.torch_network import ONLY_OUTPUT, PixelNetwork

CPU = torch.device("cpu")
COLOUR = Preprocessing(32, "squash", "bilinear", (0.5, 0.4, 0.3), (0.25, 0.5, 0.2), 3)
GREY = Preprocessing(32, "squash", "bilinear", (0.4,), (0.2,), 1)
OTHERS = [name for name in ENGINES if name != "torch"]
INSTALLED = [name for name in OTHERS if importlib.util.find_spec(name)]


def make_net(name: str, in_chans: int = 3) -> nn.Module:
    """For 32 px, with BatchNorm statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = backbones.build(name, in_chans, 32)
    network.train()
    for _ in range(3):
        network(torch.randn(8, in_chans, 32, 32))
    return network.eval()


def pixels_of(preprocessing: Preprocessing, count: int) -> np.ndarray:
    return np.stack([preprocessing.pixels(noise(seed)) for seed in range(count)])


def directly(network: nn.Module, preprocessing: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(normalize(preprocessing, torch.from_numpy(pixels))).numpy()


# real engines


@pytest.mark.parametrize("engine", ["torch", *INSTALLED])
@pytest.mark.parametrize("name", ["simple_cnn", "test_efficientnet", "test_convnext"])
def test_every_engine_gives_torchs_outputs_for_batches_of_any_size(tmp_path, name, engine):
    network = make_net(name)
    used, run = engine_choice.choose(PixelNetwork(network, COLOUR, CPU), tmp_path / "engine.json", engine)
    assert used == engine
    for count in (5, 1, 33):
        pixels = pixels_of(COLOUR, count)
        outputs, expected = run(pixels)[ONLY_OUTPUT], directly(network, COLOUR, pixels)
        assert outputs.dtype == np.float32 and outputs.shape == expected.shape
        np.testing.assert_allclose(outputs, expected, atol=TOLERANCE * expected.std())


@pytest.mark.skipif("openvino" not in INSTALLED, reason="openvino is not installed")
def test_several_threads_may_call_an_engine_with_streams(tmp_path):
    network = make_net("simple_cnn")
    _, run = engine_choice.choose(PixelNetwork(network, COLOUR, CPU), tmp_path / "engine.json", "openvino")
    assert engines.num_streams("openvino") == engine_choice.cpu_count()
    assert engines.num_streams("torch") == 1
    batches = [pixels_of(COLOUR, 40)[start : start + size] for start in range(0, 30, 3) for size in (1, 2, 9)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, batches))
    for pixels, outputs in zip(batches, found, strict=True):
        np.testing.assert_allclose(outputs[ONLY_OUTPUT], directly(network, COLOUR, pixels), atol=1e-4)


@pytest.mark.parametrize("engine", ["torch", *INSTALLED])
def test_one_channel_works(tmp_path, engine):
    network, pixels = make_net("simple_cnn", 1), pixels_of(GREY, 3)
    _, run = engine_choice.choose(PixelNetwork(network, GREY, CPU), tmp_path / "engine.json", engine)
    expected = directly(network, GREY, pixels)
    np.testing.assert_allclose(run(pixels)[ONLY_OUTPUT], expected, atol=TOLERANCE * expected.std())


@pytest.mark.parametrize("engine", ["torch", *INSTALLED])
def test_an_answer_is_not_overwritten_by_the_next(tmp_path, engine):
    _, run = engine_choice.choose(PixelNetwork(make_net("simple_cnn"), COLOUR, CPU), tmp_path / "engine.json", engine)
    first = run(pixels_of(COLOUR, 4)[:2])[ONLY_OUTPUT]
    kept = first.copy()
    run(pixels_of(COLOUR, 4)[2:])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("engine", INSTALLED)
def test_the_network_can_still_be_trained_afterwards(tmp_path, engine):
    network = make_net("test_efficientnet")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    engine_choice.choose(PixelNetwork(network, COLOUR, CPU), tmp_path / "engine.json", engine)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.train()(torch.randn(4, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# the choice, among engines whose speed and answers are made up


class Means(nn.Module):
    """(B, C, S, S) -> (B, C); every call lets the clock go on."""

    def __init__(self, machine: "Machine") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.machine = machine

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.machine.clock += self.machine.seconds["torch"]
        return images.mean((2, 3)) * self.weight


class Machine:
    """Made-up engines: seconds a call, by how much each is off, and which ones were built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.clock = 0.0
        self.seconds = {"torch": 1.0, "onnxruntime": 0.5, "openvino": 2.0}
        self.off = dict.fromkeys(OTHERS, 0.0)
        self.installed, self.broken = set(OTHERS), set()
        self.built: list[str] = []
        self.choice_file = folder / "cache" / "engine.json"
        self.network = Means(self)
        monkeypatch.setattr(engine_choice, "time", SimpleNamespace(perf_counter=lambda: self.clock))
        monkeypatch.setattr(onnx_export, "export_quickly", lambda *_: b"")
        monkeypatch.setattr(engine_choice, "version", lambda name: "1.0")
        monkeypatch.setattr(
            engines.importlib.util, "find_spec", lambda name: name if name in {*self.installed, "torch"} else None
        )
        for name in OTHERS:
            monkeypatch.setitem(engines.BUILDERS, name, lambda _, name=name: self.build(name))

    def build(self, name: str) -> engines.Engine:
        self.built.append(name)
        if name in self.broken:
            raise RuntimeError("unsupported operator\nand what it is part of")

        def run(pixels: np.ndarray) -> Outputs:
            self.clock += self.seconds[name]
            means = normalize(COLOUR, torch.from_numpy(pixels)).mean((2, 3)).numpy()
            return {ONLY_OUTPUT: (means + self.off[name] * means.std()).astype(np.float32)}

        return run

    def choose(self, engine: str = "auto", **options: object) -> str:
        """The name of the engine, after checking that it is what runs."""
        self.built.clear()
        name, run = engine_choice.choose(PixelNetwork(self.network, COLOUR, CPU), self.choice_file, engine, **options)
        pixels, before = pixels_of(COLOUR, 3), self.clock
        means = normalize(COLOUR, torch.from_numpy(pixels)).mean((2, 3)).numpy()
        np.testing.assert_allclose(run(pixels)[ONLY_OUTPUT], means, atol=1e-3)
        assert self.clock - before == pytest.approx(self.seconds[name])
        return name


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


@pytest.mark.parametrize("fastest", ENGINES)
def test_the_fastest_engine_is_taken_and_remembered(machine, fastest):
    machine.seconds[fastest] = 0.1
    assert machine.choose() == fastest
    assert machine.built == OTHERS
    machine.seconds = {**dict.fromkeys(ENGINES, 0.1), fastest: 5.0}  # another choice, were it measured again
    assert machine.choose() == fastest
    assert machine.built == ([] if fastest == "torch" else [fastest])


@pytest.mark.parametrize("off", [0.01, 1.0, float("nan")])
def test_a_fast_engine_with_other_answers_is_rejected(machine, off):
    machine.off["onnxruntime"] = off
    assert machine.choose() == "torch"
    with pytest.raises(UserError, match="--engine onnxruntime gives other answers than torch"):
        machine.choose("onnxruntime")
    machine.off["onnxruntime"] = TOLERANCE / 10
    assert machine.choose("onnxruntime") == "onnxruntime"


def test_a_remembered_engine_is_checked_each_time(machine):
    assert machine.choose() == "onnxruntime"
    machine.off["onnxruntime"] = 0.01
    assert machine.choose() == "torch"


def test_an_engine_that_cannot_run_the_network_is_left_out_or_named(machine):
    machine.broken = {"onnxruntime"}
    assert machine.choose() == "torch"
    with pytest.raises(UserError, match=r"--engine onnxruntime cannot run .*unsupported operator\): use"):
        machine.choose("onnxruntime")


def test_that_nothing_but_torch_runs_is_remembered_too(machine):
    machine.broken = set(OTHERS)
    assert machine.choose() == "torch"
    assert machine.built == OTHERS
    assert machine.choose() == "torch"
    assert machine.built == []


@pytest.mark.parametrize("engine", OTHERS)
def test_an_engine_that_is_not_installed_is_the_users_mistake_only_by_name(machine, engine):
    machine.installed = set()
    with pytest.raises(UserError, match=f"--engine {engine} is not installed: pip install {engine}"):
        machine.choose(engine)
    assert machine.choose() == "torch"
    assert machine.built == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: b"",
        lambda kept: b"no json",
        lambda kept: b"[]",
        lambda kept: b"{}",
        lambda kept: json.dumps({**kept, "images_per_second": {"tensorflow": 100}}).encode(),
        lambda kept: json.dumps({**kept, "images_per_second": [1, 2]}).encode(),
        lambda kept: json.dumps({**kept, "images_per_second": {"onnxruntime": "fast"}}).encode(),
        lambda kept: json.dumps({**kept, "machine": {**kept["machine"], "cores": 1000}}).encode(),
        lambda kept: json.dumps({**kept, "machine": {**kept["machine"], "processor": "other"}}).encode(),
        lambda kept: json.dumps({**kept, "machine": {**kept["machine"], "openvino": "0.9"}}).encode(),
    ],
)
def test_what_another_machine_measured_or_cannot_be_read_is_measured_again(machine, damage):
    assert machine.choose() == "onnxruntime"
    machine.choice_file.write_bytes(damage(json.loads(machine.choice_file.read_text())))
    machine.seconds["openvino"] = 0.1
    assert machine.choose() == "openvino"
    assert machine.choose() == "openvino"
    assert machine.built == ["openvino"]


@pytest.mark.parametrize("change", ["version", "install"])
def test_a_new_version_or_a_new_engine_is_measured(machine, change, monkeypatch):
    machine.installed = {"onnxruntime"} if change == "install" else set(OTHERS)
    assert machine.choose() == "onnxruntime"
    machine.seconds["openvino"] = 0.1
    if change == "install":
        machine.installed = set(OTHERS)
    else:
        monkeypatch.setattr(engine_choice, "version", lambda name: "1.1")
    assert machine.choose() == "openvino"


def test_what_is_served_without_torch_need_not_be_measured_again(machine):
    machine.seconds["torch"] = 0.1
    assert machine.choose() == "torch"
    here = engine_choice.machine()
    saved = json.loads(machine.choice_file.read_text())
    assert engine_choice._read_rates(machine.choice_file, OTHERS) == {
        name: saved["images_per_second"][name] for name in OTHERS
    }
    machine.choice_file.write_text(json.dumps(saved | {"machine": here | {"torch": "0.9"}}))
    assert engine_choice._read_rates(machine.choice_file, OTHERS)
    machine.choice_file.write_text(json.dumps(saved | {"machine": here | {"openvino": "0.9"}}))
    assert not engine_choice._read_rates(machine.choice_file, OTHERS)


def test_few_images_run_on_torch_without_measuring(machine):
    assert machine.choose(images=MIN_IMAGES_TO_MEASURE - 1) == "torch"
    assert machine.built == [] and not machine.choice_file.exists()
    assert machine.choose(images=MIN_IMAGES_TO_MEASURE) == "onnxruntime"
    assert machine.choose(images=MIN_IMAGES_TO_BUILD) == "onnxruntime"
    assert machine.choose(images=MIN_IMAGES_TO_BUILD - 1) == "torch"
    assert machine.built == []
    assert machine.choose("openvino", images=1) == "openvino"


def test_torch_by_name_builds_and_writes_nothing(machine):
    assert machine.choose("torch") == "torch"
    assert machine.built == [] and not machine.choice_file.exists()


def test_a_place_that_cannot_be_written_is_no_reason_to_stop(machine):
    machine.choice_file.parent.write_text("a file where the folder should be")
    assert machine.choose() == "onnxruntime"


def test_the_difference_of_the_caller_decides(machine):
    machine.off["onnxruntime"] = 0.01
    compared = []

    def lenient(outputs: Outputs, reference: Outputs) -> float:
        compared.append(len(outputs[ONLY_OUTPUT]))
        return 0.0

    network = PixelNetwork(machine.network, COLOUR, CPU)
    name, _ = engine_choice.choose(network, machine.choice_file, difference=lenient)
    assert name == "onnxruntime" and set(compared) == {engine_choice.CHECKED}


def test_a_gpu_runs_torch(machine):
    gpu = torch.device("meta")
    assert engine_choice.choose(PixelNetwork(machine.network, COLOUR, gpu), machine.choice_file)[0] == "torch"
    with pytest.raises(UserError, match="--engine openvino runs on the CPU"):
        engine_choice.choose(PixelNetwork(machine.network, COLOUR, gpu), machine.choice_file, "openvino")
    assert machine.built == []


def test_a_network_that_cannot_be_exported_is_reported_in_one_line(tmp_path, capfd):
    network = backbones.build("test_vit", 3, None).eval()  # at another size than its own it resizes its positions
    for engine in INSTALLED:
        with pytest.raises(UserError, match=f"--engine {engine} cannot run this network") as caught:
            engine_choice.choose(PixelNetwork(network, COLOUR, CPU), tmp_path / "engine.json", engine)
        assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("preprocessing", [COLOUR, GREY])
def test_sample_pictures_are_varied_and_like_photos_at_every_scale(preprocessing):
    pictures = sample_pictures(replace(preprocessing, image_size=64), 6)
    assert pictures.shape == (6, 64, 64, preprocessing.in_chans) and pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 6
    assert all(picture.std() > 10 for picture in pictures)
    power = np.abs(np.fft.fft2(pictures.astype(float).mean(axis=3))) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    octaves = [(frequency > low) & (frequency <= 2 * low) for low in (1 / 64, 1 / 32, 1 / 16, 1 / 8)]
    shares = [power[:, octave].sum() for octave in octaves]
    assert max(shares) < 4 * min(shares)


def test_sample_pictures_never_change():
    """Bundles hold a network's answers to them."""
    assert hashlib.sha256(sample_pictures(COLOUR, 4).tobytes()).hexdigest()[:16] == "9e5be3d38033818c"


def test_the_relative_difference_is_measured_in_spreads():
    reference = np.array([[0.0, 2.0], [2.0, 0.0]], dtype=np.float32)
    error = np.array([[0.0, 0.0], [0.0, 0.5]], dtype=np.float32)

    def difference(outputs: np.ndarray, expected: np.ndarray) -> float:
        return engine_choice.relative_difference({"one": outputs, "more": outputs}, {"one": expected})

    assert difference(reference + error, reference) == pytest.approx(0.5)
    assert difference(100 * reference - error, 100 * reference) == pytest.approx(0.005)
    assert np.isnan(difference(reference * np.nan, reference))
