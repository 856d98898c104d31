"""Puts an adapter or a merged model on a hub, with a card that says what it is and how good.

    python -m trainer publish --run-dir DIR --repo NAME/MODEL [--folder DIR] [--public]

The token comes from the environment (`HF_TOKEN`) and is never printed, logged or stored. Only
weights in safetensors, configs, tokenizer files and the card are sent.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import hub
from trainer.adapters.methods import saved_format
from trainer.config import TrainerConfig, load_config
from trainer.exit_codes import ExitCode, TrainerError
from trainer.pages import report
from trainer.pages.run_files import MALFORMED
from trainer.results.base_name import BaseName, public_base_name, without_local_paths
from trainer.results.export import export

HUB = "https://huggingface.co"
SENT = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
MAY_BE_THERE = {401, 402, 403, 409}
TOO_MANY = 429  # the status of a hub that wants to be asked later
SILENCE_S = 90.0  # that a hub may take over a word; its library would wait for ever
NEVER_SENT = ("qft.json", "*optimizer*", "*rng*", ".*")


class CannotPublishError(TrainerError):
    """The hub refused, or there is nothing to send; the message says what to do."""


class SilentHubError(CannotPublishError):
    """The hub was not reached, or has a trouble of its own: try again later."""

    exit_code = ExitCode.FAILED_IO


def card(config: TrainerConfig, told: Mapping[str, Any], *, base: BaseName, merged: bool) -> str:
    """Return the model card: base, method, data, scores with intervals, and what it cost.

    Local paths are left out: a directory is named by its last part only. `base_model` is there only
    for a base on a hub, since a hub refuses a card that names another.
    """
    method, train = config.method, config.train
    kind = "merged model" if merged else "adapter"
    used = (
        f"- {method.kind}, rank {method.r}, alpha {method.alpha:g}, dropout {method.dropout:g}, "
        f"base stored as {method.storage}"
    )
    schedule = (
        f"- {told['steps']} optimizer steps of {train.batch_size} sequences, "
        f"learning rate {train.lr:g}, at most {train.max_length} tokens, seed {train.seed}"
    )
    named = {"train": config.data.train, "eval": config.data.eval} | told["facts"].get("data", {})
    rows = (told["after"] or told["before"] or {}).get("n")
    counted = f"{rows} rows of " if rows else ""
    scored = f", scored on {counted}`{_data_name(named['eval'])}`" if config.data.eval else ""
    head = [
        "---",
        *([f"base_model: {json.dumps(base.name)}"] if base.on_hub else []),
        f"library_name: {'transformers' if merged else 'peft'}",
        f"tags: [qft, {method.kind}]",
        "---",
        "",
        f"# {base.name}, fine-tuned ({kind})",
        "",
        "## Method",
        "",
        used,
        schedule,
        "",
        "## Data",
        "",
        f"- learnt from `{_data_name(named['train'])}`{scored}",
    ]
    if config.data.messages is None:
        template = config.data.prompt + config.data.completion
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", template)), default=0))
        head += ["- prompt and completion:", "", fence, template, fence]
    lines = [*head, "", "## Scores", "", *_scores(told, merged=merged)]
    lines += ["", "## Cost", "", *_cost(told), ""]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Repository:
    """Where to publish: a repository on a hub, and the right to write there."""

    repo: str
    token: str = field(repr=False)
    endpoint: str | None = None
    private: bool = True


def publish(folder: Path, repository: Repository, *, text: str, base: BaseName) -> str:
    """Make the repository if need be, send folder and card in one commit; return its address.

    Where a config names a model by a path of this computer or the machine, `base` is sent instead.

    Raises:
        CannotPublishError: nothing to send, or the hub refused; the token is not in the message.
        SilentHubError: the hub does not answer as it should.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library

    files = [path for path in sorted(folder.iterdir()) if _is_sent(path)]
    if not any(path.suffix == ".safetensors" for path in files):
        raise CannotPublishError(f"{folder} holds no safetensors file: nothing to publish")
    api = HfApi(endpoint=repository.endpoint, token=repository.token)
    get_session().timeout = SILENCE_S
    with ExitStack() as opened:
        # Another hub than the official one need not know its storage protocol; an open file makes
        # the library use plain HTTP.
        sources = [
            without_local_paths(path, base)
            or (path if repository.endpoint is None else opened.enter_context(path.open("rb")))
            for path in files
        ]
        operations = [
            CommitOperationAdd(path.name, source)
            for path, source in zip(files, sources, strict=True)
        ]
        operations.append(CommitOperationAdd("README.md", text.encode()))
        try:
            _make_repository(api, repository)
            api.create_commit(
                repository.repo, operations=operations, commit_message="Add the model and its card"
            )
        except (HTTPError, OSError, ValueError, RuntimeError, KeyError) as error:
            said = (str(error) or type(error).__name__).replace(repository.token, "***")
            # From nothing: the cause holds the request, and the request the token.
            raise _told(error, said, repository.repo) from None
    return f"{(repository.endpoint or HUB).rstrip('/')}/{repository.repo}"


def _make_repository(api: Any, repository: Repository) -> None:
    """Make the repository, unless it is there, or may be and this token makes none.

    Then the commit shows which it is. The library's own `exist_ok` cannot be used: on another hub
    than the official one it fails over the address of what is there.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repository.repo, private=repository.private)
    except HfHubHTTPError as error:
        if error.response.status_code not in MAY_BE_THERE:
            raise


def _told(error: Exception, said: str, repo: str) -> CannotPublishError:
    """Return what the hub said, and what to do about it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, HFValidationError):
        return CannotPublishError(
            f"`{repo}` cannot name a model: {said}\nhint: write --repo OWNER/MODEL"
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if 400 <= status < 500 and status != TOO_MANY:
        return CannotPublishError(
            f"the hub refused: {said}\nhint: check that HF_TOKEN may write to {repo}"
        )
    return SilentHubError(
        f"the hub does not answer as it should: {said}\n"
        "hint: nothing is half-published; the same command tries again"
    )


@contextmanager
def plain(folder: Path) -> Iterator[Path]:
    """Yield the folder, or for a NOLA adapter a copy for a while that PEFT alone can load.

    Raises:
        ConfigError: the adapter is not whole.
    """
    if saved_format(folder).peft_loads:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="qft-plain-") as scratch:
        yield export(folder, Path(scratch) / "adapter").directory


def _is_sent(path: Path) -> bool:
    return (
        path.is_file()
        and any(path.match(pattern) for pattern in SENT)
        and not any(path.match(pattern) for pattern in NEVER_SENT)
    )


def _scores(told: Mapping[str, Any], *, merged: bool) -> list[str]:
    alike = report.describe_agreement(told["merged"]) if merged else None
    parity = ["", f"The merged model {alike}."] if alike else []
    rows = ["| model | figure | value | 95 % interval |", "| --- | --- | --- | --- |"]
    for name, figures in told["baselines"].items():
        rows.append(
            _score(report.BASELINE_NAMES.get(name, name), "exact_match", figures["exact_match"])
        )
    for stage, word in (("before", "base"), ("after", "fine-tuned")):
        if told[stage]:
            rows.append(_score(word, told[stage]["metric"], told[stage]))
    return [*(rows if len(rows) > 2 else ["not scored"]), *parity]


def _score(name: str, metric: str, figure: Mapping[str, float]) -> str:
    span = f"{figure['low']:.3f} to {figure['high']:.3f}"
    return f"| {name} | {metric} | {figure['value']:.3f} | {span} |"


def _cost(told: Mapping[str, Any]) -> list[str]:
    facts = told["facts"]
    lines = [f"- {told['training_seconds'] / 3600:.2f} hours of training steps"]
    if "usd" in facts:
        listed = " at the listed price" if facts.get("listed") else ""
        lines.append(f"- {facts['usd']:.2f} USD{listed}")
    lines.append(f"- {len(told['evictions'])} evictions survived")
    return lines


def _data_name(name: str) -> str:
    """Return a file's last part, but the whole name of one on a hub, which others can look up."""
    return name if hub.parse(name) else Path(name).name


def _written(write: Callable[[], str]) -> str:
    """Return a card; raises `CannotPublishError` for results that no training here writes."""
    try:
        return write()
    except MALFORMED as error:
        raise CannotPublishError(
            f"the results of the run are not as a training here writes them ({error!r})\n"
            "hint: `qft fetch` brings them anew"
        ) from error


def _warning(base: BaseName, *, merged: bool) -> str:
    """Return what others lack when the base is not on a hub."""
    must = "" if merged else ", and others must say which base the adapter goes with"
    return (
        f"the base `{base.name}` was a directory here: the card leaves `base_model` out{must}\n"
        "hint: if it is on a hub, the same command with `--base OWNER/NAME` says so\n"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what is published where."""
    parser.add_argument("--run-dir", type=Path, required=True, help="what the run left behind")
    parser.add_argument("--repo", required=True, help="NAME/MODEL on the hub")
    parser.add_argument("--folder", type=Path, help="a merged model instead of the adapter")
    parser.add_argument("--base", default="", help="OWNER/NAME of a base that was a directory")
    parser.add_argument("--facts", type=Path, help="JSON of what only the laptop knows")
    parser.add_argument("--endpoint", default=os.environ.get("HF_ENDPOINT"), help="another hub")
    parser.add_argument("--public", action="store_true", help="visible to everybody")


def run(args: argparse.Namespace) -> int:
    """Publish, and print the address."""
    token = os.environ.get("HF_TOKEN", "")
    if not token:
        raise CannotPublishError(
            "HF_TOKEN is not set\nhint: `export HF_TOKEN=...` with a write token"
        )
    folder = args.folder or args.run_dir / "adapter"
    config = load_config(args.run_dir / "config.json")
    facts = json.loads(args.facts.read_text(encoding="utf-8")) if args.facts else None
    called = {"folder": (facts or {}).get("base", ""), "given": args.base}
    base = public_base_name(config.model.id, args.run_dir, **called)
    merged = args.folder is not None
    text = _written(
        lambda: card(config, report.build(args.run_dir, facts), base=base, merged=merged)
    )
    repository = Repository(
        repo=args.repo, token=token, endpoint=args.endpoint, private=not args.public
    )
    with plain(folder) as sent:
        address = publish(sent, repository, text=text, base=base)
    if not base.on_hub:
        sys.stderr.write(_warning(base, merged=merged))
    sys.stdout.write(f"{address}\n")
    return ExitCode.DONE
