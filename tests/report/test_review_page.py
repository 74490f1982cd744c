"""The page as a file: names stay text, no other host is contacted, and it stays small."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import photo
from PIL import Image

from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir
from spectacles.data.schemas import LABEL_FIXES
from spectacles.report import review_page
from spectacles.report.review_page import Review

HOSTILE = [
    "</script><script>alert(1)</script>.png",
    "\"quoted\" & 'quoted', with a comma.png",
    "line\nbreak.png",
    "<!--<img src=x onerror=alert(1)>.png",
    "ünï \u2028 日本 😀 {{ 7*7 }}.png",
]


class Page(HTMLParser):
    """Tags with their attributes, and what stands between script tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.title = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, text: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += text
        if self._inside == "title":
            self.title += text

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def write_page(
    folder: Path,
    names: list[str] = HOSTILE,
    classes: tuple[str, ...] = ("</script>", 'a "b"', "c,d"),
    draw: Callable[[int], Image.Image] = lambda number: photo(number, 24, 24),
    earlier: pd.DataFrame | None = None,
    embed: bool = True,
    run: str = "run",
) -> Path:
    """A page on which every second of `names` is doubtful; each is a photo of its own."""
    rows = pd.DataFrame(
        {
            "file": names,
            "path": [str(folder / f"{number}.png") for number in range(len(names))],
            "label": [classes[n % 2] for n in range(len(names))],
        }
    )
    for number, path in enumerate(rows["path"]):
        draw(number).save(path)
    doubtful = rows.iloc[::2].assign(row=rows.index[::2], suggested_label=classes[-1], split="train")
    doubtful = doubtful.assign(probability_given=0.25, probability_suggested=0.75)
    units = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
    run_dir = RunDir(folder / "outputs" / run)
    none = LABEL_FIXES.empty()
    review = Review(
        run_dir,
        doubtful,
        rows,
        units,
        classes,
        "label",
        multi_label=False,
        earlier=none if earlier is None else earlier,
    )
    return review_page.write(review, folder / "review.html", embed, 1)


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_hostile_names_stay_data(tmp_path: Path) -> None:
    page = read(write_page(tmp_path, run="<b>&\"'"))
    assert [item["file"] for item in page.data["items"]] == HOSTILE[::2]
    assert page.data["classes"] == ["</script>", 'a "b"', "c,d"]
    assert len(page.scripts) == 2
    assert page.title == "Labels to review: <b>&\"'"
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any(tag in ("img", "b", "link", "iframe") for tag, _ in page.tags)


def test_the_policy_allows_only_the_pages_own_script_and_style(tmp_path: Path) -> None:
    text = write_page(tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    [policy] = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(style) == 1
    for directive, content in (("script-src", page.scripts[1]), ("style-src", style[0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[directive] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "http:" not in text and "https:" not in text
    assert not any("style" in attributes for _, attributes in page.tags)


def test_an_item_has_its_photo_labels_and_nearest_neighbours(tmp_path: Path) -> None:
    data = read(write_page(tmp_path)).data
    first = data["items"][0]
    assert (first["label"], first["suggested"]) == ("</script>", "c,d")
    assert (first["given"], first["probability"]) == (0.25, 0.75)
    assert first["photo"].startswith("data:image/webp;base64,")
    near = [data["near"][place]["file"] for place, _ in first["near"]]
    assert sorted(near) == sorted(set(HOSTILE) - {first["file"]})
    similarities = [similarity for _, similarity in first["near"]]
    assert similarities == sorted(similarities, reverse=True)


def test_without_galleries_the_page_links_to_the_photos_and_embeds_none(tmp_path: Path) -> None:
    path = write_page(tmp_path, embed=False)
    page = read(path)
    assert page.data["items"][0]["photo"] == (tmp_path / "0.png").as_uri()
    assert "data:image" not in path.read_text(encoding="utf-8")
    [policy] = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "img-src file:;" in policy


def test_photos_that_compress_badly_stay_within_the_size_limit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(review_page, "PAGE_BYTES", 100_000)
    monkeypatch.setattr(review_page, "NEIGHBOUR_BYTES", 1500)
    rng = np.random.default_rng(0)

    def snow(_: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (700, 300, 3), dtype=np.uint8))

    data = read(write_page(tmp_path, [f"{number}.png" for number in range(20)], draw=snow)).data
    large, small = ([one["photo"] for one in data[kind]] for kind in ("items", "near"))
    assert max(map(len, small)) < 3000
    assert sum(map(len, [*large, *small])) < 110_000


def test_few_photos_are_shown_large_and_never_enlarged(tmp_path: Path) -> None:
    sizes = iter([(1000, 500), (100, 60), (80, 80), (50, 50)])
    data = read(write_page(tmp_path, ["a", "b", "c", "d"], draw=lambda number: photo(number, *next(sizes)))).data
    assert [picture_size(item["photo"]) for item in data["items"]] == [(640, 320), (80, 80)]
    assert max(max(picture_size(one["photo"])) for one in data["near"]) == 112


def picture_size(uri: str) -> tuple[int, int]:
    with Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return picture.size


def test_labels_beyond_the_limit_are_counted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(review_page, "MAX_ITEMS", 2)
    data = read(write_page(tmp_path)).data
    assert len(data["items"]) == 2
    assert data["more"] == 1


def test_a_file_named_by_two_rows_is_listed_once(tmp_path: Path) -> None:
    data = read(write_page(tmp_path, ["a.png", "b.png", "a.png"])).data
    assert [item["file"] for item in data["items"]] == ["a.png"]


def test_without_doubtful_labels_there_is_still_a_page(tmp_path: Path) -> None:
    assert read(write_page(tmp_path, [])).data["items"] == []


def test_decisions_of_earlier_reviews_are_carried_over(tmp_path: Path) -> None:
    rows = [["old.png", "0", "1", "changed", "first"], ["gone.png", "0", "", "removed", "first"]]
    earlier = pd.DataFrame(rows, columns=LABEL_FIXES.names)
    assert read(write_page(tmp_path, earlier=earlier)).data["earlier"] == rows


def test_a_missing_photo_is_an_error_that_names_it(tmp_path: Path) -> None:
    class Gone:
        def save(self, path: str) -> None:
            """Leaves no file."""

    with pytest.raises(UserError, match=r"0\.png could be read before .*restore the file"):
        write_page(tmp_path, ["a"], draw=lambda _: Gone())


def test_with_several_labels_the_doubtful_one_is_named(tmp_path: Path) -> None:
    rows = pd.DataFrame({"file": ["a.png", "b.png"], "label": ["cat|dog", "none"], "split": "train"})
    rows["path"] = [str(tmp_path / name) for name in rows["file"]]
    for path in rows["path"]:
        photo(0, 24, 24).save(path)
    doubtful = rows.assign(row=rows.index, suggested_label=["cat", "</b>"], doubtful_label=["dog", "</b>"],
                           probability_given=0.2, probability_suggested=0.8)  # fmt: skip
    units = np.eye(2, dtype=np.float32)
    none = LABEL_FIXES.empty()
    classes = ("</b>", "cat", "dog")
    review = Review(RunDir(tmp_path / "run"), doubtful, rows, units, classes, "tags", multi_label=True, earlier=none)
    data = read(review_page.write(review, tmp_path / "review.html", embed=True, num_workers=1)).data
    assert data["multi_label"] is True
    assert [(item["label"], item["suggested"], item["doubt"]) for item in data["items"]] == [
        ("cat|dog", "cat", "dog"), ("none", "</b>", "</b>"),
    ]  # fmt: skip
    assert read(write_page(tmp_path)).data["multi_label"] is False
