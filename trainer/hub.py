"""Fetches named files of a data set from a hub, at one named revision, and runs no code of it.

Written `hub:OWNER/NAME@REVISION/PATH`, such as `hub:me/pairs@1f0c…/data/train.parquet`, or with a
pattern for a split in several files, `data/train-*.parquet`. Splits are not guessed: what is learnt
is named, and its SHA-256 is in the run's fingerprint like any other's.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.errors import DataError

PREFIX = "hub:"
PLACE = "https://huggingface.co"  # unless HF_ENDPOINT names another
ANSWER_S, LISTING_S = 4.0, 20.0
PATTERN = frozenset("*?[")
FORM = "hub:OWNER/NAME@REVISION/PATH"
_WORD = r"\w(?:[\w.-]{0,94}\w)?"
_REPOSITORY = re.compile(rf"(?:{_WORD}/)?{_WORD}", re.ASCII)
_ADDRESS = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/(?:models/)?|(?:hf|hub):(?://)?)?"
    r"(?P<id>[\w.-]+/[\w.-]+?)"
    r"(?:/(?:tree|blob|resolve|commit)/(?P<revision>[\w.-]+)(?:/.*)?|[@:](?P<at>[\w.-]+))?/?(?:[?#].*)?",
    re.ASCII,
)
_NAME = re.compile(
    r"hub:(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w.-]+)/(?P<path>[^\\:]+)", re.ASCII
)


def is_hub_id(name: str) -> bool:
    """Tell whether a hub could have a repository of that name: `owner/name`, or a bare `gpt2`.

    The rule is that of `huggingface_hub.utils.validate_repo_id`, which is not imported here; what
    it refuses is taken for a path.
    """
    return (
        _REPOSITORY.fullmatch(name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a data set on a hub, or all those whose names fit its pattern."""

    repo: str
    revision: str
    path: str

    @property
    def many(self) -> bool:
        """Whether `path` is a pattern."""
        return bool(PATTERN & set(self.path))

    def __str__(self) -> str:
        return f"{self.path} of the data set {self.repo} at {self.revision}"


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Files that together are one, in this order; messages call them `name`."""

    name: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return self.name


def model_in(text: str) -> tuple[str, str]:
    """Return the hub id and the revision that a text such as a page's address means; else empty."""
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or not is_hub_id(found["id"]):
        return "", ""
    return found["id"], found["revision"] or found["at"] or ""


def parse(name: str) -> HubFile | None:
    """Return the file that `name` means, None if it lies on no hub.

    Raises:
        ValueError: it names a hub, but not a repository, a revision and a path.
    """
    if not name.startswith(PREFIX):
        return None
    found = _NAME.fullmatch(name)
    if found is not None and PATTERN & set(found["path"].rpartition("/")[0]):
        raise ValueError(f"`{name}`: a pattern may stand in the name of the files, in no folder's")
    if found is None or {"", ".", ".."} & set(found["path"].split("/")):
        raise ValueError(
            f"`{name}` is no file on a hub: write `{FORM}` with a commit, tag or branch as "
            "REVISION; a pattern such as `data/train-*.parquet` names the shards of a split"
        )
    return HubFile(repo=found["repo"], revision=found["revision"], path=found["path"])


def fetch(
    file: HubFile, *, endpoint: str | None = None, cache: Path | None = None
) -> Path | Shards:
    """Return the local copy of `file`, fetched if it is not there yet.

    Shards are those of one commit, in the order of their names. Endpoint and cache, where not
    given, and the token are those of `huggingface_hub` (`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`).

    Raises:
        DataError: there is no such file, or nothing fits the pattern.
        ConnectionError: the hub does not answer; try again.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # the log is a file
    with _readable_failure(file):
        wanted = _shards(file, endpoint) if file.many else [file]
        found = [
            hf_hub_download(
                one.repo,
                one.path,
                repo_type="dataset",
                revision=one.revision,
                endpoint=endpoint,
                cache_dir=cache,
            )
            for one in wanted
        ]
    if file.many:
        return Shards(name=str(file), files=tuple(map(Path, found)))
    return Path(found[0])


def _shards(file: HubFile, endpoint: str | None) -> list[HubFile]:
    """Ask which files fit the pattern of `file`, at the commit that its revision means now."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).dataset_info(
        file.repo, revision=file.revision, timeout=LISTING_S
    )
    folder, _, pattern = file.path.rpartition("/")
    found = [
        replace(file, path=path, revision=info.sha or file.revision)
        for path in sorted(one.rfilename for one in info.siblings or [])
        if path.rpartition("/")[0] == folder
        and fnmatch.fnmatchcase(path.rpartition("/")[2], pattern)
    ]
    if not found:
        raise DataError([f"{file}: no file there fits this pattern"])
    return found


@contextmanager
def _readable_failure(file: HubFile) -> Iterator[None]:
    """Turn what the hub's library raises into whether to try again, or to name another file."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library

    try:
        yield
    except (HTTPError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if hub_is_silent(error):
            raise ConnectionError(f"the hub does not answer: {lines[0]}") from error
        raise DataError([f"{file} cannot be fetched: {lines[0]}"]) from error


def rely_on_cache(wait_s: float = ANSWER_S) -> str | None:
    """Ask the hub for a sign of life, and without one let its library look into its cache alone.

    The library itself would try for half a minute per file. Call it before anything imports the
    library, which reads its environment once. Return what to do where the cache does not suffice;
    None if the hub answers, or if the network is switched off anyway.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return None
    # Late: most callers only read names of files, and these take as long as all the rest here.
    import http.client
    import ssl
    import urllib.error
    import urllib.request

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
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]  # one is of its HTTP library

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, LocalEntryNotFoundError):
            return not constants.HF_HUB_OFFLINE
        if isinstance(seen, HfHubHTTPError) and seen.response is not None:
            return bool(seen.response.status_code >= 500 or seen.response.status_code == 429)
        if isinstance(seen, HTTPError):  # nobody there, or nothing heard
            return True
        seen = seen.__cause__ or seen.__context__
    return False
