"""A network loses channels, learns again, and is exported only if it is as accurate as before."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_run import data_of
from pictures import write_rows

import export
from spectacles.core.config import ExportConfig
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir, create_run
from spectacles.export import pruning
from spectacles.export.shipped import Shipped
from spectacles.models import engines
from spectacles.models.bundle import load_bundle
from spectacles.models.classifier import load_classifier
from spectacles.models.feature_blocks import Taps

pytestmark = pytest.mark.skipif(not engines.is_installed("torch_pruning"), reason="torch-pruning is not installed")
HALF = ExportConfig(formats="torchscript", prune=0.5)


@pytest.fixture
def make_run(
    tmp_path: Path, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunDir]:
    """A run after training, with 16 training photos and eight others."""
    monkeypatch.setattr(pruning, "EPOCHS", 1)

    def make(**facts: object) -> RunDir:
        made = create_run(tmp_path / "outputs", "run")
        rows = write_rows(tmp_path / "photos", 24).assign(group="", id="", cluster=range(24))
        rows["split"] = ["train"] * 16 + ["val"] * 8
        rows["label"] = ["cat", "dog"] * 12
        rows["file"] = [Path(path).name for path in rows["path"]]
        made.splits.parent.mkdir(parents=True)
        rows.to_csv(made.splits, index=False)
        shutil.copytree(make_bundle("cat", "dog", **facts), made.bundle)
        made.save_result("dataset", data_of({"train": {"cat": 8, "dog": 8}}))
        return made.for_stage("export")

    return make


def test_whole_channels_go_and_the_network_still_answers(make_run) -> None:
    classifier, info, _ = load_classifier(make_run().bundle)
    before = copy.deepcopy(classifier.state_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (16, *info.preprocessing.shape), dtype=np.uint8)
    smaller = pruning.without_channels(classifier, 0.5, info, pixels)
    widths = [module.out_channels for module in smaller.modules() if isinstance(module, torch.nn.Conv2d)]
    assert widths == [16, 32, 64] and smaller.head.in_features == 64 and smaller.head.out_features == 2
    assert all(torch.equal(before[name], values) for name, values in classifier.state_dict().items())


def test_the_pruned_network_is_exported_in_the_place_of_the_whole_one(make_run) -> None:
    made = make_run()
    model_id = load_bundle(made.bundle).model_id
    report = export.run(HALF, made)
    assert [file.objection for file in report.files] == [""]
    assert report.summary[0].startswith("pruned by 50.0 %: 0.36 million parameters became 0.09; accuracy ")
    assert report.files[0].megabytes < 0.6
    folder = made.path / "export"
    assert json.loads((folder / "parity.json").read_text())["model_id"] == report.model_id == f"{model_id}-pruned-50"
    assert {path.name for path in folder.iterdir()} == {"torchscript-fp32.ts", "labels.txt", "parity.json"}
    assert load_bundle(made.bundle).model_id == model_id


def test_batch_norm_has_statistics_of_the_photos(make_run) -> None:
    """Where it was constant, a network without half of its channels would give the same answer to every photo."""
    made = make_run()
    classifier, info, model_id = load_classifier(made.bundle)
    pruned, _ = pruning.prune(Shipped(classifier, info, model_id, made.bundle), 0.5, made)
    norms = [module for module in pruned.classifier.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 3 and all(norm.running_mean.ne(0).any() and norm.running_var.ne(1).all() for norm in norms)


def test_what_is_less_accurate_is_not_exported(make_run, monkeypatch) -> None:
    made = make_run()
    monkeypatch.setattr(pruning, "SIGNIFICANT", 2.0)
    with pytest.raises(UserError, match=r"pruned by 50.0 %.* it is less accurate \(p = .*\)\. Use a lower --prune"):
        export.run(HALF, made)
    assert not list((made.path / "export").iterdir())


def test_an_accuracy_below_the_interval_is_an_objection() -> None:
    def objection(accuracy: float, p_worse: float) -> str:
        return pruning.Comparison(accuracy, 0.97, (0.95, 0.99), p_worse).objection

    assert objection(0.951, 0.2) == "" and objection(0.98, 1.0) == ""
    assert objection(0.949, 0.2) == "its accuracy is below that interval"
    assert objection(0.96, 0.01) == "it is less accurate (p = 0.01)"


def test_what_cannot_be_pruned_is_named(make_run, monkeypatch) -> None:
    made = make_run()
    classifier, info, model_id = load_classifier(made.bundle)
    several = Shipped(classifier, replace(info, taps=Taps(means={"blocks.1": 64}, grids={})), model_id, made.bundle)
    with pytest.raises(UserError, match=r"--prune is for networks that were fine-tuned"):
        pruning.prune(several, 0.5, made)
    monkeypatch.setattr(pruning.engines, "is_installed", lambda name: False)
    with pytest.raises(UserError, match=r"--prune takes torch-pruning: pip install -r requirements-export\.txt"):
        export.run(HALF, made)
