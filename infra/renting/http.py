"""Fetches small public web pages, over TLS with the same certificate bundle as the SDKs."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from infra.errors import NotAllowed, ProviderError, Transient
from infra.untrusted import parse

ANSWER_BYTES_MAX = 8 * 1024 * 1024


def fetch(url: str, *, timeout_s: float = 10.0) -> bytes:
    """Fetch the body at `url`, at most 8 MiB of it.

    `REQUESTS_CA_BUNDLE` is honoured, file or directory, as the SDKs do. Raises `Transient` if
    nothing came within `timeout_s`, `NotAllowed` for a URL that is neither https nor on this very
    computer.
    """
    parts = urllib.parse.urlsplit(url)
    here = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    if parts.scheme != "https" and not (parts.scheme == "http" and here):
        raise NotAllowed(f"`{url}` is not an https address")
    try:
        context = _trusted() if parts.scheme == "https" else None
        with urllib.request.urlopen(url, timeout=timeout_s, context=context) as answer:  # noqa: S310  (checked above)
            body = bytes(answer.read(ANSWER_BYTES_MAX))
            if answer.length:  # announced, and not there: half an address is an address, too
                raise http.client.IncompleteRead(body, answer.length)
            return body
    except (OSError, http.client.HTTPException) as error:  # the latter: a cut or garbled answer
        raise Transient(f"`{url}` did not answer: {error}") from error


def fetch_json(url: str) -> Any:
    """Fetch a page of JSON; raises `OSError` or `ValueError`, as price lists expect."""
    try:
        return parse(fetch(url, timeout_s=3.0), bytes_max=ANSWER_BYTES_MAX)
    except ProviderError as error:
        raise OSError(str(error)) from error


def _trusted() -> ssl.SSLContext:
    """The SDKs' trust: a file of certificates, or a directory of them by their hashes."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or None
    if bundle is not None and Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)
