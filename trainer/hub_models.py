"""Asks a hub about a base model: may this user have it, what is it, and at which commit.

    ConfigError
    └── BaseRefusedError          `problem` says what is wrong, `hint` what to do next
        ├── ModelNotFoundError    no such repository, or one that this user may not see
        ├── TokenRefusedError     the hub does not accept the token
        ├── AccessDeniedError     gated: terms not accepted, access awaits a review, or was refused
        ├── NoSuchRevisionError   the repository has no such branch, tag or commit
        └── NotABaseError         the repository holds no model that can be trained
    ConnectionError               the hub does not answer, or the network is switched off

Only descriptions are fetched here: `config.json` and the tokenizer, no weights. What a hub answers
is a stranger's word: it is checked, and shown in one short line.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trainer import untrusted
from trainer.errors import ConfigError
from trainer.hub import PLACE, hub_is_silent
from trainer.hub_files import description_names, model_problem, weights_bytes
from trainer.secret import Secret

ANSWER_S = 5.0
"""That a hub may take over one answer."""
COMMIT = re.compile(r"[0-9a-f]{40}")
TRUE_WORDS = frozenset({"1", "ON", "YES", "TRUE"})
WORDS_MAX = 300
"""Characters of an answer that are shown."""
NEAR_MAX, NEAR_CUTOFF = 3, 0.75
LISTED_MAX = 500
"""Names of an owner's models that are compared with a misspelt one."""


class BaseRefusedError(ConfigError):
    """A hub does not give this base, or gives none; `hint` says what to do next."""

    def __init__(self, problem: str, hint: str) -> None:
        self.problem = problem
        self.hint = hint
        super().__init__([f"model.id: {problem}", f"hint: {hint}"])


class ModelNotFoundError(BaseRefusedError):
    """There is no such repository of a model, or this user may not see it."""


class TokenRefusedError(BaseRefusedError):
    """The hub does not accept the token, whatever is asked for."""


class AccessDeniedError(BaseRefusedError):
    """The repository is gated, and this user has no access to its files (yet)."""


class NoSuchRevisionError(BaseRefusedError):
    """The repository has no such branch, tag or commit."""


class NotABaseError(BaseRefusedError):
    """The repository holds something else than a model that can be trained."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """Which hub is asked, and as whom."""

    endpoint: str = PLACE
    token: Secret | None = field(default=None, repr=False)
    token_name: str = ""
    """Where the token comes from, as messages call it."""

    @property
    def token_argument(self) -> str | bool:
        """What the library's functions get: without a token none is sent, not even a stored one."""
        return self.token.reveal() if self.token else False

    @property
    def tokens_page(self) -> str:
        """Where the hub's users make their tokens."""
        return f"{self.endpoint}/settings/tokens"


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A base on a hub that this user may have."""

    id: str
    commit: str
    """What the revision means now: 40 hexadecimal digits."""
    gated: bool
    private: bool
    files: Mapping[str, int | None]
    """The files of the repository with their sizes in bytes, as far as they are told."""
    warning: str = ""

    @property
    def restricted(self) -> bool:
        """Whether only a machine with a token could fetch it."""
        return self.gated or self.private

    @property
    def weights_bytes(self) -> int | None:
        """How large its weights are together; None if the hub does not tell."""
        return weights_bytes(self.files)


def find_account(environment: Mapping[str, str], *, token_env: str = "") -> Account:
    """Return the hub and the user that `environment` names: that of `token_env`, if it is given.

    Otherwise the token is HF_TOKEN, or the one that `hf auth login` stored.

    Raises:
        TokenRefusedError: the variable holds what can be no token.
    """
    endpoint = (environment.get("HF_ENDPOINT") or PLACE).rstrip("/")
    for name in filter(None, (token_env, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")):
        text = environment.get(name, "").strip()
        if text:
            return Account(endpoint=endpoint, token=_checked_token(text, name), token_name=name)
    if environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in TRUE_WORDS:
        return Account(endpoint=endpoint)
    from huggingface_hub import get_token

    stored = get_token()
    name = "the token stored by `hf auth login`"
    token = _checked_token(stored, name) if stored else None
    return Account(endpoint=endpoint, token=token, token_name=name if token else "")


def _checked_token(text: str, name: str) -> Secret:
    """Return the token; other characters would be shown by an error of the HTTP library."""
    if re.fullmatch(r"[!-~]{1,1000}", text) is None:
        raise TokenRefusedError(
            f"what {name} holds is no token of a hub: it has spaces or characters beyond ASCII",
            f"copy the token anew, and `export {name}=...`",
        )
    return Secret(text)


def find_model(
    account: Account,
    model: str,
    revision: str,
    *,
    trust_remote_code: bool = False,
) -> HubModel:
    """Return the base of that name if this user may have it, at the commit that `revision` means.

    Raises:
        BaseRefusedError: it may not be had, or is none; the class says why.
        ConnectionError: the hub does not answer, or the network is switched off.
    """
    with _translated(account, model, revision):
        account, info, warning = _info_for(account, model, revision)
        if info.gated:
            _require_file(account, model, info)
    files = {one.rfilename: one.size for one in info.siblings or []}
    problem = model_problem(model, files, info, trust_remote_code=trust_remote_code)
    if problem:
        raise NotABaseError(*problem)
    return HubModel(
        id=model,
        commit=info.sha,
        gated=bool(info.gated),
        private=bool(info.private),
        files=files,
        warning=warning,
    )


def fetch_description(
    account: Account, model: HubModel, revision: str, *, cache: Path, trust_remote_code: bool
) -> Path:
    """Fetch `config.json` and the tokenizer into the library's cache; return their directory.

    What is there already is not fetched again. No weights are fetched.

    Raises:
        BaseRefusedError, ConnectionError: as `find_model` does.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    names = description_names(model.files, code=trust_remote_code)
    with _translated(account, model.id, revision):
        found = snapshot_download(
            model.id,
            revision=revision,
            allow_patterns=names,
            cache_dir=cache,
            endpoint=account.endpoint,
            token=account.token_argument,
        )
    return Path(found)


def require_read_only(account: Account) -> str:
    """Check that the token of `account` can change nothing; return a warning if that is not told.

    Raises:
        TokenRefusedError: it may write, or the hub does not accept it.
        ConnectionError: the hub does not answer.
    """
    found = _whoami(account)
    if found is None:
        raise _token_refused(account)
    token = untrusted.table(untrusted.table(found.get("auth")).get("accessToken"))
    role = untrusted.text(token.get("role")) or ""
    writes = [one for one in _permissions(token) if one.endswith("write")]
    if role in {"write", "admin"} or writes:
        what = f"has the permission `{writes[0]}`" if writes else "may write"
        raise TokenRefusedError(
            f"{account.token_name} {what}, and a machine that is rented gets only a token that "
            "may read",
            f"make a token of the type `Read` at {account.tokens_page}",
        )
    if role in {"read", "fineGrained"}:
        return ""
    return f"the hub does not say whether {account.token_name} may only read"


def is_offline(environment: Mapping[str, str]) -> bool:
    """Tell whether the user has switched the network off for the hub's library."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(environment.get(name, "").upper() in TRUE_WORDS for name in names)


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Return where the hub's library keeps what it fetched."""
    top = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{top}/huggingface"
    return Path(os.path.expandvars(environment.get("HF_HUB_CACHE") or f"{home}/hub")).expanduser()


def cached_repository(model: str, environment: Mapping[str, str]) -> Path:
    """Return the folder of a model in that cache, in the library's own layout."""
    return cache_folder(environment) / f"models--{model.replace('/', '--')}"


def _api(account: Account) -> Any:
    from huggingface_hub import HfApi, get_session

    get_session().timeout = ANSWER_S  # some of its questions would wait for ever
    return HfApi(endpoint=account.endpoint, token=account.token_argument)


def _info_for(account: Account, model: str, revision: str) -> tuple[Account, Any, str]:
    """Return what a repository is, who was told so, and a warning if that is somebody without name.

    A token that the hub does not accept any more keeps nobody from a base that everybody may have.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return account, _info(account, model, revision), ""
    except HfHubHTTPError as error:
        if error.response.status_code != 401 or account.token is None or _is_accepted(account):
            raise
        anonymous = Account(endpoint=account.endpoint)
        try:
            info = _info(anonymous, model, revision)
        except HfHubHTTPError:
            info = None
        if info is None or info.gated:
            raise _token_refused(account) from error
    what = f"the hub does not accept {account.token_name}: it is mistyped, expired or revoked"
    return anonymous, info, what


def _info(account: Account, model: str, revision: str) -> Any:
    """Ask what a repository is; raise what the library raises."""
    info = _api(account).model_info(model, revision=revision, files_metadata=True, timeout=ANSWER_S)
    if not isinstance(info.sha, str) or COMMIT.fullmatch(info.sha) is None:
        raise ConnectionError(f"{account.endpoint} tells no commit of {model}: is it a hub?")
    return info


def _require_file(account: Account, model: str, info: Any) -> None:
    """Ask for a file of a gated repository: everybody may list it, only some may have it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    name = "config.json" if "config.json" in _names(info) else "README.md"
    url = hf_hub_url(model, name, revision=info.sha, endpoint=account.endpoint)
    get_hf_file_metadata(
        url, token=account.token_argument, timeout=ANSWER_S, endpoint=account.endpoint
    )


def _names(info: Any) -> list[str]:
    return [one.rfilename for one in info.siblings or []]


@contextmanager
def _translated(account: Account, model: str, revision: str) -> Iterator[None]:
    """Turn what the library raises into the classes above, once."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # one is of its HTTP library
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (BaseRefusedError, ConnectionError):
        raise
    except GatedRepoError as error:
        raise _access_denied(account, model, error) from error
    except RevisionNotFoundError as error:
        raise _no_such_revision(account, model, revision) from error
    except RepositoryNotFoundError as error:
        raise _not_found(account, model) from error
    except HfHubHTTPError as error:
        words = _shown(error)
        if hub_is_silent(error):
            raise ConnectionError(words) from error
        if "fine-grained" in words.lower():
            raise _needs_permission(account, model) from error
        raise BaseRefusedError(
            f"the hub refuses `{model}`: {words}", f"open {account.endpoint}/{model}"
        ) from error
    except (HTTPError, OSError) as error:
        raise ConnectionError(_shown(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # an answer that is none
        reason = f"{account.endpoint} answers like no hub ({type(error).__name__})"
        raise ConnectionError(reason) from error


def _shown(error: BaseException) -> str:
    """Return the words of an error in one short line: the hub's own, if it said any."""
    words = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    line = " ".join((untrusted.text(words, most=WORDS_MAX) or "").split())
    return line or type(error).__name__


def _access_denied(account: Account, model: str, error: Any) -> AccessDeniedError:
    """Return the error for a gated repository, by how far this user got with it."""
    page, words = f"{account.endpoint}/{model}", _shown(error).lower()
    if account.token is None:
        return AccessDeniedError(
            f"`{model}` is gated, and nobody is signed in to the hub here",
            f"open {page} and accept its terms; then `hf auth login`, or `export HF_TOKEN=...` "
            f"with a read token of that account ({account.tokens_page})",
        )
    who = _user(account)
    if "awaiting" in words or "pending" in words:
        return AccessDeniedError(
            f"`{model}` is gated, and the access that {who} asked for awaits a review by its "
            "owners",
            f"{page} says when it is granted; then the same command goes on",
        )
    if "rejected" in words:
        return AccessDeniedError(
            f"`{model}` is gated, and its owners refused access to {who}",
            f"take another base, or see {page}",
        )
    return AccessDeniedError(
        f"`{model}` is gated, and {who} has not been given access to it",
        f"open {page} as that user and accept its terms, then try again",
    )


def _needs_permission(account: Account, model: str) -> AccessDeniedError:
    return AccessDeniedError(
        f"`{model}` is gated, and {account.token_name} is a fine-grained token that may not read "
        "gated repositories",
        f"allow it `Read access to contents of all public gated repos you can access` at "
        f"{account.tokens_page}, or take a token of the type `Read`",
    )


def _token_refused(account: Account) -> TokenRefusedError:
    return TokenRefusedError(
        f"the hub does not accept {account.token_name}: it is mistyped, has expired or was revoked",
        f"make a read token at {account.tokens_page}, then `hf auth login`, or "
        f"`export {account.token_name if ' ' not in account.token_name else 'HF_TOKEN'}=...`",
    )


def _not_found(account: Account, model: str) -> BaseRefusedError:
    """Return the error for a repository that is not there: what is, under that or a near name."""
    api = _api(account)
    for kind, info_of in (("data set", api.dataset_info), ("space", api.space_info)):
        if _answer(partial(info_of, model, timeout=ANSWER_S)) is not None:
            return ModelNotFoundError(
                f"`{model}` is a {kind} on the hub, and no model", "name a model: `OWNER/NAME`"
            )
    near = _near_names(api, model)
    meant = f"did you mean {' or '.join(f'`{one}`' for one in near)}? " if near else ""
    if account.token is None:
        return ModelNotFoundError(
            f"the hub has no model `{model}`, or shows it only to those who may see it; nobody is "
            "signed in here",
            f"{meant}Check the name; for a private model `hf auth login`, or `export HF_TOKEN=...`",
        )
    return ModelNotFoundError(
        f"the hub has no model `{model}`, or {account.token_name} may not see it",
        f"{meant}Check the name at {account.endpoint}/models",
    )


def _near_names(api: Any, model: str) -> list[str]:
    """Return models with nearly that name, of the same owner or of another; none if unknown."""
    owner, _, name = model.rpartition("/")
    filters: list[dict[str, str]] = [{"author": owner}] if owner else []
    for one in (*filters, {"search": name}):
        listed = _answer(partial(_model_names, api, one)) or []
        by_lower = {name.lower(): name for name in listed if untrusted.text(name) == name}
        found = difflib.get_close_matches(model.lower(), by_lower, n=NEAR_MAX, cutoff=NEAR_CUTOFF)
        if found:
            return [by_lower[name] for name in found]
    return []


def _model_names(api: Any, filters: Mapping[str, str]) -> list[str]:
    return [one.id for one in api.list_models(**filters, limit=LISTED_MAX)]


def _no_such_revision(account: Account, model: str, revision: str) -> NoSuchRevisionError:
    refs = _answer(partial(_api(account).list_repo_refs, model))
    names = [one.name for one in (*refs.branches, *refs.tags)] if refs else []
    near = difflib.get_close_matches(revision, names, n=1) or names[:NEAR_MAX]
    there = f"it has {', '.join(f'`{one}`' for one in near)}" if near else "see its page"
    return NoSuchRevisionError(
        f"`{model}` has no revision `{revision}`",
        f"model.revision is a branch, tag or full commit; {there} "
        f"({account.endpoint}/{model}/commits/main)",
    )


def _user(account: Account) -> str:
    """Return who the token belongs to, as far as the hub tells."""
    name = untrusted.text((_whoami(account, quiet=True) or {}).get("name"), most=100)
    return f"`{name}` (of {account.token_name})" if name else f"the user of {account.token_name}"


def _is_accepted(account: Account) -> bool:
    """Tell whether the hub accepts the token; if it does not say, take it that it does."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return _whoami(account) is not None
    except (HfHubHTTPError, OSError):
        return True


def _whoami(account: Account, *, quiet: bool = False) -> dict[str, Any] | None:
    """Return what the hub knows of the token; None if it does not accept it.

    Raises ConnectionError, unless it is `quiet`, if the hub does not answer.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # see above

    try:
        return untrusted.table(_api(account).whoami())
    except HfHubHTTPError as error:
        if error.response.status_code == 401 or quiet:
            return None
        raise ConnectionError(_shown(error)) from error
    except (HTTPError, OSError, ValueError) as error:
        if quiet:
            return None
        raise ConnectionError(_shown(error)) from error


def _permissions(token: Mapping[str, Any]) -> list[str]:
    """Return the permissions of a fine-grained token, for all and for single repositories."""
    table = untrusted.table(token.get("fineGrained"))
    scopes = table.get("scoped")
    lists = [table.get("global")]
    lists += [untrusted.table(one).get("permissions") for one in scopes or []]
    return [str(name) for names in lists if isinstance(names, list) for name in names]


def _answer(request: Callable[[], Any]) -> Any:
    """Return an answer that only helps; None if there is none."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # see above

    try:
        return request()
    except (HTTPError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
