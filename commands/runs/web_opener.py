"""Opens addresses that carry a secret: no redirect is followed, this computer needs no proxy."""

from __future__ import annotations

import urllib.request
from typing import Any


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an error: it would carry the secret to another host."""

    def redirect_request(self, *_arguments: Any, **_more: Any) -> None:
        """Follow none."""


def make_opener(*, loopback: bool) -> urllib.request.OpenerDirector:
    """Return what opens addresses; those of this computer past the proxies of the environment."""
    proxies = [urllib.request.ProxyHandler({})] if loopback else []
    return urllib.request.build_opener(NoRedirects(), *proxies)
