"""Nothing that is read can run: no module loads pickled data, and pickles in the place of our files never go off."""

import ast
import hashlib
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_rows
from torch import nn

from spectacles.core.config import FeatureConfig
from spectacles.core.errors import UserError
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import Preprocessing
from spectacles.evaluation import cross_training
from spectacles.models import feature_cache, pretrained
from spectacles.models.bundle import MANIFEST, load_bundle
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
FILES = [*ROOT.glob("*.py"), *(ROOT / "spectacles").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]

MODULES = ("pickle", "_pickle", "cloudpickle", "dill", "jsonpickle", "joblib", "skops", "marshal", "shelve",
           "multiprocessing", "concurrent.futures.process", "concurrent.futures.ProcessPoolExecutor")  # fmt: skip
CALLS = {
    "eval", "exec", "__import__", "torch.load", "torch.jit.load", "torch.export.load", "torch.package.PackageImporter",
    "torch.hub.load", "torch.hub.load_state_dict_from_url", "numpy.load", "numpy.lib.format.read_array",
    "pandas.read_pickle", "pandas.read_hdf", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all",
    "yaml.unsafe_load", "yaml.unsafe_load_all", "mlflow.pyfunc.load_model", "mlflow.pytorch.load_model",
}  # fmt: skip
SAFE = {("numpy.load", "allow_pickle", False), ("torch.load", "weights_only", True)}
ALLOWED = {
    (
        "spectacles/models/pretrained.py",
        "torch.load(weights_only=True)",
    ): "weights that others saved as .pth: tensors only",
    (
        "spectacles/evaluation/cross_training.py",
        "numpy.load(allow_pickle=False)",
    ): "probabilities: an array of numbers only",
    ("spectacles/export/formats/torch_export.py", "torch.export.load"): "a file that the same command has written",
    ("spectacles/export/formats/torchscript.py", "torch.jit.load"): "the same",
    ("spectacles/export/litert_convert.py", "torch.export.load"): "the same",
    ("spectacles/server/decoders.py", "multiprocessing"): "what is pickled goes to the decoder; its answer is JSON",
    ("spectacles/server/decoders.py", "_serve: connection.recv"): "in the decoder: what the server sends",
    ("spectacles/training/profiling.py", "multiprocessing"): "a process that this one starts, on no one's data",
    ("spectacles/training/profiling.py", "concurrent.futures.ProcessPoolExecutor"): "the same",
    ("spectacles/training/profiling.py", "concurrent.futures.process"): "the same",
    ("benchmarks/tracking_cost.py", "reply: connection.recv"): "bytes from a socket",
    ("benchmarks/tracking_cost.py", "answer_late: connection.recv"): "the same",
}


def suspects(code: str) -> Iterator[str]:
    """What in the code could load pickled data or run text, by its full name, however it was imported."""
    tree = ast.parse(code)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        else:
            continue
        yield from (banned for name in modules for banned in MODULES if f"{name}.".startswith(f"{banned}."))
    qualified: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := full_name(node.func, names)) in CALLS:
            given = {(name, part.arg, getattr(part.value, "value", None)) for part in node.keywords}
            if safe := SAFE & given:
                qualified[node.func] = "{}({}={})".format(*safe.pop())
    for node in ast.walk(tree):
        if (name := full_name(node, names)) in CALLS:
            yield qualified.get(node, name)
        if isinstance(node, ast.FunctionDef):
            inner = [part for part in ast.walk(node) if isinstance(part, ast.Attribute) and part.attr == "recv"]
            yield from (f"{node.name}: {ast.unparse(part)}" for part in inner)


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (front := full_name(node.value, names)):
        return f"{front}.{node.attr}"
    return ""


def test_nothing_loads_pickled_data_but_for_what_has_a_reason():
    assert len(FILES) > 100
    found = {(str(path.relative_to(ROOT)), what) for path in FILES for what in suspects(path.read_text("utf-8"))}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle as p", "pickle"),
        ("from joblib import load", "joblib"),
        ("from concurrent.futures import ProcessPoolExecutor", "concurrent.futures.ProcessPoolExecutor"),
        ("import torch\ntorch.load(x)", "torch.load"),
        ("from torch import load as l\nl(x, weights_only=False)", "torch.load"),
        ("import torch as t\nt.load(x, weights_only=True)", "torch.load(weights_only=True)"),
        ("import torch\nread = torch.load", "torch.load"),
        ("import numpy as np\nnp.load(x)", "numpy.load"),
        ("import numpy as np\nnp.load(x, allow_pickle=True)", "numpy.load"),
        ("import yaml\nyaml.load(x, yaml.Loader)", "yaml.load"),
        ("def f(a):\n    return a.recv()", "f: a.recv"),
        ("eval(x)", "eval"),
    ],
)
def test_code_that_would_load_a_pickle_is_found(code, found):
    assert list(suspects(code)) == [found]


def test_what_is_safe_is_not_suspected():
    assert list(suspects("import yaml, json\nyaml.safe_load(x)\njson.load(x)\nnetwork.eval()\nself.load(x)")) == []


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that creates a file when it is loaded; afterwards there must be none."""
    target = tmp_path / "exploded"
    content = pickle.dumps(Bomb(target))
    pickle.loads(content)
    target.unlink()  # it works
    yield content
    assert not target.exists()


def test_a_pickle_in_the_place_of_a_checkpoint_is_rejected(tmp_path: Path, bomb: bytes) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    path = folder / f"checkpoint-000001-{hashlib.sha256(bomb).hexdigest()}.safetensors"
    path.write_bytes(bomb)
    with pytest.raises(UserError, match=rf"cannot resume: the sha256 of {path} .* it is not a checkpoint"):
        checkpoint.load_newest(folder)
    path.rename(folder / f"checkpoint-000001-{'0' * 64}.safetensors")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        checkpoint.load_newest(folder)


def test_a_pickle_in_the_place_of_a_manifest_is_rejected(make_bundle: Callable[..., Path], bomb: bytes) -> None:
    folder = make_bundle("a", "b")
    (folder / MANIFEST).write_bytes(bomb)
    with pytest.raises(UserError, match=r"bundle\.json cannot be read"):
        load_bundle(folder)


def test_a_pickle_in_the_place_of_weights_is_rejected(tmp_path: Path, bomb: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bomb)
    with pytest.raises(UserError, match=r"weights\.safetensors is not a readable weights file"):
        pretrained.read_state(path)


def test_a_pickle_in_the_place_of_a_folds_probabilities_is_rejected(tmp_path: Path, bomb: bytes) -> None:
    path = tmp_path / "probabilities.npy"
    array = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    for write in (lambda: path.write_bytes(bomb), lambda: np.save(path, array), lambda: path.write_bytes(b"")):
        write()
        with pytest.raises(UserError, match=r"probabilities\.npy cannot be read .* remove the folder"):
            cross_training._read(path)


PREPROCESSING = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)


@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_in_the_place_of_kept_pixels_is_decoded_again(tmp_path: Path, bomb: bytes, inside: bool) -> None:
    rows = write_rows(tmp_path / "photos", 4)
    with Pixels(rows, PREPROCESSING, tmp_path / "cache", 2**20, 1) as pixels:
        expected, path = pixels.batch(np.arange(4)), pixels.path
    path.write_bytes(bomb)
    if inside:
        np.save(path, np.array([Bomb(tmp_path / "exploded")] * 4, dtype=object))
    with Pixels(rows, PREPROCESSING, tmp_path / "cache", 2**20, 1) as pixels:
        np.testing.assert_array_equal(pixels.batch(np.arange(4)), expected)


def test_a_pickle_in_the_place_of_kept_features_is_computed_again(
    tmp_path: Path, bomb: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_rows(tmp_path / "photos", 4)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten())

    def features() -> np.ndarray:
        with Pixels(rows, PREPROCESSING, tmp_path / "pixels", 0, 1) as pixels:
            config = FeatureConfig(batch_size=2, engine="torch")
            extractor = FeatureExtractor(network, "tiny", PREPROCESSING, tmp_path, torch.device("cpu"), config)
            return extractor.embed(pixels).last

    expected = features()
    (tmp_path / feature_cache.FILE).write_bytes(bomb)
    with caplog.at_level(logging.WARNING, "spectacles"):
        np.testing.assert_allclose(features(), expected, rtol=1e-5)
    assert f"{tmp_path / feature_cache.FILE} cannot be read" in caplog.text
