"""Names the base in what is published: by its hub id or a bare name, never by a local path."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ConfigError
from trainer.hub import is_hub_id

CONFIGS = ("adapter_config.json", "config.json", "tokenizer_config.json")
PATH_FIELDS = ("base_model_name_or_path", "_name_or_path", "name_or_path")
"""The fields in which the libraries write down where a model was loaded from."""


@dataclass(frozen=True, kw_only=True)
class BaseName:
    """The published name of a base, and whether a hub has it under that name."""

    name: str
    on_hub: bool


def public_base_name(model: str, run_dir: Path, *, folder: str = "", given: str = "") -> BaseName:
    """Return the public name of the base that the config of `run_dir` calls `model`.

    A directory has the hub id that its owner has `given` for it, else only its own bare name:
    `folder` if that is known, since on a machine every base lies in a directory of another name.

    Raises:
        ConfigError: `given` is no hub id, or the base has another one already.
    """
    if given and not is_hub_id(given):
        raise ConfigError([f"--base: `{given}` is no hub id, which reads `owner/name`"])
    if is_hub_id(model) and not (run_dir / Path(model).expanduser()).is_dir():
        if given not in {"", model}:
            raise ConfigError([f"--base: the base is `{model}` on a hub, and not `{given}`"])
        return BaseName(name=model, on_hub=True)
    bare = folder or Path(model).name or "base"
    return BaseName(name=given or bare, on_hub=bool(given))


def without_local_paths(path: Path, base: BaseName) -> bytes | None:
    """Return a config with local paths replaced by the name of the base; None if it has none."""
    if path.name not in CONFIGS:
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return None  # not ours to judge: it is sent as it is
    if not isinstance(content, dict):
        return None
    found = {key: content[key] for key in PATH_FIELDS if isinstance(content.get(key), str)}
    local = {key for key, value in found.items() if value and not is_hub_id(value)}
    if not local:
        return None
    content |= dict.fromkeys(local, base.name)
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
