"""The dashboard's page, put together from the files beside this one: HTML, a style sheet, scripts.

In: nothing. Out: one document that loads nothing, from nowhere, and the policy that has browsers hold it to that: only
these very scripts and styles, by their digests, and connections to the server that it came from.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

STYLE = "page.css"
SCRIPTS = ("text.js", "charts.js", "tree.js", "programs.js", "live.js")  # in the order in which they run


@dataclass(frozen=True, slots=True)
class Page:
    """A document (UTF-8), and the headers that go with it."""

    body: bytes
    headers: dict[str, str]


@cache
def page() -> Page:
    """The page; the same for everybody."""
    style, scripts = _read(STYLE), [_read(name) for name in SCRIPTS]
    tags = [f"<style>{style}</style>", *(f"<script>{script}</script>" for script in scripts)]
    html = _read("page.html").replace("<!-- style -->", tags[0]).replace("<!-- scripts -->", "\n".join(tags[1:]))
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; "  # the icon is in the page too
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"style-src {_digest(style)}; script-src {' '.join(map(_digest, scripts))}"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Page(html.encode(), headers)


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
