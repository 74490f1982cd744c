"""A less exact precision is used only where this machine has it, and evaluation has found it faster and as good."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spectacles.core.errors import UserError
from spectacles.models import engine_choice, engines, ood, precision
from spectacles.models.bundle import PRECISION_FILE, load_bundle, save_bundle
from spectacles.models.precision import Checked, Fitted

MODEL = "0123456789abcdef"
FITTED = Fitted(temperature=2.5, class_scales=(), class_biases=(), class_shares=(0.5, 0.5), threshold=0.25,
                label_thresholds=(), confidence_threshold=None)  # fmt: skip
PROCESSOR = "Xeon avx512f avx512_bf16 amx_bf16"


@pytest.fixture(autouse=True)
def _modern_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "processor", lambda: PROCESSOR)
    monkeypatch.setattr(engines, "is_installed", lambda name: True)


def checked(name: str = "bf16", speedup: float = 2.0, **facts: object) -> Checked:
    values = {
        "precision": name, "engine": "openvino", "machine": precision.machine("cpu"), "images": 500,
        "same_labels": 1.0, "difference": 0.05, "accuracy": 0.99, "fp32_accuracy": 0.99, "p_worse": 1.0,
        "images_per_second": 100 * speedup, "fp32_images_per_second": 100.0, "fitted": FITTED, "files": {},
    }  # fmt: skip
    return Checked(**(values | facts))


def choose(folder: Path, wanted: str = "auto", engine: str = "auto", device: str = "cpu") -> precision.Choice:
    return precision.choose(wanted, folder, MODEL, engine, device)


@pytest.mark.parametrize(
    ("bf16", "int8", "taken"),
    [
        (2.0, None, "bf16"),
        (None, 2.0, "int8"),
        (2.0, 2.5, "bf16"),  # int8 is less exact, and less than 1.3 times as fast as bf16
        (2.0, 2.7, "int8"),
        (1.29, 1.29, "fp32"),
        (1.2, 1.3, "int8"),
        (None, None, "fp32"),
    ],
)
def test_auto_takes_a_less_exact_precision_only_for_speed(tmp_path, bf16, int8, taken):
    for name, speedup in (("bf16", bf16), ("int8", int8)):
        if speedup:
            precision.save(tmp_path, MODEL, checked(name, speedup))
    choice = choose(tmp_path)
    assert choice.precision == taken and choice.reason.startswith(f"precision: {taken} (")
    assert (choice.checked is None) == (taken == "fp32")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"same_labels": 0.997}, "only 99.7 % of the labels are float32's"),
        ({"p_worse": 0.049}, r"it is less accurate \(p = 0.049\)"),
        ({"speedup": 1.299}, "it is only 1.30 times as fast"),
        ({"machine": {"processor": "other"}}, "checked on another machine: run evaluate.py --precision bf16 on this"),
    ],
)
def test_auto_stays_with_float32_and_says_why(tmp_path, facts, reason):
    precision.save(tmp_path, MODEL, checked(**facts))
    choice = choose(tmp_path)
    assert choice.precision == "fp32" and "\n" not in choice.reason
    assert re.search(reason, choice.reason)
    assert choose(tmp_path, "bf16").precision == "bf16"  # by name all the same
    assert choose(tmp_path, "fp32") == ("fp32", None, "")


@pytest.mark.parametrize(
    ("wanted", "engine", "device", "why"),
    [
        ("bf16", "onnxruntime", "cpu", "it runs on openvino, not on onnxruntime"),
        ("int8", "torch", "cpu", "it runs on openvino, not on torch"),
        ("bf16", "openvino", "cuda:1", "it runs on torch, not on openvino"),
        ("int8", "auto", "cuda", "it runs on the CPU only"),
        ("bf16", "auto", "mps", "it is not available on mps"),
    ],
)
def test_a_precision_by_name_that_cannot_be_used_here_is_the_users_mistake(tmp_path, wanted, engine, device, why):
    with pytest.raises(UserError, match=f"--precision {wanted}: {why}. Use --precision fp32, or auto."):
        choose(tmp_path, wanted, engine, device)
    assert why in choose(tmp_path, "auto", engine, device).reason or device == "cuda"


def test_an_older_processor_has_no_bfloat16(tmp_path, monkeypatch):
    precision.save(tmp_path, MODEL, checked())
    monkeypatch.setattr(engine_choice, "processor", lambda: "Xeon avx2 avx512f")
    assert "bf16: this processor has no bfloat16" in choose(tmp_path).reason
    with pytest.raises(UserError, match="this processor has no bfloat16"):
        choose(tmp_path, "bf16")


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b"\xff", b'{"model_id": "0123456789abcdef", "checked": [{}]}'])
def test_a_record_of_another_model_or_that_cannot_be_read_does_not_count(tmp_path, damage):
    precision.save(tmp_path, "fedcba9876543210", checked())
    for _ in range(2):
        assert choose(tmp_path).precision == "fp32"
        with pytest.raises(UserError, match=r"--precision bf16 has not been checked .* `python evaluate.py --prec"):
            choose(tmp_path, "bf16")
        (tmp_path / PRECISION_FILE).write_bytes(damage)


def test_the_record_keeps_one_check_of_each_precision(tmp_path):
    for each in (checked(), checked("int8"), checked(speedup=3.0)):
        precision.save(tmp_path, MODEL, each)
    assert precision.recorded("bf16", tmp_path, MODEL, "cpu") == checked(speedup=3.0)
    assert precision.recorded("int8", tmp_path, MODEL, "cpu") == checked("int8")
    (tmp_path / "network-int8.bin").write_bytes(b"weights")
    precision.save(tmp_path, MODEL, checked("int8", files={"network-int8.bin": "0" * 64}))
    assert precision.recorded("int8", tmp_path, MODEL, "cpu") is None  # the file is another one


def test_a_new_model_in_the_folder_leaves_nothing_of_the_one_before(make_bundle):
    bundle = make_bundle("a", "b")
    whole = load_bundle(bundle)
    for name in ("precision.json", "network-int8.xml", "network-int8.bin"):
        (bundle / name).write_bytes(b"of the model before")
    save_bundle(bundle, replace(whole.info, temperature=2.0), whole.tensors())
    assert not list(bundle.glob("network*")) and not (bundle / PRECISION_FILE).exists()


def test_fitted_decisions_are_put_in_the_place_of_the_bundles(make_bundle):
    maps = np.random.default_rng(0).normal(size=(60, 128)).astype(np.float32)
    scorer = ood.fit(maps[:30], maps[30:])
    info = load_bundle(make_bundle("a", "b")).info
    moved = scorer.ranked_among(maps[:30] + 0.5)
    fitted = Fitted.of(replace(info, temperature=3.0, threshold=0.75), moved)
    assert fitted.info(info) == replace(info, temperature=3.0, threshold=0.75)
    again = fitted.scorer(scorer)
    np.testing.assert_array_equal(again(maps), moved(maps))
    assert (again(maps) != scorer(maps)).any()
    assert Fitted.of(info, None).scorer(None) is None
    np.testing.assert_array_equal(scorer.ranked_among(maps[30:])(maps), scorer(maps))
