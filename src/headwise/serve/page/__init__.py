"""The page of a server, one HTML text that needs nothing else: a conversation, and beside it what the heads keep."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from headwise.files import read_text

HERE = Path(__file__).parent


@cache
def page() -> tuple[str, dict[str, str]]:
    """The page, and headers by which a browser runs its own script alone and asks its own server alone."""
    parts = {name: read_text(HERE / f"page.{kind}") for name, kind in (("style", "css"), ("script", "js"))}
    html = read_text(HERE / "page.html")
    for name, text in parts.items():
        html = html.replace(f"{{{name}}}", text)
    rules = [f"{name}-src 'sha256-{_digest(text)}'" for name, text in parts.items()]
    own = ["default-src 'none'", *rules, "connect-src 'self'", "img-src data:", "base-uri 'none'"]
    policy = "; ".join([*own, "form-action 'none'", "frame-ancestors 'none'"])
    return html, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
