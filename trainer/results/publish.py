"""Publishes an adapter or a merged model on a hub, with a model card of method, data and scores.

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
from trainer.config import TrainerConfig
from trainer.data_table import DataTable
from trainer.errors import TrainerError
from trainer.exit_codes import ExitCode
from trainer.pages.run_files import MALFORMED, build_report
from trainer.pages.scores import BASELINE_NAMES
from trainer.pages.summary import describe_agreement
from trainer.results.base_name import BaseName, public_base_name, without_local_paths
from trainer.results.export import export
from trainer.saving.run_day import load_run_config

HUB = "https://huggingface.co"
SENT = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
MAY_BE_THERE = {401, 402, 403, 409}
TOO_MANY = 429  # the status of a hub that wants to be asked later
SILENCE_S = 90.0  # that a hub may take over a word; its library would wait for ever
NEVER_SENT = ("qft.json", "*optimizer*", "*rng*", ".*")


CARD = """\
---
{{ card_data }}
---

# {{ base }}, fine-tuned ({{ kind }})

## Method

{% if parent %}- goes on from {{ parent }}
{% endif %}- {{ method.kind }}, rank {{ method.r }}, \
{% if method.kind != "miss" %}alpha {{ "%g" % method.alpha }}, {% endif %}\
dropout {{ "%g" % method.dropout }}, base stored as {{ method.storage }}
{%- if method.init != "default" %}
- first weights: {{ method.init }}
{%- endif %}
{%- if new_tokens %}
- new tokens with rows of their own: {{ new_tokens }}; resize the base to the tokenizer first
{%- endif %}
{%- if method.save %}
- trained whole beside it: {{ method.save | join(", ") }}
{%- endif %}
- {{ steps }} optimizer steps of {{ train.batch_size }} sequences, \
learning rate {{ "%g" % train.lr }}, at most {{ train.max_length }} tokens, seed {{ train.seed }}

## Data

- {{ data }}
{%- if template is not none %}
- prompt and completion:

{{ fence }}
{{ template }}
{{ fence }}
{%- endif %}

## Scores

{{ scores }}

## Cost

{{ cost }}
"""


class CannotPublishError(TrainerError):
    """The hub refused, or there is nothing to send; the message says what to do."""


class SilentHubError(CannotPublishError):
    """The hub was not reached, or has a trouble of its own: try again later."""

    exit_code = ExitCode.FAILED_IO


def model_card(
    config: TrainerConfig, results: Mapping[str, Any], *, base: BaseName, merged: bool
) -> str:
    """Return the model card: base, method, data, scores with intervals, and what it cost.

    Local paths are left out: a directory is named by its last part only. `base_model` is there only
    for a base on a hub, since a hub refuses a card that names another.
    """
    from huggingface_hub import ModelCard, ModelCardData

    table = config.data
    named = table.model_dump(mode="json", include={"train", "eval"})
    data = named | results["facts"].get("data", {})
    rows = (results["after"] or results["before"] or {}).get("n")
    counted = f"{rows} rows of " if rows else ""
    scored = f", scored on {counted}`{_data_name(data['eval'])}`" if table.eval else ""
    template = table.prompt + table.completion
    whole = f", every token of the column `{table.text}`" if table.text else ""
    seen = f"; the chat template saw the day {table.day}" if _sees_day(table) else ""
    parent = _parent(config, results["facts"].get("parent"))
    is_adapter = parent and base.on_hub and not merged
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if is_adapter else {}
    card = ModelCard.from_template(
        ModelCardData(
            base_model=base.name if base.on_hub else None,
            library_name="transformers" if merged else "peft",
            tags=["qft", str(config.method.kind)],
            **relation,
        ),
        template_str=CARD,
        base=base.name,
        parent=parent,
        new_tokens=len(config.model.new_tokens),
        kind="merged model" if merged else "adapter",
        method=config.method,
        train=config.train,
        steps=results["steps"],
        data=f"learnt from {_data_names(data['train'])}{whole}{scored}{seen}",
        template=template or None,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", template)), default=0)),
        scores="\n".join(_scores(results, merged=merged)),
        cost="\n".join(_cost(results)),
    )
    return f"{card}\n"


def _parent(config: TrainerConfig, facts: Mapping[str, Any] | None) -> str:
    """Name the adapter that the training went on from; empty if it began with a fresh one."""
    if config.method.parent is None:
        return ""
    named = facts or {"name": Path(config.method.parent).name, "sha256": None}
    digest = f" (SHA-256 `{named['sha256']}`)" if named["sha256"] else ""
    return f"the adapter `{named['name']}`{digest}; its optimizer began anew"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository on a hub, with the token to write to it."""

    repo_id: str
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
                repository.repo_id,
                operations=operations,
                commit_message="Add the model and its card",
            )
        except (HTTPError, OSError, ValueError, RuntimeError, KeyError) as error:
            reason = (str(error) or type(error).__name__).replace(repository.token, "***")
            # From nothing: the cause holds the request, and the request the token.
            raise _publish_error(error, reason, repository.repo_id) from None
    return f"{(repository.endpoint or HUB).rstrip('/')}/{repository.repo_id}"


def _make_repository(api: Any, repository: Repository) -> None:
    """Make the repository, unless it is there, or may be and this token makes none.

    Then the commit shows which it is. The library's own `exist_ok` cannot be used: on another hub
    than the official one it fails over the address of what is there.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repository.repo_id, private=repository.private)
    except HfHubHTTPError as error:
        if error.response.status_code not in MAY_BE_THERE:
            raise


def _publish_error(error: Exception, reason: str, repo: str) -> CannotPublishError:
    """Return the error for what the hub answered, with what to do about it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, HFValidationError):
        return CannotPublishError(
            f"`{repo}` cannot name a model: {reason}\nhint: write --repo OWNER/MODEL"
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if 400 <= status < 500 and status != TOO_MANY:
        return CannotPublishError(
            f"the hub refused: {reason}\nhint: check that HF_TOKEN may write to {repo}"
        )
    return SilentHubError(
        f"the hub does not answer as it should: {reason}\n"
        "hint: nothing is half-published; the same command tries again"
    )


@contextmanager
def peft_loadable(folder: Path) -> Iterator[Path]:
    """Yield the folder, or for a NOLA adapter a temporary copy that PEFT alone can load.

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


def _scores(results: Mapping[str, Any], *, merged: bool) -> list[str]:
    alike = describe_agreement(results["merged"]) if merged else None
    agreement = ["", f"The merged model {alike}."] if alike else []
    rows = ["| model | figure | value | 95 % interval |", "| --- | --- | --- | --- |"]
    scored = results["after"] or results["before"] or {}
    for name, figures in results["baselines"].items():
        for metric in ("exact_match", str(scored.get("metric"))):  # labels have the first
            if metric in figures:
                rows.append(_score(BASELINE_NAMES.get(name, name), metric, figures[metric]))
                break
    for stage, word in (("before", "base"), ("after", "fine-tuned")):
        if results[stage]:
            rows.append(_score(word, results[stage]["metric"], results[stage]))
    return [*(rows if len(rows) > 2 else ["not scored"]), *agreement]


def _score(name: str, metric: str, figure: Mapping[str, float]) -> str:
    span = f"{figure['low']:.3f} to {figure['high']:.3f}"
    return f"| {name} | {metric} | {figure['value']:.3f} | {span} |"


def _cost(results: Mapping[str, Any]) -> list[str]:
    facts = results["facts"]
    lines = [f"- {results['training_seconds'] / 3600:.2f} hours of training steps"]
    if "usd" in facts:
        listed = " at the listed price" if facts.get("listed") else ""
        lines.append(f"- {facts['usd']:.2f} USD{listed}")
    lines.append(f"- {len(results['evictions'])} evictions survived")
    return lines


def _sees_day(table: DataTable) -> bool:
    """Tell whether a chat template wrote the rows, which may have written the day into them."""
    return table.messages is not None and table.chat == "template" and table.day is not None


def _data_names(train: str | list[dict[str, Any]]) -> str:
    """Return what was learnt from, with the weights of several files."""
    if isinstance(train, str):
        return f"`{_data_name(train)}`"
    return ", ".join(f"`{_data_name(one['path'])}` (weight {one['weight']:g})" for one in train)


def _data_name(name: str) -> str:
    """Return the last part of a file's name, or the whole name of a file on a hub."""
    return name if hub.parse(name) else Path(name).name


def _checked_card(write: Callable[[], str]) -> str:
    """Return a card; raise `CannotPublishError` for results that no training here writes."""
    try:
        return write()
    except MALFORMED as error:
        raise CannotPublishError(
            f"the results of the run are not as a training here writes them ({error!r})\n"
            "hint: `qft fetch` brings them anew"
        ) from error


def _warning(base: BaseName, *, merged: bool) -> str:
    """Return the warning that the card names no base, since it is not on a hub."""
    must = "" if merged else ", and others must say which base the adapter goes with"
    return (
        f"the base `{base.name}` was a directory here: the card leaves `base_model` out{must}\n"
        "hint: if it is on a hub, the same command with `--base OWNER/NAME` says so\n"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to publish, and the repository."""
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
    config = load_run_config(args.run_dir)
    facts = json.loads(args.facts.read_text(encoding="utf-8")) if args.facts else None
    called = {"folder": (facts or {}).get("base", ""), "given": args.base}
    base = public_base_name(config.model.id, args.run_dir, **called)
    merged = args.folder is not None
    text = _checked_card(
        lambda: model_card(config, build_report(args.run_dir, facts), base=base, merged=merged)
    )
    repository = Repository(
        repo_id=args.repo, token=token, endpoint=args.endpoint, private=not args.public
    )
    with peft_loadable(folder) as sent:
        address = publish(sent, repository, text=text, base=base)
    if not base.on_hub:
        sys.stderr.write(_warning(base, merged=merged))
    sys.stdout.write(f"{address}\n")
    return ExitCode.DONE
