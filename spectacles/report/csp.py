"""What a page with its own script and style needs so that a browser runs these and nothing else."""

import base64
import hashlib


def inline_hash(page: str, tag: str) -> str:
    """The source expression (Content Security Policy, level 2) of the page's first <script> or <style>."""
    content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
