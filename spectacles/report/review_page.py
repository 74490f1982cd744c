"""review.html: doubtful labels for a person to review one by one. It works offline and saves label_fixes.csv."""

import hashlib
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from PIL import Image

from spectacles.core.device import cpu_count
from spectacles.core.fileio import atomic_write
from spectacles.core.run_dir import RunDir
from spectacles.core.value_ranges import PER_FILE, ValueRanges
from spectacles.data import similarity
from spectacles.data.schemas import LABEL_FIXES
from spectacles.report import thumbnails
from spectacles.report.csp import source_hash

MAX_ITEMS = 200
"""Labels on one page: as many as a person reviews in one sitting, and as many photos as fit."""
NEIGHBOURS = 6
PAGE_BYTES = 7_500_000
"""Of all pictures together, as text in the page."""
NEIGHBOUR_BYTES = 3_000
SIDES = (640, 512, 400, 320, 240, 160, 96)
"""Pixels of the longer side: the first size that stays within the bytes allowed is used."""
NEIGHBOUR_SIDES = (112, 80, 56)
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Review:
    run_dir: RunDir
    doubtful: pd.DataFrame
    """Labels to review, least credible first: file, label, suggested_label, probability_given, probability_suggested,
    split, path, row (the position in `rows`), and with `multi_label` doubtful_label, which the probabilities are of."""
    rows: pd.DataFrame
    """All labelled images: file, label, path."""
    units: np.ndarray
    """(N, D): the centred features of `rows`, of unit length."""
    classes: Sequence[str]
    label_column: str
    multi_label: bool
    earlier: pd.DataFrame
    """Decisions that the run was made with (schemas.LABEL_FIXES): the page saves them again, before its own."""
    value_ranges: ValueRanges = PER_FILE
    """Of the training data."""


def write(review: Review, path: Path, embed: bool, num_workers: int | None) -> Path:
    """Without `embed` the page holds no pixels and links to the photos where they are.

    Raises UserError for a photo that can no longer be read.
    """
    listed = review.doubtful.drop_duplicates("file").head(MAX_ITEMS)
    queries = listed["row"].to_numpy()
    near, cosines = similarity.nearest_neighbours(review.units, queries, np.arange(len(review.units)), NEIGHBOURS)
    neighbours = review.rows.iloc[np.unique(near[near >= 0])]
    uri = partial(_data_uri, ranges=review.value_ranges) if embed else None
    large, small = _pictures(listed["path"].tolist(), neighbours["path"].tolist(), uri, num_workers)
    place_of = {row: place for place, row in enumerate(neighbours.index)}
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
            "near": [[place_of[int(n)], round(float(s), 4)] for n, s in zip(places, values, strict=True) if n >= 0],
        }
        for row, photo, places, values in zip(listed.itertuples(), large, near, cosines, strict=True)
    ]
    run_dir = review.run_dir
    data = {
        "run": run_dir.name,
        "key": hashlib.sha256(str(run_dir.path).encode()).hexdigest()[:16],
        "command": f"python run_pipeline.py --output_dir {shlex.quote(str(run_dir.output_dir))} "
        "--label_fixes label_fixes.csv",
        "question": review.label_column,
        "classes": list(review.classes),
        "multi_label": review.multi_label,
        "items": items,
        "near": [
            {"file": file, "label": label, "photo": photo}
            for file, label, photo in zip(neighbours["file"], neighbours["label"], small, strict=True)
        ],
        "earlier": review.earlier[LABEL_FIXES.names].to_numpy().tolist(),
        "more": len(review.doubtful) - len(listed),
    }
    atomic_write(path, render(data, embed))
    return path


def render(data: dict[str, Any], embed: bool) -> str:
    """The page. Its policy allows only its own script and style, known by their hashes, and embedded or local pictures:
    whatever a file or class name contains, nothing else runs and no other host is contacted."""
    script, style = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("review.js", "review.css"))
    policy = (
        f"default-src 'none'; script-src {source_hash(script)}; style-src {source_hash(style)}; "
        f"img-src {'data:' if embed else 'file:'}; base-uri 'none'; form-action 'none'"
    )
    page = (TEMPLATES / "review.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(page)
    return template.render(policy=policy, script=script, style=style, run=data["run"], data=data)


def _pictures(
    large: list[str], small: list[str], uri: Callable[..., str] | None, num_workers: int | None
) -> tuple[list[str], list[str]]:
    """A URI for each path; the large pictures share the part of PAGE_BYTES that the small ones leave. `uri` embeds a
    photo (see `_data_uri`); without it, pages link to the files."""
    if uri is None:
        return [Path(name).as_uri() for name in large], [Path(name).as_uri() for name in small]
    with ThreadPoolExecutor(num_workers or cpu_count(), "review") as pool:
        near = list(pool.map(lambda name: uri(name, NEIGHBOUR_SIDES, NEIGHBOUR_BYTES), small))
        allowed = (PAGE_BYTES - sum(map(len, near))) // max(1, len(large))
        return list(pool.map(lambda name: uri(name, SIDES, allowed), large)), near


def _data_uri(path: str, sides: Sequence[int], allowed: int, ranges: ValueRanges) -> str:
    """The photo as WebP, never enlarged, at the first of `sides` that needs at most `allowed` characters."""
    image = thumbnails.load_thumbnail(path, sides[0], ranges)
    uri = ""
    for side in dict.fromkeys(min(side, max(image.size)) for side in sides):
        image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        uri = thumbnails.to_uri(image, quality=80)
        if len(uri) <= allowed:
            break
    return uri
