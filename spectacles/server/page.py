"""The page at /: one file without anything from elsewhere."""

from spectacles.report.csp import inline_hash
from spectacles.report.prediction_page import BackEnd, prediction_page, read


def page() -> str:
    server = BackEnd(
        scripts=(read("page_server.js"),),
        types="image/jpeg,image/png,image/webp,image/bmp,image/gif,image/tiff",
        formats="JPEG, PNG, WebP, BMP, GIF or TIFF, up to 25 megapixels.",
        privacy="Photos go to this server only, and it keeps none of them.",
        no_script="This page needs JavaScript; POST /predict answers without it.",
        access=read("page_key.html"),
    )
    return prediction_page(server)


def headers(page: str) -> dict[str, str]:
    """With a policy that lets the page run its own script and style (known by hash) and talk to this server only."""
    sources = {tag: inline_hash(page, tag) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
