"""The project's pages: their sections, fenced blocks and commands."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *sorted(ROOT.glob("docs/*.md")),
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
)
NOT_COMMANDS = ("json", "text", "yaml")
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. Of commands the info string is `sh`, `sh run` (a test runs them for real) or
    `sh not-run: REASON`."""

    page: str
    info: str
    content: str

    @property
    def runs(self) -> bool:
        return self.info == "sh run"

    @property
    def reason(self) -> str:
        """Why no test runs it; '' otherwise."""
        return self.info.partition("not-run: ")[2]

    def commands(self) -> Iterator[tuple[dict[str, str], list[str]]]:
        """(environment, words) of each command; comments and redirections are left out."""
        for line in self.content.replace("\\\n", " ").splitlines():
            for part in re.split(r" && ", line):
                words = shlex.split(part, comments=True)
                if ">" in words:
                    words = words[: words.index(">")]
                environment = {}
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    name, _, value = words.pop(0).partition("=")
                    environment[name] = value
                if words:
                    yield environment, words


def blocks() -> list[Block]:
    return [
        Block(path.relative_to(ROOT).as_posix(), match["info"].strip(), match["content"])
        for path in PAGES
        for match in FENCE.finditer(path.read_text(encoding="utf-8"))
    ]


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def sections(path: Path) -> list[tuple[str, str]]:
    """(heading, text up to the next heading), fenced blocks included."""
    text = FENCE.sub(lambda match: match[0].replace("\n#", "\n\\#"), path.read_text(encoding="utf-8"))
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
