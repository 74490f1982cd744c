"""The report and the model card as a reader sees them: parsed, not searched for strings of their source."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

from made_up_run import MadeUp
from PIL import Image

from spectacles.report import html_report

VOID = {"meta", "img", "br", "wbr", "line", "polyline"}


class Page(HTMLParser):
    """Elements with their attributes, text by the id that it stands under, and that every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str | None]] = []
        self.texts: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self.open:
            if name:
                self.texts[name] = self.texts.get(name, "") + data
        if any(tag in ("td", "th") for tag, _ in self.open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, name: str) -> str:
        return " ".join(self.texts[name].split())

    def images(self) -> list[str]:
        return [str(attributes["src"]) for attributes in self.all("img")]

    def row(self, first: str) -> list[str]:
        return next(cells for row in self.rows if (cells := [" ".join(c.split()) for c in row])[0].startswith(first))


def write(run: MadeUp) -> Page:
    return Page(html_report.write(run.run_dir))


def assert_sound(page: Page, folder: Path) -> None:
    """Links lead somewhere, nothing is fetched or run, pictures are in the page and carry nothing but pixels."""
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        target = str(link["href"])
        assert target.removeprefix("#") in ids if target.startswith("#") else (folder / target).is_file(), target
    assert page.all("script") == page.all("link") == page.all("iframe") == page.all("form") == []
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    for image in page.all("img"):
        assert "alt" in image
    for source in page.images():
        head, _, content = source.partition(",")
        assert head == "data:image/webp;base64"
        with Image.open(BytesIO(base64.b64decode(content))) as picture:
            assert not picture.getexif()
            assert not {"exif", "icc_profile", "xmp"} & set(picture.info)
    addressed = [attributes for _, attributes in page.elements if {"src", "srcset", "data", "action"} & set(attributes)]
    assert all(attributes.keys() & {"src"} for attributes in addressed)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def charts(run: MadeUp) -> list[str]:
    return ["explore/contact.png", "train/curves.png", "evaluate/roc.png"]


PUNCTUATION = r"\\([!-/:-@\[-`{-~])"


def read(text: str) -> str:
    """Text as Markdown shows it: backslashes before punctuation are taken away (CommonMark 2.4)."""
    return re.sub(PUNCTUATION, r"\1", text)


def cells(line: str) -> list[str]:
    """Of a table's row, as GitHub's tables are read: a bar after a backslash is text."""
    parts = re.findall(r"(?:\\.|[^|\\])+", line.strip().removeprefix("|").removesuffix("|"))
    return [read(part).strip() for part in parts]


def section(card: str, name: str) -> str:
    return card.split(f"\n## {name}\n")[1].split("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    return {cells(line)[0]: cells(line)[1:] for line in text.splitlines() if line.startswith("|")}
