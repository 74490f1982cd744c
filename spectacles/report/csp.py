"""Content Security Policy (level 2) of pages with an inline script and style: a browser runs these and nothing else."""

import base64
import hashlib


def source_hash(content: str) -> str:
    """The source expression that allows exactly this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def inline_hash(page: str, tag: str) -> str:
    """The source expression of the page's first <script> or <style>."""
    return source_hash(page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0])
