"""Small questions to public web pages, over TLS with the same certificate bundle as the SDKs."""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import urllib.parse
import urllib.request
from pathlib import Path

from infra.provider import NotAllowed, Transient

ANSWER_BYTES_MAX = 8 * 1024 * 1024


def fetch(url: str, *, timeout_s: float = 10.0) -> bytes:
    """The body at `url`, at most 8 MiB of it.

    `REQUESTS_CA_BUNDLE` is honoured, file or directory, as the SDKs do. Raises `Transient` if
    nothing came within `timeout_s`, `NotAllowed` for a URL that is neither https nor on this very
    computer.
    """
    parts = urllib.parse.urlsplit(url)
    here = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    if parts.scheme != "https" and not (parts.scheme == "http" and here):
        raise NotAllowed(f"`{url}` is not an https address")
    try:
        context = _trusted()
        with urllib.request.urlopen(url, timeout=timeout_s, context=context) as answer:  # noqa: S310  (checked above)
            body = bytes(answer.read(ANSWER_BYTES_MAX))
            if answer.length:  # announced, and not there: half an address is an address, too
                raise http.client.IncompleteRead(body, answer.length)
            return body
    except (OSError, http.client.HTTPException) as error:  # the latter: a cut or garbled answer
        raise Transient(f"`{url}` did not answer: {error}") from error


def _trusted() -> ssl.SSLContext:
    """Whoever the SDKs trust: a file of certificates, or a directory of them by their hashes."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or None
    if bundle is not None and Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


def own_address(url: str) -> str:
    """The address from which this computer reaches a cloud in its own network; else empty.

    A cloud behind a private or loopback address hands out addresses of that same network, where
    the world's view of the caller would open the firewall to nobody. Sends nothing.
    """
    parts = urllib.parse.urlsplit(url)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((parts.hostname or "", parts.port or 443))
            there, here = str(probe.getpeername()[0]), str(probe.getsockname()[0])
    except OSError:  # no such name, or no way there: whoever asks it next will say so
        return ""
    return here if ipaddress.ip_address(there).is_private else ""


def public_address(url: str) -> str:
    """The caller's address as the page at `url` sees it."""
    try:
        return fetch(url).decode("ascii", "replace").strip()
    except Transient as error:
        raise Transient(
            f"your public address could not be found out ({error})",
            hint="set QFT_CALLER_ADDRESS to it; the firewall admits nobody else",
        ) from error
