"""The page at /: one file without anything from elsewhere."""

from pathlib import Path

from spectacles.report.csp import inline_hash

PAGE = Path(__file__).with_name("page.html")


def headers(page: str) -> dict[str, str]:
    """With a policy that lets the page run its own script and style (known by hash) and talk to this server only."""
    sources = {tag: inline_hash(page, tag) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
