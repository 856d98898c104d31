"""Runs on the rented machine: asks Azure to deallocate it, as the machine's own identity.

Shipped behind `self_release.py` in one file, so standard library only. It never shuts the machine
down: at Azure, a machine that is switched off from inside goes on billing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import urllib.request
from http.client import HTTPException

from infra.renting.self_release import main

TOKEN_PATH = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource={audience}"  # noqa: S105  (a path)
COMPUTE_PATH = "/metadata/instance/compute?api-version=2021-02-01"
API_VERSION = "@api-version@"
"""Of the request to deallocate; the first-boot text carries that of `api_versions.py` instead."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the metadata service and Resource Manager are, and for whom a token is.

    Azure starts no deallocated machine by itself, so a limit from before a boot is over.
    """
    parser.set_defaults(old_limit_s=math.inf)
    parser.add_argument("--imds", default="http://169.254.169.254")
    parser.add_argument("--arm", default="https://management.azure.com")
    parser.add_argument("--audience", default="https://management.azure.com/")


def deallocate_self(chosen: argparse.Namespace) -> bool:
    """Ask Azure to deallocate this machine, as itself; whether Azure agreed."""
    try:
        compute = request_json(f"{chosen.imds}{COMPUTE_PATH}", headers={"Metadata": "true"})
        page = f"{chosen.imds}{TOKEN_PATH.format(audience=chosen.audience)}"
        token = request_json(page, headers={"Metadata": "true"})["access_token"]
        request_json(
            f"{chosen.arm}{compute['resourceId']}/deallocate?api-version={API_VERSION}",
            headers={"Authorization": f"Bearer {token}", "Content-Length": "0"},
            method="POST",
        )
    except (OSError, HTTPException, ValueError, KeyError) as error:  # urllib's are OSErrors
        sys.stderr.write(f"Azure did not take it: {error}\n")
        return False
    return True


def request_json(url: str, *, headers: dict[str, str], method: str = "GET") -> dict[str, str]:
    """Send one request, to the metadata service never through a proxy; returns the JSON answer."""
    opener = urllib.request.build_opener(
        *([urllib.request.ProxyHandler({})] if "/metadata/" in url else [])
    )
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310  (ours)
    with opener.open(request, timeout=30) as answer:
        text = answer.read()
    reply = json.loads(text) if text else {}
    if not isinstance(reply, dict):
        raise ValueError(f"{url} answers {text[:80]!r}")  # noqa: TRY004  (of what was read)
    return reply


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], release=deallocate_self, add_arguments=add_arguments))
