"""Fetches an adapter from a hub: its settings and its tensors, and nothing that is code.

    python -m trainer fetch-adapter --adapter OWNER/NAME [--revision REVISION]

Only the files that a training reads of an adapter are asked for; prints the directory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer.adapters.parent import FILES
from trainer.adapters.settings import CONFIG
from trainer.errors import ConfigError
from trainer.exit_codes import ExitCode
from trainer.hub import hub_is_silent


def download_adapter(name: str, revision: str) -> Path:
    """Download an adapter as far as it is not there yet; return its directory.

    Endpoint, cache and token are those of `huggingface_hub` (`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`).

    Raises:
        ConfigError: there is no such repository, no right to read it, or it holds no adapter.
        ConnectionError: the hub does not answer, and the adapter was not fetched before.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=list(FILES))
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if hub_is_silent(error):
            raise ConnectionError(f"the hub does not give {name}: {reason}") from error
        raise ConfigError(f"{name} at {revision} cannot be fetched: {reason}") from error
    directory = Path(found)
    if not (directory / CONFIG).is_file():
        raise ConfigError(f"{name} at {revision} holds no adapter: it has no {CONFIG}")
    return directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the adapter to download."""
    parser.add_argument("--adapter", required=True, help="OWNER/NAME on the hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")


def run(args: argparse.Namespace) -> int:
    """Fetch, and print the directory."""
    sys.stdout.write(f"{download_adapter(args.adapter, args.revision)}\n")
    return ExitCode.DONE
