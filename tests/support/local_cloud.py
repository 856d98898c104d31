"""The spot cloud on this computer, as the suites of promises try it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from infra.local.provider import LocalProvider, LocalSettings


class LocalHarness:
    """A spot cloud in a temporary directory, in real time."""

    def __init__(self, root: Path, settings: LocalSettings) -> None:
        self.root = root
        self.settings = settings
        self.regions = ("local-1", "local-2")
        self._market: dict[str, dict[str, Any]] = {region: {} for region in self.regions}

    def provider(self) -> LocalProvider:
        """A provider that knows nothing but the directory."""
        return LocalProvider(self.root, settings=self.settings)

    def advance(self, seconds: float) -> None:
        """Wait a little: nothing here takes longer, and no two moments are equal."""
        time.sleep(min(seconds, 0.05))

    def set_capacity(self, region: str, *, free: bool) -> None:
        """Write the market anew."""
        self._market[region]["capacity"] = free
        self._write()

    def set_price(self, region: str, usd_per_h: float) -> None:
        """Write the market anew."""
        self._market[region]["spot_usd_per_h"] = usd_per_h
        self._write()

    def set_machines(self, region: str, count: object) -> None:
        """Say how many machines the region has."""
        self._market[region]["machines"] = count
        self._write()

    def _write(self) -> None:
        self.root.mkdir(exist_ok=True)
        temporary = self.root / "market.new"
        temporary.write_text(json.dumps({"version": 1, "regions": self._market}))
        temporary.replace(self.root / "market.json")

    def close(self) -> None:
        """Leave no process behind."""
        provider = self.provider()
        for vm in provider.list_all():
            provider.delete(vm.run_id)
