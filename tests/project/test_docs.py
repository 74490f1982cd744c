"""Commands, flags, links and pictures in the pages exist, and no section is longer than a screen."""

import argparse
import math
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import jsonargparse
import pages
import pytest
from pages import PAGES, ROOT
from PIL import Image

import api
import predict
from spectacles import cli
from spectacles.core.config import (
    BenchmarkConfig,
    DatasetConfig,
    ErrorAnalysisConfig,
    EvaluateCommand,
    ExploreConfig,
    ExportConfig,
    PipelineConfig,
    PredictCommand,
    TrainConfig,
)

CONFIGS = {
    "run_pipeline.py": PipelineConfig, "dataset.py": DatasetConfig, "explore.py": ExploreConfig,
    "train.py": TrainConfig, "evaluate.py": EvaluateCommand, "error_analysis.py": ErrorAnalysisConfig,
    "predict.py": PredictCommand, "benchmark.py": BenchmarkConfig,
    "export.py": ExportConfig,
}  # fmt: skip
OUTSIDE = {"pip", "mlflow", "ray", "source", "granian", "nginx", "docker", "kubectl", "cp", "trtexec"}
"""Commands of others, which only blocks with a reason may hold."""
FLAGS_OF_OTHERS = {"workers", "generate", "root", "build"}
BLOCKS = pages.blocks()
names_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


class Parsed(BaseException):
    """The command line was understood."""


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands name must be there when they are parsed."""
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text("epochs: 3\n", encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*type hint is inferred as AnyType")  # of MLflow, where its peer is imported
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # another test has imported what is run here
@pytest.mark.usefixtures("settings_file")
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}-{block.content[:30]!r}")
def test_every_command_is_understood_or_has_a_reason_not_to_be_run(
    block: pages.Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block.info in pages.NOT_COMMANDS:
        return
    assert re.fullmatch(r"sh( run| not-run: .{10,})?", block.info), "mark the block: sh, sh run or sh not-run: REASON"
    for environment, words in block.commands():
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        understand(words, bool(block.reason), monkeypatch)


def understand(words: list[str], has_reason: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails for a command that its own parser rejects, and for one that is not known here."""
    name, rest = words[0], words[1:]
    if name in ("torchrun", "srun"):
        assert has_reason
        place = next(number for number, word in enumerate(words) if word.endswith(".py"))
        name, rest = "python", words[place:]
    if name == "python":
        run_parser(rest, monkeypatch)
    elif name == "make":
        check_make(rest)
    elif name == "curl":
        check_request(rest)
    elif name == "uvicorn":
        assert rest == ["api:app"] and api.app
    else:
        assert name in OUTSIDE and has_reason, f"{name}: no test covers this command"


def run_parser(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "-m":
        parse_module(words[1], words[2:], monkeypatch)
    elif words[0] == "api.py":
        parse_module("api", words[1:], monkeypatch)
    else:
        parse_script(words[0], words[1:])


def parse_script(script: str, arguments: list[str]) -> None:
    config_class = CONFIGS[script]
    ended: object = 0
    try:
        if script == "predict.py":
            predict.parse(arguments)
        else:
            cli.parse(config_class, arguments, "")
    except SystemExit as end:  # --help, --print_config
        ended = end.code
    assert not ended, (script, arguments)


def parse_module(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if module == "venv":
        return
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            patch.setattr(parser, "parse_args", stopping_after(parser.parse_args))
        with pytest.raises(Parsed):
            runpy.run_module(module, run_name="__main__")


def stopping_after(parse: Callable[..., object]) -> Callable[..., None]:
    def parse_args(*args: object, **kwargs: object) -> None:
        parse(*args, **kwargs)
        raise Parsed

    return parse_args


def check_make(words: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        variable, sign, _ = word.partition("=")
        assert not sign or re.search(rf"\$\((if \$\()?{variable}\)|^{variable} \?=", makefile, re.MULTILINE), word
    if shutil.which("make"):
        command = ["make", "--dry-run", "--silent", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def check_request(words: Sequence[str]) -> None:
    [url] = [word for word in words if word.startswith("http://127.0.0.1:8000/")]
    form = [words[place + 1].partition("=")[0] for place, word in enumerate(words) if word == "-F"]
    operation = api.app.openapi()["paths"][url.removeprefix("http://127.0.0.1:8000")]["post"]
    [content] = operation["requestBody"]["content"].values()
    assert form and set(form) <= set(content["schema"]["properties"])


def test_most_commands_need_no_excuse() -> None:
    assert sum(block.runs for block in BLOCKS) >= 3
    readme = [block for block in BLOCKS if block.page == "README.md"]
    assert sum(bool(block.reason) for block in readme) == 1  # what installs


@names_page
def test_links_and_pictures_exist(path: Path) -> None:
    text = pages.prose(path)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"src=\"([^\"]+)\"", text)
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        name, _, fragment = target.partition("#")
        file = path.parent / name if name else path
        assert file.is_file(), target
        if fragment:
            assert fragment in {pages.anchor(heading) for heading, _ in pages.sections(file)}, target


@names_page
def test_pictures_are_small_and_described(path: Path) -> None:
    for tag in re.findall(r"<img[^>]+>", pages.prose(path)):
        assert re.search(r'alt="[^"]{20,}"', tag), tag
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 200_000, picture
        assert any(f"{picture.name}" in pages.prose(page) for page in PAGES), f"{picture}: no page shows it"


@names_page
def test_every_flag_and_variable_exists(path: Path) -> None:
    if path.name == "CHANGELOG.md":  # names what is gone, too
        return
    text = pages.prose(path)
    known = {field.name for config in CONFIGS.values() for field in fields(config)} | {"config", "print_config", "help"}
    modules = [ROOT / "spectacles" / name for name in ("sample_data/__main__.py", "tracking/registry.py")]
    sources = [ROOT / "api.py", *(ROOT / "benchmarks").glob("*.py"), *modules]
    known |= {flag for file in sources for flag in re.findall(r'add_argument\(\s*"--(\w+)"', file.read_text("utf-8"))}
    known |= {f"no_{name}" for name in known} | FLAGS_OF_OTHERS
    assert set(re.findall(r"(?<![\w-])--([a-z]\w+)", text)) <= known
    settings = (ROOT / "spectacles" / "server" / "settings.py").read_text("utf-8")
    variables = set(re.findall(r"SPECTACLES_([A-Z_]*[A-Z])", text))
    assert variables <= {name.upper() for name in known} | set(re.findall(r'"([A-Z_]+)"', settings))


def test_the_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


SCREEN, LINE, LETTERS = 45, 24, 110
"""Lines of a section at most, pixels of a line, and letters of a line at the width that GitHub gives a page."""


@names_page
def test_no_section_is_longer_than_a_screen(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        return
    for heading, text in pages.sections(path):
        assert lines_of(text, path.parent) <= SCREEN, f"{path.name}: {heading}"


def lines_of(section: str, folder: Path) -> float:
    """About how many lines it takes on the screen."""
    lines = 2.0  # the heading
    for match in pages.FENCE.finditer(section):
        lines += match["content"].count("\n") + 1.5
    for paragraph in re.split(r"\n\s*\n", pages.FENCE.sub("", section)):
        if image := re.search(r'src="([^"]+)" width="(\d+)"', paragraph):
            lines += height(folder / image[1], int(image[2])) / LINE + 0.7
        elif paragraph.startswith("|"):
            rows = [row for row in paragraph.splitlines() if not set(row) <= set("|- :")]
            lines += sum(0.5 + math.ceil(len(row) / LETTERS) for row in rows) + 0.7
        elif paragraph.strip():
            items = re.split(r"\n(?=[-*] |\d+\. )", paragraph.strip())
            lines += sum(math.ceil(len(" ".join(item.split())) / LETTERS) + 0.2 for item in items) + 0.7
    return lines


def height(picture: Path, width: int) -> float:
    if picture.suffix == ".svg":
        size = re.search(r'<svg[^>]+viewBox="0 0 (\d+) (\d+)"', picture.read_text(encoding="utf-8"))
        assert size
        return width * int(size[2]) / int(size[1])
    with Image.open(picture) as image:
        return width * image.height / image.width


def test_the_picture_and_the_table_of_rooms_show_every_room() -> None:
    rooms = {path.parent.name for path in (ROOT / "spectacles").glob("*/__init__.py")} | {"cli"}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == rooms
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    drawn = {word: int(y) for y, word in re.findall(r'y="(\d+)" [^>]*class="m">(\w+)</text>', picture)}
    assert rooms <= set(drawn)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    heights = [{drawn[room.strip()] for room in layer.split("|")} for layer in layers]
    assert all(len(level) == 1 for level in heights) and sorted(map(min, heights)) == list(map(min, heights))


def test_versions_in_the_readme_are_those_that_are_required() -> None:
    required = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE))
    named = re.findall(r"\b([a-z]\w+)==([\w.]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert named and all(required[name] == version for name, version in named)


def test_every_root_script_has_its_place_in_the_pages() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert {path.name for path in ROOT.glob("*.py")} == set(re.findall(r"^\| `(\w+\.py)` \|", page, re.MULTILINE))
