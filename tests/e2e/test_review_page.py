"""The review page in a real browser, by keyboard, mouse and touch; and the run that applies its corrections."""

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import Finished, run_script
from mlflow.tracking import MlflowClient
from PIL import Image

import run_pipeline
from spectacles.core.errors import UserError
from spectacles.core.fileio import write_json
from spectacles.core.run_dir import RunDir, find_run
from spectacles.data import label_corrections
from spectacles.data.schemas import LABEL_FIXES
from spectacles.report import review_page
from spectacles.report.review_page import Review
from spectacles.tracking import delivery, tracking

NAMES = ["one, two.png", 'say "no".png', "</script>.png", "line\nbreak.png", "ünï 日本 😀.png", "__proto__"]


def write_page(
    folder: Path, classes: tuple[str, ...] = ("0", "1"), embed: bool = True, names: Sequence[str] = NAMES
) -> Path:
    """All of `names` are doubtful: given the first class, suggested the second."""
    rows = pd.DataFrame({"file": list(names), "label": classes[0], "split": "train"})
    rows["path"] = [str(folder / f"photo {number}.png") for number in range(len(names))]
    for number, path in enumerate(rows["path"]):
        Image.new("RGB", (60, 90), (40 * number, 120, 200)).save(path)
    doubtful = rows.assign(
        row=rows.index, suggested_label=classes[1], probability_given=0.03, probability_suggested=0.97
    )
    earlier = pd.DataFrame([["before.png", "0", "1", "changed", "old"]], columns=LABEL_FIXES.names)
    units = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
    run_dir = RunDir(folder / "outputs" / "run, 1")
    review = Review(run_dir, doubtful, rows, units, classes, "glasses", multi_label=False, earlier=earlier)
    return review_page.write(review, folder / "review.html", embed, num_workers=1)


def write_labels_page(folder: Path, classes: tuple[str, ...] = ("cat", "dog", "face", "</b>")) -> Path:
    """Six photos: given the second and the third label, without the second and with the first suggested."""
    given, suggested = "|".join(classes[1:3]), "|".join((classes[0], classes[2]))
    rows = pd.DataFrame({"file": NAMES, "label": given, "split": "train"})
    rows["path"] = [str(folder / f"photo {number}.png") for number in range(len(NAMES))]
    for path in rows["path"]:
        Image.new("RGB", (60, 90), (90, 120, 200)).save(path)
    doubtful = rows.assign(row=rows.index, suggested_label=suggested, doubtful_label=classes[1],
                           probability_given=0.03, probability_suggested=0.97)  # fmt: skip
    units = np.random.default_rng(0).normal(size=(len(NAMES), 8)).astype(np.float32)
    none = LABEL_FIXES.empty()
    run_dir = RunDir(folder / "outputs" / "run")
    review = Review(run_dir, doubtful, rows, units, classes, "tags", multi_label=True, earlier=none)
    return review_page.write(review, folder / "review.html", embed=True, num_workers=1)


class Opened:
    """A page and everything that went wrong in it."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def saved(self, how: str = "d") -> list[dict[str, str]]:
        with self.page.expect_download() as waiting:
            self.press(how)
        assert waiting.value.suggested_filename == "label_fixes.csv"
        content = Path(waiting.value.path()).read_text(encoding="utf-8")
        return list(csv.DictReader(io.StringIO(content, newline="")))


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(browser, write_page(tmp_path))
    yield opened
    opened.context.close()
    assert opened.problems == []
    assert not [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))]


def decisions(rows: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    return {row["file"]: (row["decision"], row["fixed_label"]) for row in rows}


def test_decisions_by_keyboard_are_saved_to_the_file(opened: Opened, tmp_path: Path) -> None:
    assert "Photo 1 of 6: not reviewed" in opened.text("#place")
    assert "glasses: 0" in opened.text("#bars") and "97.0 %" in opened.text("#bars")
    opened.press("k", "c", "r", "ArrowRight", "2")  # keep, change, remove, skip, choose the second class
    assert opened.text("#about") == "4 of 6 reviewed, not saved · run run, 1"
    rows = opened.saved()
    assert decisions(rows) == {
        "before.png": ("changed", "1"),
        NAMES[0]: ("confirmed", "0"),
        NAMES[1]: ("changed", "1"),
        NAMES[2]: ("removed", ""),
        NAMES[4]: ("changed", "1"),
    }
    assert [row["run"] for row in rows] == ["old", *["run, 1"] * 4]
    assert {row["given_label"] for row in rows} == {"0"}
    assert "run_pipeline.py --output_dir" in opened.text("#notice")
    path = tmp_path / "label_fixes.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    assert label_corrections.read_fixes(path).to_dict("records") == rows


def test_decisions_can_be_undone_and_changed(opened: Opened) -> None:
    opened.press("c", "c", "u")
    assert "Photo 2 of 6: not reviewed" in opened.text("#place")
    opened.press("ArrowLeft")
    assert "Photo 1 of 6: changed: glasses: 1" in opened.text("#place")
    opened.press("k")
    assert decisions(opened.saved())[NAMES[0]] == ("confirmed", "0")
    opened.press("u")
    assert decisions(opened.saved())[NAMES[0]] == ("changed", "1")
    opened.press("u", "u", "u")
    assert "0 of 6 reviewed" in opened.text("#about")
    assert opened.page.is_disabled("#save")


def test_decisions_survive_closing_the_page(opened: Opened) -> None:
    opened.press("c", "r", "k", "k", "k", "k")
    before = decisions(opened.saved())
    assert "All labels are reviewed" not in opened.text("#notice")
    opened.page.reload()
    assert "6 of 6 reviewed" in opened.text("#about")
    assert decisions(opened.saved()) == before


def test_the_list_shows_all_and_opens_one(opened: Opened) -> None:
    opened.press("c", "l")
    tiles = opened.page.locator("#grid button")
    assert tiles.count() == 6
    assert "changed: glasses: 1" in tiles.nth(0).inner_text()
    assert opened.page.is_hidden("#one")
    opened.press("k")  # decides nothing where no single photo is shown
    tiles.nth(4).click()
    assert "Photo 5 of 6: not reviewed" in opened.text("#place")
    assert opened.text("#file").startswith(NAMES[4])


def test_every_control_has_a_name_and_can_be_reached_by_tab(opened: Opened) -> None:
    names = opened.page.eval_on_selector_all("button", "all => all.map((b) => b.textContent.trim())")
    assert all(names)
    opened.press("k", "ArrowLeft")
    reached = set()
    for _ in range(12):
        opened.press("Tab")
        reached.add(opened.page.evaluate("document.activeElement.id"))
    assert {"view", "save", "keep", "change", "remove", "skip"} <= reached
    assert opened.page.get_attribute("#photo img", "alt") == f"photo {NAMES[0]}"
    opened.page.focus("#remove")
    opened.press("Enter")
    assert "Photo 2" in opened.text("#place")
    assert decisions(opened.saved())[NAMES[0]] == ("removed", "")


def test_a_class_among_many_is_found_by_typing(browser: Any, tmp_path: Path) -> None:
    classes = ("given", "suggested", *(f"kind {n}" for n in range(200)), '</b>, "odd"')
    opened = Opened(browser, write_page(tmp_path, classes))
    opened.press("o")
    assert opened.page.locator("#options button").count() == 50
    opened.page.keyboard.type("kind 17")
    assert opened.page.locator("#options button").first.inner_text().startswith("kind 17")
    opened.press("Enter")
    opened.press("/")
    opened.page.keyboard.type("odd")
    opened.page.locator("#options button").click()
    opened.press("o", "Escape")
    assert "2 of 6 reviewed" in opened.text("#about")
    found = decisions(opened.saved())
    assert found[NAMES[0]] == ("changed", "kind 17")
    assert found[NAMES[1]] == ("changed", classes[-1])
    opened.context.close()
    assert opened.problems == []


def test_any_combination_of_labels_is_set_by_keys(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, write_labels_page(tmp_path))
    assert "dog, face" in opened.text("#bars") and "without dog: 97.0 %" in opened.text("#bars")
    assert opened.text("#change").startswith("Change: add cat; remove dog")
    opened.press("k", "c")
    opened.press("2", "3", "Enter")  # neither of the two given
    opened.press("o", "1", "4", "1", "Enter")
    opened.press("4", "Escape")  # nothing is decided
    opened.press("o", "Shift+Tab", "Shift+Tab", "Space", "Enter")  # from the button to the last label
    assert "5 of 6 reviewed" in opened.text("#about")
    opened.press("ArrowLeft")
    assert "Photo 5 of 6: changed: dog, face, </b>" in opened.text("#place")
    opened.press("o")
    assert opened.page.locator("#options input:checked").count() == 3
    opened.press("4", "Enter", "ArrowLeft")  # as it was given
    assert decisions(opened.saved()) == {
        NAMES[0]: ("confirmed", "dog|face"),
        NAMES[1]: ("changed", "cat|face"),
        NAMES[2]: ("changed", "none"),
        NAMES[3]: ("changed", "dog|face|</b>"),
        NAMES[4]: ("confirmed", "dog|face"),
    }
    opened.page.reload()
    assert "5 of 6 reviewed" in opened.text("#about")
    opened.context.close()
    assert opened.problems == []


def test_among_many_labels_some_are_found_by_typing(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, write_labels_page(tmp_path, tuple(f"kind {n}" for n in range(200))))
    opened.press("o")
    assert opened.page.locator("#options input").count() == 50
    for typed in ("kind 17", "99", "kind 1"):  # the third ends what is given
        opened.page.keyboard.type(typed)
        opened.press("Enter")
    assert opened.text("#apply").startswith("Set to kind 2, kind 17, kind 99")
    assert opened.page.locator("#options input:checked").count() == 3
    opened.press("Enter", "2")  # digits are for typing here
    assert "1 of 6 reviewed" in opened.text("#about") and opened.page.is_hidden("#choice")
    assert decisions(opened.saved()) == {NAMES[0]: ("changed", "kind 2|kind 17|kind 99")}
    opened.context.close()
    assert opened.problems == []


def test_labels_are_set_by_touch_on_a_phone_and_read_by_dataset(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, write_labels_page(tmp_path), viewport={"width": 390, "height": 844}, has_touch=True,
                    is_mobile=True)  # fmt: skip
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    opened.page.tap("#other")
    for label in opened.page.locator("#options label").all():
        assert label.bounding_box()["height"] >= 44
        label.tap()
    opened.page.tap("#apply")
    opened.page.tap("#change")
    rows = opened.saved()
    opened.context.close()
    assert opened.problems == []
    path = tmp_path / "label_fixes.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    assert label_corrections.read_fixes(path).to_dict("records") == rows
    frame = pd.DataFrame({"file": NAMES, "path": NAMES, "source": "train", "label": "dog|face"})
    frame.loc[5, "label"] = "cat|</b>"
    fixed, _ = label_corrections.apply_fixes(frame, path, multi_label=True)
    assert fixed["label"].tolist() == ["</b>|cat", "cat|face", *["dog|face"] * 3, "cat|</b>"]


def test_the_page_works_by_touch_on_a_phone(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, write_page(tmp_path), viewport={"width": 390, "height": 844}, has_touch=True,
                    is_mobile=True, color_scheme="dark")  # fmt: skip
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in ("#keep", "#change", "#remove", "#skip"):
        box = opened.page.locator(button).bounding_box()
        assert box["height"] >= 44 and 0 <= box["y"] <= 844 - box["height"]
    opened.page.tap("#change")
    opened.page.tap("#skip")
    opened.page.tap("#remove")
    assert "2 of 6 reviewed" in opened.text("#about")
    opened.context.close()
    assert opened.problems == []


def test_a_page_without_doubtful_labels_has_a_notice(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, write_page(tmp_path, names=()))
    assert "No label looks wrong" in opened.text("#notice")
    opened.press("k", "c", "r", "1", "n", "l", "u", "ArrowRight", "d")
    assert "0 of 0 reviewed" in opened.text("#about")
    opened.context.close()
    assert opened.problems == []


def test_content_of_local_storage_is_not_trusted(opened: Opened) -> None:
    opened.press("c")
    [key] = opened.page.evaluate("Object.keys(localStorage)")
    for content in ('[["nobody.png", "changed", "1"], ["one, two.png", "changed", "7"]]', "[[", "3", '[["a"]]', "[7]"):
        opened.page.evaluate("([key, content]) => localStorage.setItem(key, content)", [key, content])
        opened.page.reload()
        assert "0 of 6 reviewed" in opened.text("#about")


def test_without_galleries_the_page_links_to_the_photos(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, write_page(tmp_path, embed=False))
    width = opened.page.locator("#photo img").evaluate("image => image.decode().then(() => image.naturalWidth)")
    assert width == 60
    opened.context.close()
    assert opened.problems == []


def run_again(run_dir: RunDir, fixes: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    return run_script("run_pipeline.py", "--label_fixes", fixes, "--output_dir", run_dir.output_dir, *flags)


Again = tuple[Finished, RunDir, pd.DataFrame]


@pytest.fixture(scope="module")
def again(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Again:
    """What a person does after a run: changes a label, keeps one, takes a photo out, and runs the pipeline with one
    flag. (the new run, the run before, the decisions)"""
    outputs = tmp_path_factory.mktemp("loop") / "outputs"
    shutil.copytree(finished.run_dir.output_dir, outputs)
    before = find_run(outputs, finished.run_dir.name)
    track_in(before)
    splits = pd.read_csv(before.splits, dtype=str, keep_default_na=False)
    rows = splits[(splits["split"] == "train") & ~splits["cluster"].duplicated(keep=False)].head(3)
    fixes = pd.DataFrame(
        {
            "file": rows["file"],
            "given_label": rows["label"],
            "fixed_label": [{"0": "1", "1": "0"}[rows["label"].iloc[0]], rows["label"].iloc[1], ""],
            "decision": ["changed", "confirmed", "removed"],
            "run": before.name,
        }
    )
    path = outputs.parent / "label_fixes.csv"
    fixes.to_csv(path, index=False)
    done = run_again(before, path)
    assert done.returncode == 0, done.stdout + done.stderr
    path.unlink()  # as the next download would
    return Finished(find_run(outputs, "latest"), finished.sample, done.stdout), before, fixes


def track_in(run_dir: RunDir) -> None:
    """A copied folder's run, as if it had been tracked where the copy lies."""
    known = json.loads(run_dir.tracking.read_text(encoding="utf-8"))
    write_json(run_dir.tracking, known | {"uri": tracking.uri(run_dir.output_dir)})


def test_a_new_run_has_the_settings_of_the_run_before_and_the_labels_of_the_review(again: Again) -> None:
    new, before, fixes = again
    assert new.run_dir.name != before.name
    assert all(new.run_dir.done(stage) for stage in ("dataset", "train", "evaluate", "error_analysis"))
    settings, old = new.run_dir.load_config(), before.load_config()
    own = {"label_fixes", "compare", "output_dir"}
    assert {k: v for k, v in settings.items() if k not in own} == {k: old[k] for k in settings if k not in own}
    assert settings["compare"] == before.name
    splits, was = (
        pd.read_csv(run.splits, dtype=str, keep_default_na=False).set_index("file") for run in (new.run_dir, before)
    )
    changed, confirmed, removed = fixes["file"]
    assert splits.loc[changed, "label"] == fixes["fixed_label"].iloc[0]
    assert splits.loc[confirmed, "label"] == was.loc[confirmed, "label"]
    assert removed not in splits.index
    assert (splits["split"] == was.loc[splits.index, "split"]).all()


def test_decided_labels_are_not_listed_again_and_are_carried_over(again: Again) -> None:
    new, _, fixes = again
    listed = pd.read_csv(new.run_dir.path / "error_analysis" / "noisy_labels.csv", dtype=str)["file"]
    assert not set(fixes["file"]) & set(listed)
    page = (new.run_dir.path / "error_analysis" / "review.html").read_text(encoding="utf-8")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    assert data["earlier"] == fixes.to_numpy().tolist()


def test_before_and_after_are_compared_in_one_line_and_linked_in_mlflow(again: Again) -> None:
    new, before, _ = again
    [line] = [line for line in new.output.splitlines() if line.startswith("mended")]
    assert f"{before.name} -> {new.run_dir.name}: accuracy" in line
    assert str(new.run_dir.path / "error_analysis" / "review.html") in new.output
    assert delivery.sync(new.run_dir.output_dir)  # a busy machine may take longer than the command waits
    store = MlflowClient(tracking.uri(new.run_dir.output_dir))
    ids = [json.loads(run.tracking.read_text(encoding="utf-8"))["run_id"] for run in (new.run_dir, before)]
    tags = store.get_run(ids[0]).data.tags
    assert tags["mlflow.parentRunId"] == ids[1]
    assert tags["run_before"] == before.name


def test_fixes_that_do_not_fit_are_rejected_before_anything_is_written(again: Again, tmp_path: Path) -> None:
    _, before, fixes = again
    there = sorted(path.name for path in before.output_dir.iterdir())
    wrong = {"'another'": fixes.assign(run="another"), "'run'": fixes.drop(columns="run"), "no rows": fixes.head(0)}
    path = tmp_path / "label_fixes.csv"
    for told, table in wrong.items():
        table.to_csv(path, index=False)
        with pytest.raises(UserError, match=told):
            run_pipeline.parse(["--label_fixes", str(path), "--output_dir", str(before.output_dir)])
    done = run_again(before, path)
    assert done.returncode == 2
    assert "has no rows" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in before.output_dir.iterdir()) == there


def test_flags_win_over_the_settings_of_the_run_before(again: Again, tmp_path: Path) -> None:
    _, before, fixes = again
    path = tmp_path / "label_fixes.csv"
    fixes.to_csv(path, index=False)
    flags = ["--label_fixes", str(path), "--output_dir", str(before.output_dir)]
    assert run_pipeline.parse(flags).compare == before.name
    config = run_pipeline.parse([*flags, "--compare", "other", "--epochs", "7"])
    assert (config.compare, config.epochs, config.run_name) == ("other", 7, None)
    assert config.image_size == before.load_config()["image_size"]
