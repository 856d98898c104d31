"""The tables of docs/hours.md and the estimates of the recipes; `make hours` writes them anew.

PYTHONPATH=.:tests python -m support.hours_tables [--write]
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from commands.runs.config import LoadedConfig, load
from commands.runs.planning import figures
from commands.runs.planning.estimates import estimate_job
from infra.catalog.vendors import cheapest_size
from infra.offer import Offer
from support.hours_points import POINTS, HoursPoint, quantile
from trainer.estimate.gpus import FITTED_FACTOR, GPUS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "hours.md"
README = ROOT / "README.md"
ESTIMATE = re.compile(
    r"memory +(?P<need>\S+) GB of the (?P<card>\S+)'s (?P<size>[\d.]+): .*\n"
    r"time +(?P<time>.+?) \(.*\ndollars +(?P<usd>\S+) \(.*"
)
"""What `examples/recipes.py --plan` prints."""
PUBLISHED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "phi2-sentiment": ("100 updates of 4 on a T4; no hours given", "rank 64 ran out of memory"),
        "phi15-toxic": ("about 7 h on a T4: 1000 updates of 8", "rows of up to 1,024 tokens"),
        "phi15-ds1000": ("no hours given", ""),
        "falcon7b-counselling": ("no hours given", ""),
        "openllama7b-chat": ("about 18 h on an A10G: one epoch of 35 K", "about 14 GB"),
        "flan-t5-xxl": ("no hours given", "33B on 24 GB, 65B on 46 GB in 4 bits"),
        "t5-3b-footprint": ("loaded only", "11.4 GB to 4.29 GB"),
    }
)
"""What the sources of the recipes report: hours, then memory."""


def cards_table() -> list[str]:
    """The speed of each card, with its range and its source."""
    return [
        "| card | reaches | memory | range | source |",
        "|---|---|---|---|---|",
        *(
            f"| {gpu.name} | {gpu.flops / 1e12:.0f} TFLOPS | {gpu.bytes_per_s / 1e9:,.0f} GB/s "
            f"| a factor of {gpu.factor:g} | {gpu.source} |"
            for gpu in GPUS.values()
        ),
    ]


def points_table() -> list[str]:
    """Every published time beside what is computed for it."""
    rows = [
        "| card | base, storage, rank | rows at once x tokens | published s | computed s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    return rows + [_row(point) for point in POINTS]


def _row(point: HoursPoint) -> str:
    about = "about " if point.estimated_length else ""
    kind = "DoRA, " if point.dora else ""
    return (
        f"| {point.card} | {point.model}, {kind}{point.quant}, {point.r} "
        f"| {point.micro_batch} x {about}{point.tokens} | {point.seconds:.3f} "
        f"| {point.estimate:.3f} | {point.estimate / point.seconds:.2f} |"
    )


def summary() -> list[str]:
    """How far computed and published times lie apart."""
    errors = [point.error for point in POINTS]
    half, most, worst = quantile(errors, 0.5), quantile(errors, 0.9), max(errors)
    text = (
        f"Of {len(errors)} published times half lie within a factor of {half:.2f} of the computed "
        f"one, nine tenths within {most:.2f}, all within {worst:.2f}; plans say {FITTED_FACTOR:g}."
    )
    return textwrap.wrap(text, 100)


def recipes_table() -> list[str]:
    """The published figures of the recipes beside ours, each from its `run.yaml` alone."""
    rows = [
        "| recipe | published hours | published memory | card | training | whole job | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (hours, memory) in PUBLISHED.items():
        loaded = _alone(name)
        card = loaded.config.vm.card
        _, size = cheapest_size(card)
        offer = Offer(
            provider=size.provider, region="", size=size.size, gpu=card, spot_usd_per_h=0.0
        )
        job = estimate_job(loaded, card, offer=offer)
        assert job.hours is not None
        assert job.memory_bytes is not None
        train = next(part.hours for part in job.parts if part.name == "train")
        rows.append(
            f"| [{name}](../examples/{name}) | {hours} | {memory or '-'} | {card} "
            f"| {figures.hours_span(train)} | {figures.hours_span(job.hours)} "
            f"| {job.memory_bytes.likely / figures.GB:.1f} GB |"
        )
    return rows


def _alone(name: str) -> LoadedConfig:
    """A recipe's config in a folder of its own, where no rows lie."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(ROOT / "examples" / name / "run.yaml", folder))
        return load(path)


TABLES: Mapping[str, Callable[[], list[str]]] = MappingProxyType(
    {"cards": cards_table, "summary": summary, "points": points_table, "recipes": recipes_table}
)


def written(page: str) -> str:
    """The page with every table as it is now, between its two marks."""
    for name, table in TABLES.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        assert mark, name
        assert end, name
        page = before + mark + "\n".join(table()) + end + after
    return page


def write_recipes(readme: str) -> str:
    """Write the estimate on the page of each recipe; return the README with its rows of them."""
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "examples" / "recipes.py")
    assert spec is not None
    assert spec.loader is not None
    recipes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipes)
    for name in recipes.names():
        path = ROOT / "examples" / name / "README.md"
        lines = recipes.foretold(name).splitlines()
        page = path.read_text(encoding="utf-8")
        for word, line in zip(("memory", "time", "dollars"), lines, strict=True):
            page = re.sub(rf"^    {word} .*$", f"    {line}", page, count=1, flags=re.MULTILINE)
        path.write_text(page, encoding="utf-8")
        found = ESTIMATE.fullmatch("\n".join(lines))
        assert found, lines
        needs = f"{found['need']} of {found['size']} GB ({found['card']})"
        row = rf"^(\| \[{name}\]\(.* \| ).*\|$"
        rest = rf"\g<1>{needs}, {found['time']}, ${found['usd']} |"
        readme = re.sub(row, rest, readme, count=1, flags=re.MULTILINE)
    return readme


if __name__ == "__main__":
    os.environ |= dict.fromkeys(("QFT_HOME", "HF_HOME"), str(ROOT / "no such folder"))
    os.environ["QFT_COUNT_S"] = "0"  # a count would depend on how fast this computer is
    if "--write" in sys.argv:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        README.write_text(write_recipes(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write("\n".join([*points_table(), "", *summary(), "", *recipes_table(), ""]))
