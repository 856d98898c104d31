"""Asks the hub about a run's base before anything is rented, and fetches what this computer sends.

A base that everybody may have is fetched by the machine itself, at the commit that was found when
the run began. One that is gated or private is fetched here, with the user's own token, and sent
like a directory, so that no token leaves this computer; unless `model.token_env` names a read-only
token for the machine. A hub that does not answer refuses nothing.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.runs import base_files
from commands.runs.base_description import did_you_mean
from commands.runs.base_record import HubBase, recorded_base
from commands.runs.config import LoadedConfig
from commands.runs.home import RunFolder, environment, make_private, read_saved_config
from commands.runs.local_trainer import start
from commands.ui.errors import HostError, UsageError
from infra.durable import write_bytes
from remote.errors import megabytes
from trainer import hub_models
from trainer.exit_codes import ExitCode
from trainer.results.base_name import BaseName, without_local_paths

if TYPE_CHECKING:
    from commands.ui.console import Console
    from trainer.config import ModelTable

LIBRARY = "huggingface_hub"
COMMIT_SHOWN = 12
PROGRESS_S = 1.0
OnMessage = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class HubAnswer:
    """What the hub said of the base that a run.yaml names."""

    base: HubBase
    found: hub_models.HubModel
    line: str
    """What a user should know of it."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "id": self.base.id,
            "commit": self.base.commit,
            "restricted": self.found.restricted,
            "weights_bytes": self.found.weights_bytes,
            "sent": self.base.sent,
        }


def inspect_base(
    loaded: LoadedConfig, on_message: OnMessage, begun: HubBase | None = None
) -> HubAnswer | None:
    """Ask the hub for the base, fetch its description, and return what the hub said.

    Of a run that has `begun` with a base, the commit that it recorded is looked at.

    None if the base is a directory, or if the hub cannot be asked, which `on_message` tells. The
    folder of the base returned is that of its `config.json` and tokenizer.

    Raises UsageError if the base cannot be had, or is none, with what to do about it.
    """
    model, around = loaded.config.model, environment()
    if loaded.model_folder is not None:
        return None
    if hub_models.is_offline(around):
        on_message(_unknown(model, "the network is switched off for it (HF_HUB_OFFLINE)"))
        return None
    if importlib.util.find_spec(LIBRARY) is None:
        on_message(_unknown(model, f"this computer lacks `{LIBRARY}` (`pip install {LIBRARY}`)"))
        return None
    code, revision = model.trust_remote_code, begun.commit if begun else model.revision
    try:
        account = hub_models.find_account(around, token_env=model.token_env)
        found = hub_models.find_model(account, model.id, revision, trust_remote_code=code)
        cache = hub_models.cache_folder(around)
        folder = hub_models.fetch_description(
            account, found, revision, cache=cache, trust_remote_code=code
        )
    except hub_models.ModelNotFoundError as error:
        neither = f"; nor is there a directory of that name beside {loaded.path.name}"
        raise _refused(error, more=neither) from error
    except hub_models.BaseRefusedError as error:
        raise _refused(error) from error
    except ConnectionError as error:
        on_message(_unknown(model, f"it does not answer ({error})"))
        return None
    if found.warning:
        on_message(f"warning: {found.warning}")
    base = HubBase(
        id=model.id,
        revision=model.revision,
        commit=found.commit,
        sent=begun.sent if begun else found.restricted and not model.token_env,
        folder=folder,
    )
    return HubAnswer(base=base, found=found, line=_line(base, found, model))


def require_token(loaded: LoadedConfig, on_message: OnMessage) -> hub_models.Account | None:
    """Return the account whose token the machine gets, None if run.yaml names none for it.

    Raises UsageError if it is not set here, or may do more than read. What the hub does not tell
    is no refusal; `on_message` tells of it.
    """
    name = loaded.config.model.token_env
    if not name or loaded.model_folder is not None:
        return None
    around = environment()
    if not around.get(name, "").strip():
        raise UsageError(
            f"model.token_env: `{name}` is not set in this environment; nothing was rented",
            hint=f"`export {name}=...` with a read token; without `token_env` the base is fetched "
            "here and sent, and no token leaves this computer",
        )
    try:
        account = hub_models.find_account(around, token_env=name)
        if hub_models.is_offline(around) or importlib.util.find_spec(LIBRARY) is None:
            return account
        if warning := hub_models.require_read_only(account):
            on_message(f"warning: {warning}")
    except hub_models.BaseRefusedError as error:
        raise _refused(error, key="model.token_env") from error
    except ConnectionError as error:
        on_message(f"warning: the hub does not say whether `{name}` may only read ({error})")
    return account


def base_begun_with(loaded: LoadedConfig, run: RunFolder) -> HubBase | None:
    """Return the base that a run recorded when it began; None if it has not, or recorded none."""
    return recorded_base(loaded, read_saved_config(run), run) if run.exists() else None


def choose_base(
    loaded: LoadedConfig,
    saved: Mapping[str, object],
    run: RunFolder,
    *,
    bound: bool,
    console: Console,
) -> HubBase | None:
    """Return the base on a hub that a run takes: as it was recorded, or as the hub has it now.

    What this computer sends is fetched. None if it is a directory, if the hub cannot be asked, or
    if the run is `bound` by a start that recorded none: then the machine finds it by itself.

    Raises UsageError if the base cannot be had.
    """
    base, size = recorded_base(loaded, saved, run), None
    if base is None and not bound:
        answer = inspect_base(loaded, console.log)
        if answer is not None:
            console.log(answer.line)
            # Its description is no base to send.
            base, size = replace(answer.base, folder=None), answer.found.weights_bytes
    if base is not None and base.sent:
        return fetch_weights(base, size, run, console)
    return base


def fetch_weights(base: HubBase, size: int | None, run: RunFolder, console: Console) -> HubBase:
    """Fetch a base whole into the cache of the hub's library; return it with a folder of links.

    Only what training loads is linked, so that what else the cache has of it does not count. What
    is there already is not asked for again. Raises UsageError if it cannot be fetched, or if there
    is no room for it, HostError if the hub is not reached.
    """
    if not _is_linked(run.base, base):
        if size is not None:
            _require_room(base, hub_models.cache_folder(environment()), size)
        amount = f" ({megabytes(size)})" if size is not None else ""
        console.log(f"fetching `{base.id}` here{amount}; nothing is rented meanwhile")
        with _progress_shown(base, size, console):
            fetched = _fetched(base)
        broken = base_files.faults(_make_symlinks(fetched, run.base))
        if broken:
            raise UsageError(
                f"the base `{base.id}` in `{fetched}` cannot be used; nothing was rented",
                problems=broken,
                hint=f"remove `{fetched.parents[1]}`, so that it is fetched again",
            )
    return replace(base, folder=run.base)


def name_sent_base(loaded: LoadedConfig, run: RunFolder) -> None:
    """Let the adapter that came home name its base by the hub's id, and not by a path there."""
    base = recorded_base(loaded, read_saved_config(run), run)
    path = loaded.out / "adapter" / "adapter_config.json"
    if base is None or not base.sent or not path.is_file():
        return
    content = without_local_paths(path, BaseName(name=base.id, on_hub=True))
    if content is not None:
        write_bytes(path, content, mode=0o644)


def _fetched(base: HubBase) -> Path:
    """Let the trainer's tool fetch a base, its progress shown as it comes; return where it lies."""
    done = start("fetch-base", "--model", base.id, "--revision", base.commit)
    if done.returncode == 0:
        return Path(done.stdout.strip())
    error = HostError if done.returncode == ExitCode.FAILED_IO else UsageError
    raise error(
        f"the base `{base.id}` was not fetched; nothing was rented, the reason is above",
        hint="the same command goes on where it stopped; or let the machine fetch it: "
        "`model: {token_env: NAME}` names a read-only token for that",
    )


@contextmanager
def _progress_shown(base: HubBase, size: int | None, console: Console) -> Iterator[None]:
    """Tell every second inside how much of a base the cache has; nothing if its size is unknown."""
    blobs = hub_models.cached_repository(base.id, environment()) / "blobs"
    over = threading.Event()

    def show() -> None:
        while size and not over.wait(PROGRESS_S):
            console.progress("base from the hub", min(_bytes_in(blobs), size), size)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _bytes_in(folder: Path) -> int:
    """Return how large the files of a folder are, also those that are still being fetched."""
    total = 0
    for path in folder.glob("*"):
        with suppress(OSError):  # it was renamed: its whole name is counted, or the next time
            total += path.stat().st_size
    return total


def _require_room(base: HubBase, cache: Path, size: int) -> None:
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise UsageError(
            f"the base `{base.id}` has {megabytes(size)}, and `{there}` has {megabytes(free)} free",
            hint="make room there, let HF_HOME name a larger disk, or let the machine fetch it: "
            "`model: {token_env: NAME}` names a read-only token for that",
        )


def _is_linked(links: Path, base: HubBase) -> bool:
    """Whether the links lead to files of this commit that are all there."""
    try:
        targets = [path.readlink() for path in links.iterdir()]
    except OSError:
        return False
    return bool(targets) and all(
        base.commit in target.parts and target.is_file() for target in targets
    )


def _make_symlinks(fetched: Path, links: Path) -> Path:
    """Make a folder of links to the files of a base that training loads; whole or absent."""
    make_private(links.parent)
    scratch = Path(tempfile.mkdtemp(prefix="base-", dir=links.parent))
    for path in base_files.read_there(fetched):
        (scratch / path.name).symlink_to(path.absolute())
    shutil.rmtree(links, ignore_errors=True)
    scratch.rename(links)
    return links


def _refused(error: hub_models.BaseRefusedError, *, key: str = "", more: str = "") -> UsageError:
    """Return the error for a person: the base cannot be had, why, and what to do next."""
    revision = isinstance(error, hub_models.NoSuchRevisionError)
    key = key or ("model.revision" if revision else "model.id")
    return UsageError(
        "the base cannot be used; nothing was rented",
        problems=[f"{key}: {error.problem}{more}"],
        hint=error.hint,
    )


def _unknown(model: ModelTable, why: str) -> str:
    meant = did_you_mean(model.id, after="; ")
    return f"note: the hub was not asked whether you may have `{model.id}`: {why}{meant}"


def _line(base: HubBase, found: hub_models.HubModel, model: ModelTable) -> str:
    """Describe the base and who fetches it, in one line."""
    size = f" ({megabytes(found.weights_bytes)})" if found.weights_bytes else ""
    what = f"base: `{base.id}` at commit {base.commit[:COMMIT_SHOWN]}{size}"
    if not found.restricted:
        return f"{what}, which the machine fetches from the hub"
    kind = "gated" if found.gated else "private"
    if base.sent:
        return (
            f"{what}, {kind}, and you may have it: it is fetched here and sent, so that no token "
            "leaves this computer"
        )
    return (
        f"{what}, {kind}, and you may have it: the machine fetches it with the token of "
        f"`{model.token_env}`, which it keeps in memory only"
    )
