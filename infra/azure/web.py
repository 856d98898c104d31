"""Small questions to public web pages, over TLS with the same certificate bundle as the SDKs."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request

from infra.provider import NotAllowed, Transient

ANSWER_BYTES_MAX = 8 * 1024 * 1024


def fetch(url: str, *, timeout_s: float = 10.0) -> bytes:
    """The body at `url`, at most 8 MiB of it.

    `REQUESTS_CA_BUNDLE` is honoured, as the SDKs do. Raises `Transient` if nothing came within
    `timeout_s`, `NotAllowed` for a URL that is not https.
    """
    if not url.startswith("https://"):
        raise NotAllowed(f"`{url}` is not an https address")
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    context = ssl.create_default_context(cafile=bundle or None)
    try:
        with urllib.request.urlopen(url, timeout=timeout_s, context=context) as answer:  # noqa: S310  (https, checked above)
            return bytes(answer.read(ANSWER_BYTES_MAX))
    except (urllib.error.URLError, OSError) as error:
        raise Transient(f"`{url}` did not answer: {error}") from error


def public_address(url: str) -> str:
    """The caller's address as the page at `url` sees it."""
    try:
        return fetch(url).decode("ascii", "replace").strip()
    except Transient as error:
        raise Transient(
            f"your public address could not be found out ({error})",
            hint="set QFT_CALLER_ADDRESS to it; the firewall admits nobody else",
        ) from error
