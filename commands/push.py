"""`qft push`: publishes the adapter, or the merged model, on a model hub with its model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from commands.runs.base_record import recorded_base
from commands.runs.config import LoadedConfig
from commands.runs.extras import demand
from commands.runs.fetched_run import add_results, open_fetched, write_facts
from commands.runs.home import RunFolder, environment, qft_home, read_saved_config
from commands.runs.local_trainer import local_run_dir, output_of
from commands.ui.errors import UsageError
from commands.ui.options import Json, Run, examples
from commands.ui.output import print_data, print_json
from trainer import hub

EXAMPLES = {
    "qft push --repo me/my-adapter": "privately; HF_TOKEN must be set",
    "qft push --repo me/my-model --merged --public": "the merged model, for everybody",
    "qft push --repo me/my-adapter --base google/gemma-3-1b-pt": "its base lay in a directory",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(  # noqa: PLR0913  (an argument is an option)
    run: Run = "",
    *,
    repo: Annotated[str, typer.Option(metavar="OWNER/MODEL", help="The place on the hub.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="The merged model instead of the adapter.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Visible to everybody; otherwise private.")
    ] = False,
    base: Annotated[
        str,
        typer.Option(metavar="OWNER/NAME", help="What a base in a directory is called on the hub."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Publish the adapter with its model card."""
    options = PushOptions(repo=repo, merged=merged, public=public, base=base)
    address = push(run, options, as_json=as_json)
    if as_json:
        print_json({"address": address})
    else:
        print_data(address)


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Where to publish, and what; `base` is the hub id of a base that was a directory here."""

    repo: str
    merged: bool
    public: bool
    base: str = ""


def push(wanted: str, options: PushOptions, *, as_json: bool) -> str:
    """Publish the adapter, or the merged model, with its model card; return its address."""
    folder, loaded = open_fetched(wanted)
    merged = loaded.out / "merged"
    if options.merged and not merged.is_dir():
        raise UsageError("there is no merged model yet", hint=f"`qft merge {folder.name}` makes it")
    check_push(options, merged if options.merged else loaded.out / "adapter")
    packages = ("torch", "safetensors", "huggingface_hub")
    demand(packages, "`qft push`", qft_home(environment()))
    with local_run_dir(loaded, folder) as run_dir:
        add_results(run_dir, loaded)
        facts = write_facts(run_dir, folder, loaded)
        flags = ["--run-dir", str(run_dir), "--repo", options.repo, "--facts", str(facts)]
        flags += ["--folder", str(merged.absolute())] if options.merged else []
        flags += ["--public"] if options.public else []
        base = options.base or _sent_base(loaded, folder)
        flags += ["--base", base] if base else []
        return output_of("publish", *flags, as_json=as_json).strip()


def _sent_base(loaded: LoadedConfig, folder: RunFolder) -> str:
    """Return the hub's id of a base that was sent, and lay in a directory there; else empty."""
    base = recorded_base(loaded, read_saved_config(folder), folder)
    return base.id if base is not None and base.sent else ""


def check_push(options: PushOptions, folder: Path) -> None:
    """Raise UsageError unless there is a token, a name that a hub takes, and something to send."""
    if not environment().get("HF_TOKEN", "").strip():
        raise UsageError("HF_TOKEN is not set", hint="`export HF_TOKEN=...` with a write token")
    if not hub.is_hub_id(options.repo):
        raise UsageError(
            f"--repo: `{options.repo}` cannot name a place on a hub",
            hint="write --repo OWNER/MODEL with letters, digits, `-`, `_` and `.`",
        )
    if options.base and not hub.is_hub_id(options.base):
        raise UsageError(f"--base: `{options.base}` is no hub id", hint="write --base OWNER/NAME")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.json")):
        raise UsageError(
            f"`{folder}` holds nothing to publish", hint="`qft fetch` brings the adapter"
        )
