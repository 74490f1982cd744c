"""Settings for all tests."""

import logging
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# The machine may be busy: how long an example takes says nothing about the code.
settings.register_profile("spectacles", deadline=None)
settings.load_profile("spectacles")

if TYPE_CHECKING:
    from spectacles.models.ood import OODScorer


COSTLY = {"e2e": "process", "server": "server", "stages": "slow"}
"""Folder -> the marker of all its tests, for `make quick` to leave out; single modules and tests carry their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: at the end, small ones keep every worker busy."""
    items.sort(key=lambda item: item.path.parent.name not in COSTLY)  # the order is kept otherwise
    for item in items:
        if marker := COSTLY.get(item.path.parent.name):
            item.add_marker(marker)
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture(autouse=True)
def _warnings_are_logged() -> None:
    """Whatever a library, or an earlier test, has silenced in this process."""
    log = logging.getLogger("spectacles")
    logging.disable(logging.NOTSET)
    log.disabled, log.propagate = False, True
    if log.level > logging.WARNING:
        log.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Networks of a few kilobytes are slower on several threads than on one."""
    import torch  # not above: tests that need no torch start without it

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _torch_engine() -> Iterator[None]:
    """Building and measuring other engines takes seconds: tests of engines select theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTACLES_ENGINE", "torch")
        yield


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training leaves out the seconds that exporting its network takes, where only torch runs the bundle."""
    from spectacles.models.bundle_export import Exported
    from spectacles.training import finalize

    monkeypatch.setattr(finalize.bundle_export, "export", lambda *_: Exported(None, "the test does without"))


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Gives a folder that holds so much ('2m', '40k') and no more; skips where that cannot be made."""
    folder = tmp_path / "disk"

    def mount(size: str) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("no file system can be mounted here")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the bundle of a tiny net with random weights for these classes, 32 px, and returns its folder. `facts`
    replace values of its BundleInfo. Without `exported`, only torch can run it."""
    import torch

    from spectacles.data.preprocessing import Preprocessing
    from spectacles.models import backbones
    from spectacles.models.bundle import BundleInfo, save_bundle
    from spectacles.models.bundle_export import Exported
    from spectacles.models.classifier import Classifier

    def make(
        *classes: str,
        ood_scorer: "OODScorer | None" = None,
        exported: Exported = Exported(None, "nobody exported it"),  # noqa: B008 - frozen
        **facts: object,
    ) -> Path:
        torch.manual_seed(0)
        classifier = Classifier(backbones.build("simple_cnn", 3, 32), 128, len(classes), dropout=0.0)
        info = BundleInfo(
            backbone="simple_cnn",
            classes=classes,
            label_column="label",
            preprocessing=Preprocessing(32, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3),
            feature_dim=128,
            dropout=0.0,
            threshold=None,
            temperature=1.0,
            data_fingerprint="f" * 64,
            training_profile={},
            class_shares=(1 / len(classes),) * len(classes),
            metric="accuracy",
            metric_value=0.5,
            epoch=1,
            phase="head",
        )
        folder = tmp_path_factory.mktemp("bundle")
        tensors = classifier.state_dict() | (ood_scorer.tensors() if ood_scorer else {}) | exported.tensors
        save_bundle(folder, replace(info, **facts), tensors, exported.content, exported.reason)
        return folder

    return make
