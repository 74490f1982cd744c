"""What deploy/ and the workflows name exists: metrics, settings, routes, files; and all of it is pinned."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import ROOT

import api
from spectacles.server.protocols.dispatch import Protocols
from spectacles.server.telemetry import Metrics

DEPLOY = ROOT / "deploy"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MANIFESTS = [*sorted((DEPLOY / "kubernetes" / "base").glob("*.yaml")), DEPLOY / "kserve" / "inferenceservice.yaml"]
USER = 10001


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def values(tree: Any, key: str) -> list[Any]:
    """Of a key, wherever it stands."""
    if isinstance(tree, list):
        return [found for each in tree for found in values(each, key)]
    if not isinstance(tree, dict):
        return []
    here = [tree[key]] if key in tree else []
    return here + [found for each in tree.values() for found in values(each, key)]


def test_board_and_alerts_ask_for_metrics_of_the_server() -> None:
    metrics = Metrics(lambda: 0)
    metrics.finish("/predict", 200, 0.1)
    metrics.stages("queue").observe(0.1)
    metrics.predictions("cat").inc()
    known = set(re.findall(r"^(spectacles_\w+)", metrics.exposition()[0].decode(), re.MULTILINE))
    board = json.loads((DEPLOY / "grafana" / "boards" / "spectacles.json").read_text(encoding="utf-8"))
    asked = values(board, "expr") + values(documents(DEPLOY / "prometheus" / "alerts.yml"), "expr")
    names = {name for expression in asked for name in re.findall(r"spectacles_\w+", expression)}
    assert len(asked) > 15 and len(names) >= 8 and names <= known


def test_settings_that_are_set_exist() -> None:
    settings = (ROOT / "spectacles" / "server" / "settings.py").read_text(encoding="utf-8")
    known = {f"SPECTACLES_{name}" for name in re.findall(r'value\("(\w+)"', settings)}
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".json"]
    named = {name for path in files for name in re.findall(r"SPECTACLES_[A-Z_]+[A-Z]", path.read_text("utf-8"))}
    assert len(named) >= 8 and named - {"SPECTACLES_PORT"} <= known  # named for not being one


def test_probes_ask_for_routes_that_need_no_key() -> None:
    own = {"/health/live", "/health/ready"}
    assert own <= set(api.app.openapi()["paths"])
    probes = {get["path"] for path in MANIFESTS for get in values(documents(path), "httpGet")}
    assert probes > own and all(path in own or Protocols(["open_inference"]).is_open(path) for path in probes)
    assert re.findall(r"8000(/health/\w+)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8")) == ["/health/ready"]


def test_nothing_runs_as_root_or_writes_into_the_image() -> None:
    for path in DEPLOY.glob("Dockerfile*"):
        assert f"USER {USER}:{USER}" in path.read_text(encoding="utf-8"), path
    for path in (DEPLOY / "kubernetes" / "base" / "deployment.yaml", DEPLOY / "kserve" / "inferenceservice.yaml"):
        found = documents(path)
        assert values(found, "runAsUser") == [USER] and values(found, "runAsNonRoot") == [True]
        assert values(found, "readOnlyRootFilesystem") == [True] and values(found, "drop") == [["ALL"]]
    [compose] = documents(DEPLOY / "compose.yaml")
    assert compose["services"]["server"]["read_only"] is True


def test_files_that_dockerfiles_and_compose_name_exist() -> None:
    for path in DEPLOY.glob("Dockerfile*"):
        text = re.sub(r"--\S+", "", path.read_text(encoding="utf-8"))
        for sources in re.findall(r"^COPY +(.+) \S+$", text, re.MULTILINE):
            assert all(next(ROOT.glob(each.lstrip("/")), None) or each.startswith("/") for each in sources.split()), (
                path
            )
    [compose] = documents(DEPLOY / "compose.yaml")
    mounts = [volume for service in compose["services"].values() for volume in service.get("volumes", [])]
    local = [mount.partition(":")[0] for mount in mounts if mount.startswith("./")]
    assert local and all((DEPLOY / each).exists() for each in local)
    needed = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    given = set(re.findall(r"^(\w+)=", (DEPLOY / "example.env").read_text(encoding="utf-8"), re.MULTILINE))
    assert needed <= given
    images = [image for image in values(compose, "image") if not image.startswith("spectacles-")]
    assert len(images) == 6 and all(re.search(r":\D*\d+\.?\d*", image) for image in images), "pinned to a version"


@pytest.mark.process
def test_another_model_is_another_deployment() -> None:
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent))
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    made = []
    for name in ("base", "next-model"):
        done = subprocess.run(
            [kubectl, "kustomize", DEPLOY / "kubernetes" / name], capture_output=True, text=True, check=True
        )
        made.append({each["kind"]: each for each in yaml.safe_load_all(done.stdout)})
    base, following = made
    assert [kind for kind in base if base[kind] != following[kind]] == ["ConfigMap", "Deployment"]
    name = following["ConfigMap"]["metadata"]["name"]
    assert {"name": name} in values(following["Deployment"], "configMapRef")
    assert following["ConfigMap"]["data"]["SPECTACLES_BUNDLE"] != base["ConfigMap"]["data"]["SPECTACLES_BUNDLE"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_pinned_and_may_do_nothing_but_read(path: Path) -> None:
    [workflow] = documents(path)
    uses = re.findall(r"uses: (\S+)(.*)", path.read_text(encoding="utf-8"))
    assert uses and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action, _ in uses)
    assert all(re.fullmatch(r" # v\d+\.\d+\.\d+", version) for _, version in uses)
    assert workflow["permissions"] == {}
    assert all(job["permissions"] == {"contents": "read"} for job in workflow["jobs"].values())
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)", "\n".join(values(workflow, "run"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
