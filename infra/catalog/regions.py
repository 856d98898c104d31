"""Which regions a vendor has, and what is wrong with the names that a config gives; pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.catalog.gpus import with_article

SUGGESTED_MAX = 3
SIMILAR = 0.8
WORDS_SHARED = 2
"""Words that a foreign name (`us-east-1`) has to share with a region that is suggested for it."""
SYNONYMS: Mapping[str, str] = {"eu": "europe", "ap": "asia", "gb": "uk"}
_SIDES = "north|south|east|west|central"
WORD = rf"{_SIDES}|\d+|[a-z]+?(?={_SIDES}|[^a-z]|$)"


@dataclass(frozen=True, kw_only=True)
class RegionList:
    """The regions of one vendor, and those of them where a GPU has a price."""

    vendor: str
    """As a person calls it."""
    regions: tuple[str, ...]
    by_gpu: Mapping[str, Sequence[str]]
    date: str
    """When this was true; a vendor opens regions and adds sizes."""

    def code(self, name: str) -> str:
        """Return a region's code for any spelling of it: `West US 2` is `westus2`."""
        return re.sub(r"^\([^)]*\)|[\s_]+", "", name.strip()).lower()

    def sells(self, gpu: str, region: str) -> bool:
        """Whether a GPU has a price in a region; of a GPU that is not listed nothing is denied."""
        return gpu not in self.by_gpu or self.code(region) in self.by_gpu[gpu]

    def name_problem(self, name: str) -> str:
        """Return what is wrong with the name of a region, with the nearest; empty if it exists."""
        code = self.code(name)
        if code in self.regions:
            return ""
        *others, last = [f"`{one}`" for one in self._similar(code, name)] or [""]
        near = f"{', '.join(others)} or {last}" if others else last
        meant = f"; did you mean {near}?" if near else ""
        return f"{self.vendor} has no region `{name}`{meant}"

    def sale_problem(self, gpu: str, names: Sequence[str]) -> str:
        """Return why a GPU cannot be had in any of some regions that exist; empty if in one."""
        if not names or any(self.sells(gpu, name) for name in names):
            return ""
        places = " and ".join(f"`{self.code(one)}`" for one in names)
        exists = "exists, but has" if len(names) == 1 else "exist, but have"
        return f"{places} {exists} no size with {with_article(gpu)} (prices of {self.date})"

    def where(self, gpu: str) -> str:
        """List the regions that have a GPU, or all of them if it is not listed."""
        if gpu in self.by_gpu:
            return f"regions with {with_article(gpu)}: {', '.join(self.by_gpu[gpu])}"
        return f"its regions: {', '.join(self.regions)}"

    def _similar(self, code: str, name: str) -> list[str]:
        """Return the regions whose codes are like a name, or have its words in another order."""
        close = difflib.get_close_matches(code, self.regions, n=SUGGESTED_MAX, cutoff=SIMILAR)
        if close:
            return sorted(close)
        words = _words(name)
        shared = {one: len(words & _words(one)) for one in self.regions}
        found = [one for one in self.regions if shared[one] >= WORDS_SHARED]
        return sorted(found, key=lambda one: (-shared[one], len(one)))[:SUGGESTED_MAX]


def _words(name: str) -> set[str]:
    """The words and the number of a region's name, written by whichever vendor.

    `westeurope`, `eu-west-1` and `West Europe` share two of them.
    """
    return {SYNONYMS.get(one, one) for one in re.findall(WORD, name.lower())}
