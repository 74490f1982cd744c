"""Does the exported page answer as predict.py does? Photos through the page in headless Chromium, offline.

`python -m benchmarks.browser --bundle outputs/<run>/train/bundle --images FOLDER --count 200`
For fp32 and fp16 weights: labels that are the same, the largest difference of a probability, milliseconds per photo.
"""

import argparse
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks import common
from spectacles.core.errors import UserError
from spectacles.data.images import SUFFIXES
from spectacles.export.formats import web
from spectacles.export.shipped import Shipped
from spectacles.inference.predictor import Prediction, Predictor
from spectacles.models.classifier import load_classifier

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AT_ONCE = 20
"""Photos given to the page together."""
ANSWERS = """async () => {
  const open = () => !cards.length || cards.some((card) => card.state === "waiting");
  while (open()) await new Promise((done) => setTimeout(done, 20));
  const { ood } = await ready, found = {};
  for (const { file, state, node } of cards) {
    found[file.name] = state === "answered" ? answerOf(await run(file), ood) : node.textContent;
  }
  return found;
}"""
"""Of a page that was given photos: name -> answer, or the text of its card."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a web server that gives the files below `folder`."""
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def go_offline(page: "Page", folder: Path) -> None:
    """Opens the page of `folder`; its server and the network are gone then, and it runs from what its worker keeps."""
    with served(folder) as address:
        page.goto(address)
        page.evaluate("ready.then(() => null)")
        page.evaluate("navigator.serviceWorker.ready.then(() => null)")
    page.context.set_offline(True)
    page.reload()
    page.evaluate("ready.then(() => null)")


def asked(page: "Page", photos: Sequence[Path]) -> list[dict[str, Any]]:
    """The page's answers, in order."""
    answers = {}
    for start in range(0, len(photos), AT_ONCE):
        page.reload()
        page.evaluate("ready.then(() => null)")
        page.set_input_files("#chooser", photos[start : start + AT_ONCE])
        answers |= page.evaluate(ANSWERS)
    return [answers[photo.name] for photo in photos]


def compared(answers: Sequence[dict[str, Any]], expected: Sequence[Prediction]) -> dict[str, Any]:
    probabilities = np.array([list(answer["probabilities"].values()) for answer in answers])
    return {
        "photos": len(answers),
        "same labels": sum(a["label"] == e.label for a, e in zip(answers, expected, strict=True)),
        "same abstentions": sum(a["abstained"] == e.abstained for a, e in zip(answers, expected, strict=True)),
        "difference": float(np.abs(probabilities - [each.probabilities for each in expected]).max()),
        "ms": round(float(np.median([answer["milliseconds"] for answer in answers]))),
    }


def run(args: argparse.Namespace) -> None:
    from playwright.sync_api import sync_playwright  # of requirements-dev.txt; tests without it use this module too

    photos = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not photos or CHROMIUM is None:
        raise UserError(f"--images {args.images} has no photo." if CHROMIUM else "there is no Chromium: install it.")
    photos = random.Random(args.seed).sample(photos, min(args.count, len(photos)))
    expected = list(Predictor(args.bundle, "cpu").predict(photos))
    shipped = Shipped(*load_classifier(args.bundle), args.bundle, args.ort_web)
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for precision in ("fp32", "fp16"):
            web.write_folder(shipped, precision, site := Path(folder, precision))
            page = browser.new_context().new_page()
            go_offline(page, site)
            rows.append({"precision": precision, **compared(asked(page, photos), expected)})
        browser.close()
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2g}".format))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of photos, with those below it")
    parser.add_argument("--count", type=int, default=200, help="photos that are drawn from it")
    parser.add_argument("--ort_web", type=Path, help="the folder dist/ of onnxruntime-web; default: fetched by npm")
    parser.add_argument("--seed", type=int, default=0)
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
