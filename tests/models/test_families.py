"""Backbones of every family of timm embed, learn and are exported, or the pages say what does not work."""

from pathlib import Path

import families
import pytest
import timm
from command_line import ROOT

pytestmark = pytest.mark.slow

SAMPLE = ("test_convnext", "test_efficientnet", "test_vit", "test_coatnet", "efficientvit_m0", "xcit_nano_12_p8_224")
"""Convolutions, attention with positions, windows and classes of their own."""


def test_every_family_of_timm_is_named() -> None:
    assert set(families.SMALLEST) == set(timm.list_modules())


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_backbones_embeds_learns_and_is_exported(name: str) -> None:
    assert not families.check(name, for_bundle=True)


FAMILIES = pytest.mark.parametrize("family", sorted(set(families.SMALLEST) - set(families.TOO_LARGE)))


@pytest.mark.families
@FAMILIES
def test_every_family_embeds_learns_and_is_exported_quickly(family: str) -> None:
    check(families.SMALLEST[family], False, families.NOT_QUICKLY)


@pytest.mark.families
@pytest.mark.bundles
@FAMILIES
def test_every_family_embeds_learns_and_is_exported_for_a_bundle(family: str) -> None:
    check(families.SMALLEST[family], True, families.WITHOUT_ONNX)


def check(name: str, for_bundle: bool, failing: dict[str, str]) -> None:
    reason, expected = families.check(name, for_bundle), failing.get(name, "")
    assert expected in reason and bool(reason) == bool(expected), reason


def test_the_pages_name_what_does_not_work() -> None:
    page = Path(ROOT, "docs", "training.md").read_text(encoding="utf-8")
    section = page.partition("## Backbones and weights")[2].partition("\n## ")[0]
    for name in (*families.WITHOUT_ONNX, *families.NOT_QUICKLY, *families.TOO_LARGE.values()):
        assert f"`{name}`" in section
