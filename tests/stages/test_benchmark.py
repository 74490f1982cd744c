"""Costs against formulas worked out by hand, and a benchmark that survives the backbones it cannot measure."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_noise
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import benchmark
import model
from spectacles import cli
from spectacles.core.config import BenchmarkConfig, TrainConfig
from spectacles.core.errors import UserError
from spectacles.models import recipes
from spectacles.training import profiling
from spectacles.training.profiling import Profile

TINY = BenchmarkConfig(
    backbone="simple_cnn", no_pretrained=True, image_size=32, batch_size=8, device="cpu", epochs=1, engine="torch"
)
SIDE, CLASSES = 32, 3
# 3x3 convolutions without bias, each followed by BatchNorm (2 learn per channel) and pooling; Linear + BatchNorm; head.
CONVS = ((3, 32, SIDE), (32, 64, SIDE // 2), (64, 128, SIDE // 4))
FLAT = 128 * (SIDE // 8) ** 2
PARAMETERS = sum(9 * i * o + 2 * o for i, o, _ in CONVS) + (FLAT + 1) * 128 + 2 * 128 + 129 * CLASSES
MACS = sum(9 * i * o * side**2 for i, o, side in CONVS) + FLAT * 128 + 128 * CLASSES


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process and without MLflow, which take seconds each; the end-to-end test has both."""
    monkeypatch.setattr(profiling, "run_isolated", lambda function, *args: function(*args))
    monkeypatch.setattr(profiling, "LATENCY_CALLS", 5)
    monkeypatch.setattr(benchmark.tracking, "_start_sender", lambda _: None)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    settings = recipes.resolve(benchmark.select(TINY, TrainConfig))
    return profiling.profile(settings, model.build, CLASSES, tmp_path_factory.mktemp("memory") / "engine.json")


def test_parameters_and_macs_are_those_of_the_formula(profile: Profile) -> None:
    assert (profile.parameters, profile.macs) == (PARAMETERS, MACS)


def test_the_size_is_that_of_the_file(profile: Profile, tmp_path: Path) -> None:
    classifier, _ = model.build(TINY, CLASSES)
    save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    assert profile.weights_mb == pytest.approx((tmp_path / "weights.safetensors").stat().st_size / 1e6, rel=0.01)


def test_times_and_memory_are_plausible(profile: Profile) -> None:
    assert 0 < profile.latency_p50_ms <= profile.latency_p95_ms <= profile.latency_p99_ms
    assert 0 < profile.training_images_per_second < profile.embedding_images_per_second
    assert profile.batch32_images_per_second > 0
    assert profile.engine == "torch"
    assert 100 < profile.peak_memory_mb < 100_000
    assert (profile.image_size, profile.unfreeze) == (32, "all")


@pytest.mark.parametrize("groups", [1, 4])
def test_grouped_convolutions_count_their_own_channels_only(groups: int) -> None:
    network = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    assert profiling.count_macs(network, (8, 20, 20)) == 16 * (8 // groups) * 9 * 10 * 10


def test_attention_is_counted() -> None:
    """Two products of queries, keys and values (T, D) besides the linear layers (Dosovitskiy et al. 2020)."""
    config = TrainConfig(backbone="test_vit", no_pretrained=True, image_size=160)
    backbone = model.build(config, CLASSES)[0].backbone
    width, tokens, channels = backbone.embed_dim, backbone.pos_embed.shape[1], 3
    linear = sum(
        layer.weight.numel() for block in backbone.blocks for layer in block.modules() if isinstance(layer, nn.Linear)
    )
    patches = (tokens - 1) * backbone.patch_embed.proj.weight.numel()
    attention = len(backbone.blocks) * 2 * tokens**2 * width
    assert profiling.count_macs(backbone, (channels, 160, 160)) == patches + tokens * linear + attention


@pytest.mark.parametrize(("pause", "limit", "expected"), [(0, 5.0, 100), (0.0005, 0.001, 20)])
def test_slow_calls_are_timed_less_often(pause: float, limit: float, expected: int, monkeypatch) -> None:
    monkeypatch.setattr(profiling, "MAX_SECONDS", limit)
    calls: list[int] = []

    def run(pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        torch.ones(10).sum() if not pause else profiling.time.sleep(pause)
        return pixels

    times = profiling.seconds_per_call(run, np.zeros((2, 1)), 100)
    assert len(times) == expected == len(calls) - 3
    assert (times > 0).all()


def test_backbones_are_taken_from_the_list_once_each_or_else_the_one() -> None:
    assert benchmark.backbone_names(replace(TINY, backbones=" a, b,a,,c ")) == ["a", "b", "c"]
    assert benchmark.backbone_names(TINY) == ["simple_cnn"]
    with pytest.raises(UserError, match="--backbones"):
        benchmark.backbone_names(replace(TINY, backbones=" ,"))


def test_what_cannot_be_measured_is_a_row_with_its_reason_and_stops_no_other(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "spectacles")
    config = replace(TINY, output_dir=tmp_path, backbones="no_such_net,simple_cnn", run_name="b")
    done = benchmark.run(config)
    table = pd.read_csv(done.path / "benchmark.csv", keep_default_na=False).set_index("backbone")
    assert tuple(pd.read_csv(done.path / "benchmark.csv").columns) == profiling.COLUMNS
    assert "not a model that timm knows" in table.loc["no_such_net", "problem"]
    assert table.loc["no_such_net", "parameters"] == ""
    assert table.loc["simple_cnn", "problem"] == ""
    assert int(table.loc["simple_cnn", "macs"]) == MACS - 128  # two classes where there are no data
    assert "no_such_net: not measured" in caplog.text
    with Image.open(done.path / "benchmark.png") as picture:
        assert picture.format == "PNG"


def test_where_nothing_could_be_measured_the_reasons_are_kept_and_it_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--backbones", "nothing,simple_cnn", "--device", "cpu", "--output_dir", str(tmp_path), "--run_name", "b"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        cli.start("benchmark", benchmark.parse)
    assert stopped.value.code == 2
    assert "none of the backbones" in capsys.readouterr().err
    problems = pd.read_csv(tmp_path / "b" / "benchmark.csv")["problem"]
    assert problems.str.contains("no pretrained weights").tolist() == [False, True]


def test_an_internal_error_keeps_its_traceback_in_the_log(tmp_path: Path, monkeypatch) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(profiling, "profile", explode)
    with pytest.raises(UserError):
        benchmark.run(replace(TINY, output_dir=tmp_path, run_name="b"))
    assert "ZeroDivisionError: oops" in pd.read_csv(tmp_path / "b" / "benchmark.csv")["problem"][0]
    assert "Traceback" in (tmp_path / "b" / "run.log").read_text()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_noise(folder, [f"{label}/{number}.png" for label in ("a", "b", "c") for number in range(14)])
    return folder


def test_given_data_each_backbone_is_trained_and_scored_on_validation_data_only(photos: Path, tmp_path: Path) -> None:
    config = replace(TINY, output_dir=tmp_path, run_name="b", image_dir=photos)
    done = benchmark.run(config)
    row = pd.read_csv(done.path / "benchmark.csv").iloc[0]
    own = done.path / "simple_cnn"
    predictions = pd.read_csv(own / "evaluate" / "predictions.csv")
    assert set(predictions["split"]) == {"val"}
    assert row["accuracy"] == pytest.approx((predictions["label"] == predictions["predicted"]).mean())
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    assert row["val_images"] == len(predictions)
    assert row["parameters"] == PARAMETERS
    assert row["train_seconds"] == json.loads((own / "train" / "result.json").read_text())["train_seconds"]
    assert "test" in set(pd.read_csv(done.path / "data" / "dataset" / "splits.csv")["split"])
    assert not (tmp_path / "latest").exists(), "other commands do not continue a benchmark"


def test_a_mistake_in_the_data_ends_the_benchmark_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("must not be reached"))
    with pytest.raises(UserError, match=r"missing\.csv"):
        benchmark.run(replace(TINY, output_dir=tmp_path, run_name="b", train_csv=tmp_path / "missing.csv"))


def test_going_on_measures_only_what_is_missing(tmp_path: Path, monkeypatch) -> None:
    first = replace(TINY, output_dir=tmp_path, run_name="b")
    before = pd.read_csv(benchmark.run(first).path / "benchmark.csv")
    with pytest.raises(UserError, match="--resume"):
        benchmark.run(first)
    monkeypatch.setattr(profiling, "profile", lambda *_: pytest.fail("was measured"))
    after = pd.read_csv(benchmark.run(replace(first, resume=True)).path / "benchmark.csv")
    pd.testing.assert_frame_equal(before, after)
    with pytest.raises(UserError, match="--run_name"):
        benchmark.run(replace(first, resume=True, run_name=None))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_frontier_holds_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    costs, gains = np.array(points, dtype=float).T
    best = profiling.pareto_front(costs, gains)
    on = {points[place] for place in best}
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] >= p[1]}
    assert on == set(points) - beaten
    assert [points[place] for place in best] == sorted(on)


@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize("trained", [False, True])
def test_every_table_can_be_drawn(profile: Profile, count: int, trained: bool, tmp_path: Path) -> None:
    scored = {"accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.95} if trained else {}
    rows = [
        {
            **vars(profile),
            **scored,
            "backbone": f"$net_{n}$",
            "problem": "",
            "latency_p50_ms": 1.0 + n,
            "parameters": 10**n + 1,
        }
        for n in range(count)
    ]
    table = profiling.to_table([*rows, {"backbone": "none", "problem": "unknown"}])
    with Image.open(profiling.plot(table, tmp_path / "plot.png")) as picture:
        assert np.asarray(picture.convert("L")).min() < 160
    lines = profiling.readable(table)
    assert len(lines) == count + bool(count) + 1
    assert lines[-1].startswith("none: not measured: unknown")
    assert ("accuracy" in lines[0]) == (trained and count > 0)
