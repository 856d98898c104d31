"""Describes the base of a run on a hub, as run.json records it: each start takes one commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.runs.config import LoadedConfig
from commands.runs.home import RunFolder
from trainer.hub_models import COMMIT


@dataclass(frozen=True, kw_only=True)
class HubBase:
    """The base of a run on a hub, as run.json records it, so that every start takes the same."""

    id: str
    revision: str
    """As run.yaml has it: a branch, tag or commit."""
    commit: str
    """What that meant when the run began."""
    sent: bool
    """Whether it is fetched here and sent, instead of fetched by the machine."""
    folder: Path | None = None
    """Where it lies here; None if the machine fetches it."""

    def to_json(self) -> dict[str, Any]:
        """Return what run.json records."""
        return {
            "id": self.id,
            "revision": self.revision,
            "commit": self.commit,
            "sent": self.sent,
        }


def recorded_base(
    loaded: LoadedConfig, saved: Mapping[str, object], run: RunFolder
) -> HubBase | None:
    """Return the base that run.json records, if run.yaml still names it; else None."""
    found = saved.get("base")
    model = loaded.config.model
    if not isinstance(found, dict) or loaded.model_folder is not None:
        return None
    commit = found.get("commit")
    same = (found.get("id"), found.get("revision")) == (model.id, model.revision)
    if not same or not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        return None
    sent = found.get("sent") is True
    return HubBase(
        id=model.id,
        revision=model.revision,
        commit=commit,
        sent=sent,
        folder=run.base if sent else None,
    )
