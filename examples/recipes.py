"""Prepares a recipe: its published data as rows, or with `--tiny` all it needs to run right here.

    python examples/recipes.py NAME --source FILE     # rows for the real run
    python examples/recipes.py NAME --tiny            # a small model, rows, and out/tiny/run.yaml
    python examples/recipes.py NAME --plan            # memory, hours and dollars of the real run

`--tiny` keeps every choice of the recipe but the model's size, the machine (`provider: local`, with
one eviction), the number of steps and the learning rate, which a model of random weights needs to
be higher: the same code walks the same path.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from infra.catalog.vendors import cheapest_size
from trainer.__main__ import main as run_trainer
from trainer.config import TrainerConfig
from trainer.data.convert import convert
from trainer.data.converters import ConvertOptions
from trainer.data.rows import read_rows
from trainer.estimate.gpus import GPUS
from trainer.estimate.training import RowTokens, estimate_rows
from trainer.schedule import Share

EXAMPLES = Path(__file__).parent
TINY_PRICE = 1.00
TINY_LR = 3.0e-3
TINY_STEPS, TINY_LENGTH, EVICTED_AT = 300, 256, 5
"""Whoever drives a run looks once a second, and a fast computer does sixty tiny steps in one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare one recipe; exit as the converter does, with the reason, if its rows cannot be."""
    parser = argparse.ArgumentParser(prog="python examples/recipes.py")
    parser.add_argument("name", choices=names())
    parser.add_argument("--source", type=Path, help="the published data file")
    parser.add_argument(
        "--tokenizer", help="model whose tokens are counted (jigsaw drops long rows)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=float, default=0.1, help="share of groups held out")
    parser.add_argument("--tiny", action="store_true", help="make everything for a run right here")
    parser.add_argument("--plan", action="store_true", help="foretell memory, hours and dollars")
    args = parser.parse_args(argv)
    here = EXAMPLES / args.name
    recipe = load(args.name)
    if args.plan:
        print(foretold(args.name))
        return 0
    if args.tiny:
        print(f"ready: qft run {tiny(args.name, here / 'out' / 'tiny')}")
        return 0
    if args.source is None:
        parser.error(f"--source is missing: {recipe.SOURCE}")
    words = [recipe.FORMAT, str(args.source), "--out", str(here), "--seed", str(args.seed)]
    words += ["--tokenizer", args.tokenizer] if args.tokenizer else []
    code = run_trainer(["convert", *words, "--held-out", str(args.held_out)])
    if code:
        return code
    print(f"next: qft audit {here / 'run.yaml'}, then qft run {here / 'run.yaml'}")
    return 0


def names() -> list[str]:
    """Return the recipes there are: the directories that say which small model they need."""
    return sorted(
        path.parent.name
        for path in EXAMPLES.glob("*/prepare.py")
        if "TINY_MODEL" in path.read_text(encoding="utf-8")
    )


def load(name: str) -> ModuleType:
    """Return a recipe's `prepare.py`: FORMAT, SOURCE, TINY_MODEL, BASE and `write_tiny`."""
    path = EXAMPLES / name / "prepare.py"
    spec = importlib.util.spec_from_file_location(f"recipe_{name.replace('-', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def foretold(name: str) -> str:
    """Return what the real run needs, as lines for its page; asks nobody and loads no model.

    The base's sizes are those that the recipe states, the rows those of its `plan`; the price is
    the catalog's dated one.
    """
    recipe = load(name)
    settings = yaml.safe_load((EXAMPLES / name / "run.yaml").read_text(encoding="utf-8"))
    estimate = estimate_recipe(recipe, settings)
    gpu, cap, budget = settings["vm"]["gpu"], settings["vm"]["max_price"], settings["budget"]
    catalog, size = cheapest_size(gpu)
    price = catalog.reference_spot(size)
    hours = [estimate["hours_span"][end] for end in ("likely", "low", "high")]
    usual, low, high = (_span(each) for each in hours)
    spent = [f"{max(0.01, each * price):.2f}" for each in hours]
    memory = estimate["memory_bytes"]["reserved"] / 1e9
    rows = "1 row" if estimate["micro_batch"] == 1 else f"{estimate['micro_batch']} rows"
    limits = f"cap {cap:.2f}, budget {budget['usd']:.2f}"
    needs = (
        f"{memory:.1f} GB of the {gpu}'s {estimate['gpu_bytes'] / 1e9:.1f}",
        f"{rows} of {estimate['tokens']:,} tokens at once",
        f"{usual} ({low} to {high})",
        f"{_steps(estimate['steps'])}, {settings['plan']['tokens']} tokens in a usual row",
        f"{spent[0]} ({spent[1]} to {spent[2]})",
        f"{price:.3f} an hour, spot, {catalog.spot_date}; {limits}",
    )
    return "\n".join(
        f"{word:<8} {need}: {why}"
        for word, need, why in zip(
            ("memory", "time", "dollars"), needs[::2], needs[1::2], strict=True
        )
    )


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def _span(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{max(1, round(hours * 60))} min"


def estimate_recipe(recipe: ModuleType, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `estimate_rows` of a recipe's real run, with its `plan`, on the GPU that it names."""
    tables = {key: settings[key] for key in TrainerConfig.model_fields if key in settings}
    config = TrainerConfig.model_validate(tables)
    plan, longest = settings["plan"], config.train.max_length
    rows = RowTokens(
        longest=longest,
        usual=plan["tokens"],
        usual_target=plan.get("answer_tokens"),
        shares=(Share(rows=plan["rows"]),),
    )
    return estimate_rows(config, recipe.BASE, rows, gpu=GPUS[settings["vm"]["gpu"]])


def tiny(name: str, target: Path) -> Path:
    """Make model, rows and `run.yaml` in `target`, whole or not at all; return the run file."""
    recipe = load(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="tiny-") as directory:
        partial = Path(directory) / "tiny"
        partial.mkdir()
        rows = load(recipe.TINY_ROWS) if hasattr(recipe, "TINY_ROWS") else recipe
        source = rows.write_tiny(partial)
        convert(recipe.FORMAT, source, partial, options=ConvertOptions(benign=12), held_out=0.5)
        texts = [
            str(value)
            for side in ("train.jsonl", "eval.jsonl")
            for row in read_rows(partial / side)
            for value in row.fields.values()
        ]
        _make_model(recipe.TINY_MODEL, partial / "model", texts)
        settings = tiny_settings(
            yaml.safe_load((EXAMPLES / name / "run.yaml").read_text(encoding="utf-8"))
        )
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        (partial / "run.yaml").write_text(text, encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    return target / "run.yaml"


def tiny_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's settings for a small model on a machine that this computer plays."""
    train = dict(settings["train"])
    train.pop("epochs", None)
    train |= {"steps": TINY_STEPS, "max_length": TINY_LENGTH, "lr": TINY_LR, "precision": "auto"}
    # A recipe's own cap may lie below what the simulated market asks; nobody is charged here.
    return settings | {
        "name": f"tiny-{settings['name']}",
        "vm": {
            "provider": "local",
            "gpu": settings["vm"]["gpu"],
            "max_price": TINY_PRICE,
            "rehearse_evictions": [EVICTED_AT],
            "local": {"notice_s": 0},
        },
        "budget": {"usd": 1.0, "hours": 1, "evictions": 5},
        "model": {"id": "model"},
        "train": train,
        "checkpoint": {"every": 10, "keep": 2},
        "plan": None,
    }


def _make_model(kind: str, directory: Path, texts: Sequence[str]) -> None:
    path = EXAMPLES / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make(kind, directory, texts)


if __name__ == "__main__":
    raise SystemExit(main())
