"""Makes the whole live page: the report's page, with the script that exchanges its sections."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from markupsafe import Markup

from commands.runs.live.changes import Snapshot
from trainer.pages import html


@cache
def _script() -> str:
    return files("commands.runs.live").joinpath("live.js").read_text(encoding="utf-8")


def make_document(snapshot: Snapshot, nonce: str, *, name: str) -> str:
    """Return the page of a version; its scripts carry `nonce`."""
    sections = [Markup(made) for _, made in snapshot.sections]  # noqa: S704  (made by `html`)
    page = html.page(f"Report of {name}", sections, nonce=nonce)
    head = Markup(
        '<link rel="icon" href="data:,"><meta name="qft-version" content="{}">'
        '<script nonce="{}">{}</script>'
    ).format(snapshot.version, nonce, Markup(_script()))  # noqa: S704  (a file of ours)
    return page.replace("</head>", f"{head}</head>", 1)
