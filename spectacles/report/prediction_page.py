"""The page that takes photos and shows what a model makes of them: one file, whatever answers behind it."""

import re
from dataclasses import dataclass
from pathlib import Path

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class BackEnd:
    """What differs between a page whose server answers and one that computes by itself."""

    scripts: tuple[str, ...]
    """JavaScript: see the first lines of page.js."""
    types: str
    """Media types that it takes, for a file chooser."""
    formats: str
    """The same in a sentence, and their limits."""
    privacy: str
    """Where photos go."""
    no_script: str
    access: str = ""
    """HTML before the drop area."""


def prediction_page(back_end: BackEnd) -> str:
    """HTML without anything from elsewhere."""
    parts = {
        "style": read("page.css"),
        "script": read("page.js") + "\n" + "\n".join(back_end.scripts),
        "types": back_end.types,
        "formats": back_end.formats,
        "privacy": back_end.privacy,
        "no_script": back_end.no_script,
        "access": back_end.access,
    }
    # In one pass: what is put in, names of classes among it, may look like a placeholder.
    return re.sub(r"{{ (\w+) }}", lambda match: parts[match[1]], read("page.html"))


def read(template: str) -> str:
    return (TEMPLATES / template).read_text(encoding="utf-8")
