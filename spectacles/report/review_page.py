"""review.html: doubtful labels for a person to decide on, one by one; it works offline and saves label_fixes.csv."""

import hashlib
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from PIL import Image

from spectacles.core.device import cpu_count
from spectacles.core.fileio import atomic_write
from spectacles.core.run_dir import RunDir
from spectacles.data import similarity
from spectacles.data.label_corrections import COLUMNS
from spectacles.report import thumbnails
from spectacles.report.csp import inline_hash

MOST = 200
"""Labels on one page: as many as a person decides on in one go, and as many photos as fit into it."""
NEAR = 6
PAGE_BYTES, NEAR_BYTES = 7_500_000, 3_000
"""Of all pictures together and of one neighbour, as text in the page."""
SIDES, NEAR_SIDES = (640, 512, 400, 320, 240, 160, 96), (112, 80, 56)
"""Pixels of the longer side, the first that keeps to the bytes allowed."""
TEMPLATE = Path(__file__).with_name("templates") / "review.html"


def write(
    path: Path,
    run_dir: RunDir,
    doubtful: pd.DataFrame,
    rows: pd.DataFrame,
    units: np.ndarray,
    classes: Sequence[str],
    label_column: str,
    earlier: pd.DataFrame,
    embed: bool,
    num_workers: int | None,
    multi_label: bool = False,
) -> Path:
    """`doubtful`: the least credible first, `row` is its place in `rows` (file, label, path) and in `units` (N, D), the
    centred features; with `multi_label`, `doubtful_label` is the one that its probabilities are about. `earlier`: the
    decisions that the run was made with, which the page's file repeats. Without `embed` the page holds no pixel and
    links to the photos where they lie. Raises UserError for a photo that is gone.
    """
    listed = doubtful.drop_duplicates("file").head(MOST)
    near, alike = similarity.nearest(units, listed["row"].to_numpy(), np.arange(len(units)), NEAR)
    shown = rows.iloc[np.unique(near[near >= 0])]
    places = {row: place for place, row in enumerate(shown.index)}
    photos, small = _pictures(listed["path"].tolist(), shown["path"].tolist(), embed, num_workers)
    items = [
        {
            "file": row.file,
            "label": row.label,
            "suggested": row.suggested_label,
            "given": row.probability_given,
            "probability": row.probability_suggested,
            "split": row.split,
            "photo": photo,
            "doubt": getattr(row, "doubtful_label", ""),
            "near": [[places[int(n)], round(float(s), 4)] for n, s in zip(others, cosines, strict=True) if n >= 0],
        }
        for row, photo, others, cosines in zip(listed.itertuples(), photos, near, alike, strict=True)
    ]
    data = {
        "run": run_dir.name,
        "key": hashlib.sha256(str(run_dir.path).encode()).hexdigest()[:16],
        "command": f"python run_pipeline.py --output_dir {shlex.quote(str(run_dir.output_dir))} "
        "--label_fixes label_fixes.csv",
        "question": label_column,
        "classes": list(classes),
        "multi_label": multi_label,
        "items": items,
        "near": [
            {"file": file, "label": label, "photo": photo}
            for file, label, photo in zip(shown["file"], shown["label"], small, strict=True)
        ],
        "earlier": earlier[COLUMNS].to_numpy().tolist(),
        "more": len(doubtful) - len(listed),
    }
    atomic_write(path, render(data, embed))
    return path


def render(data: dict[str, Any], embed: bool) -> str:
    """The page. Its policy allows its own script and style, known by hash, and pictures that it holds or that lie here:
    whatever stands in a file name or a class name, nothing else runs and no other host is asked."""
    source = TEMPLATE.read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {inline_hash(source, 'script')}; style-src {inline_hash(source, 'style')}; "
        f"img-src {'data:' if embed else 'file:'}; base-uri 'none'; form-action 'none'"
    )
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    return template.render(policy=policy, run=data["run"], data=data)


def _pictures(large: list[str], small: list[str], embed: bool, num_workers: int | None) -> tuple[list[str], list[str]]:
    """A URI for each path; the large ones share what the small ones leave of PAGE_BYTES."""
    if not embed:
        return [Path(name).as_uri() for name in large], [Path(name).as_uri() for name in small]
    with ThreadPoolExecutor(num_workers or cpu_count(), "review") as pool:
        near = list(pool.map(lambda name: _data_uri(name, NEAR_SIDES, NEAR_BYTES), small))
        allowed = (PAGE_BYTES - sum(map(len, near))) // max(1, len(large))
        return list(pool.map(lambda name: _data_uri(name, SIDES, allowed), large)), near


def _data_uri(path: str, sides: Sequence[int], allowed: int) -> str:
    """The photo as WebP, never enlarged, at the first of `sides` that takes at most `allowed` characters."""
    image = thumbnails.load_thumbnail(path, sides[0])
    uri = ""
    for side in dict.fromkeys(min(side, max(image.size)) for side in sides):
        image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        uri = thumbnails.to_uri(image, quality=80)
        if len(uri) <= allowed:
            break
    return uri
