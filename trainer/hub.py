"""Rows from a hub: one named file of a data set at one named revision, and no code of anybody's.

Written `hub:OWNER/NAME@REVISION/PATH`, such as `hub:me/pairs@1f0c…/data/train.parquet`. Splits are
not guessed: what is learnt is a file, and its SHA-256 is in the run's fingerprint like any other's.
"""

from __future__ import annotations

import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from trainer.data.rows import DataError

PREFIX = "hub:"
PLACE = "https://huggingface.co"  # unless HF_ENDPOINT names another
ANSWER_S = 4.0
FORM = "hub:OWNER/NAME@REVISION/PATH"
_NAME = re.compile(
    r"hub:(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w.-]+)/(?P<path>[^\\:]+)", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a data set on a hub."""

    repo: str
    revision: str
    path: str


def parse(name: str) -> HubFile | None:
    """Return the file that `name` means, None if it lies on no hub.

    Raises:
        ValueError: it names a hub, but not a repository, a revision and a path.
    """
    if not name.startswith(PREFIX):
        return None
    found = _NAME.fullmatch(name)
    if found is not None and set("*?[") & set(found["path"]):
        raise ValueError(
            f"`{name}` means several files, and a run learns one: put the shards together "
            "(`pyarrow.parquet` reads them all and writes one) and name that file"
        )
    if found is None or {"", ".", ".."} & set(found["path"].split("/")):
        raise ValueError(
            f"`{name}` is no file on a hub: write `{FORM}` with a commit, tag or branch as REVISION"
        )
    return HubFile(repo=found["repo"], revision=found["revision"], path=found["path"])


def fetch(file: HubFile, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """Return the local copy of `file`, fetched if it is not there yet.

    Endpoint and cache, where not given, and the token are those of `huggingface_hub`
    (`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`).

    Raises:
        DataError: there is no such file.
        ConnectionError: the hub does not answer; try again.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # the log is a file
    try:
        found = hf_hub_download(
            file.repo,
            file.path,
            repo_type="dataset",
            revision=file.revision,
            endpoint=endpoint,
            cache_dir=cache,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        if hub_is_silent(error):
            raise ConnectionError(f"the hub does not answer: {said[0]}") from error
        raise DataError(
            [
                f"{file.path} of the data set {file.repo} at {file.revision} cannot be fetched: "
                + said[0]
            ]
        ) from error
    return Path(found)


def rely_on_cache(wait_s: float = ANSWER_S) -> str | None:
    """Ask the hub for a sign of life, and without one let its library look into its cache alone.

    The library itself would try for half a minute per file. Call it before anything imports the
    library, which reads its environment once. Return what to do where the cache does not suffice;
    None if the hub answers, or if the network is switched off anyway.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return None
    place = os.environ.get("HF_ENDPOINT") or PLACE
    try:
        request = urllib.request.Request(place, method="HEAD")  # noqa: S310 - the user's own choice
        urllib.request.urlopen(request, timeout=wait_s).close()  # noqa: S310 - as above
    except urllib.error.HTTPError as error:
        error.close()  # an answer, whatever it says
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # somebody is there; the library judges who
            os.environ["HF_HUB_OFFLINE"] = "1"
            return (
                f"hint: {place} does not answer ({reason}), and only what was fetched from it "
                "before can be used; connect and try again, or name a local directory or file"
            )
    return None


def hub_is_silent(error: BaseException) -> bool:
    """Tell whether something failed because the hub was not reached, or had a trouble of its own.

    Trying again may then help; where the user has switched the network off, it cannot.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, LocalEntryNotFoundError):
            return not constants.HF_HUB_OFFLINE
        if isinstance(seen, HfHubHTTPError) and seen.response is not None:
            return bool(seen.response.status_code >= 500 or seen.response.status_code == 429)
        seen = seen.__cause__ or seen.__context__
    return False
