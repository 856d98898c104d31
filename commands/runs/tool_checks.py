"""The cheap checks of the tools at home: whatever can be told before a model is loaded is told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from commands.runs import base_files
from commands.runs.config import LoadedConfig
from commands.runs.extras import LEARNS, READS, demand, needed_to_train
from commands.runs.home import environment, qft_home
from commands.ui.errors import UsageError
from trainer import hub
from trainer.data.template import Template
from trainer.method_table import Quant

"""A part of a hub's name, by the hub's own rule: 96 signs at most, no mark at either end."""
ROOM = 1.05
"""What a copy of the weights takes beside them: configs, tokenizer, and what a file system adds."""


def demand_for(tool: str, loaded: LoadedConfig | None = None) -> None:
    """Raise Usage if this computer lacks a package that a tool imports."""
    quantised = loaded is not None and loaded.config.method.storage is not Quant.NONE
    several: Mapping[str, Sequence[str]] = {
        "audit": READS,
        "generate": (*LEARNS, *("bitsandbytes",) * quantised),
        "merge": (*READS, "peft"),
        "export": ("torch", "safetensors"),
        "push": ("torch", "safetensors", "huggingface_hub"),
        "eval": needed_to_train(loaded.config) if loaded else LEARNS,
        "verify": needed_to_train(loaded.config) if loaded else LEARNS,
        "data": ("transformers",),
    }
    demand(several[tool], f"`qft {tool}`", qft_home(environment()))


def check_fields(loaded: LoadedConfig, fields: Sequence[str]) -> None:
    """Raise Usage unless the fields given are those of this run's own prompt."""
    table = loaded.config.data
    if table.messages is not None:
        raise UsageError(
            f"`{loaded.config.name}` learnt conversations, which have no fields",
            hint="ask with `--chat`, or with `--prompt TEXT`",
        )
    known = Template.parse(table.prompt).fields
    given = [pair.partition("=")[0] for pair in fields]
    example = " ".join(f"--field {name}='...'" for name in known) or "--prompt '...'"
    strangers = [name for name in given if name not in known]
    missing = [name for name in known if name not in given]
    if strangers or missing:
        fault = f"--field {strangers[0]}" if strangers else f"`--field {missing[0]}` is missing"
        raise UsageError(
            f"{fault}: the prompt's fields are {', '.join(known) or 'none'}",
            hint=f"`qft generate {loaded.config.name} {example}`",
        )


def check_shelf(repo: str, folder: Path, *, base: str = "") -> None:
    """Raise Usage unless there is a token, a name that a hub takes, and something to send."""
    if not environment().get("HF_TOKEN", "").strip():
        raise UsageError("HF_TOKEN is not set", hint="`export HF_TOKEN=...` with a write token")
    if not hub.is_hub_id(repo):
        raise UsageError(
            f"--repo: `{repo}` cannot name a place on a hub",
            hint="write --repo OWNER/MODEL with letters, digits, `-`, `_` and `.`",
        )
    if base and not hub.is_hub_id(base):
        raise UsageError(f"--base: `{base}` is no hub id", hint="write --base OWNER/NAME")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.json")):
        raise UsageError(
            f"`{folder}` holds nothing to publish", hint="`qft fetch` brings the adapter"
        )


def check_base(folder: Path) -> None:
    """Raise Usage if a base cannot be read as it lies there."""
    broken = base_files.faults(folder)
    if broken:
        raise UsageError(
            f"the base in `{folder}` cannot be used",
            problems=broken,
            hint="fetch it again, or name another copy with `--base DIR`",
        )


def check_room(source: Path, target: Path) -> None:
    """Raise Usage if a copy of the weights in `source` does not fit beside `target`."""
    wanted = base_files.weights_bytes(source) * ROOM
    there = next(path for path in (target, *target.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise UsageError(
            f"the merged model needs about {wanted / 1e9:.1f} GB, and `{there}` has "
            f"{free / 1e9:.1f} GB free",
            hint="make room there; nothing was written",
        )


def check_page(path: Path, option: str) -> None:
    """Raise Usage if a page could not be written to `path`."""
    folder = path.parent
    if path.is_dir():
        fault = "is a directory"
    elif not folder.is_dir():
        fault = f"lies in `{folder}`, which is no directory"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        fault = "cannot be written"
    else:
        return
    raise UsageError(
        f"{option}: `{path}` {fault}", hint=f"name a file, such as `{option} page.html`"
    )
