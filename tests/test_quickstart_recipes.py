"""Every published experiment is a recipe whose whole path can be walked here with a small model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from commands.runs.config import RunConfig, check
from infra.catalog.vendors import reference_spot_usd_per_h
from trainer.config import TrainerConfig
from trainer.data.codec import NOT_TRAINED
from trainer.data.examples import load_examples

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = (
    "falcon7b-counselling", "flan-t5-xxl", "openllama7b-chat", "phi15-ds1000", "phi15-toxic",
    "phi2-sentiment", "t5-3b-footprint",
)  # fmt: skip


@pytest.fixture(scope="module")
def recipes() -> ModuleType:
    """Load the shared script as a module."""
    return load_example("recipes")


def load_example(name: str) -> ModuleType:
    """Load a module of the examples, which are no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["phi", "falcon", "llama", "flan-t5", "t5"])
def test_a_stand_in_has_the_same_tokenizer_each_time(kind: str) -> None:
    """Two preparations give the same pieces and scores, so that two runs of a recipe compare."""
    texts = [f"{word} the {word}s of {number}" for number in range(40) for word in ("ab", "abc")]
    make = load_example("tiny_models").TOKENIZERS[kind]

    first, second = (make(texts)[0].backend_tokenizer.to_str() for _ in range(2))

    assert first == second


@pytest.mark.parametrize("name", [name for name in NAMES if name != "t5-3b-footprint"])
def test_a_recipe_that_trains_is_scored_on_rows_it_does_not_learn(
    name: str, recipes: ModuleType
) -> None:
    """Its run file names held-out rows and how they are scored; a plan counts their hours."""
    settings = yaml.safe_load((EXAMPLES / name / "run.yaml").read_text(encoding="utf-8"))
    config = RunConfig.model_validate(settings)

    assert config.data.eval == "eval.jsonl"
    assert "kind" in settings["eval"]
    assert config.scored is not None
    assert settings["plan"]["eval_rows"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_page_has_the_published_figure(name: str, recipes: ModuleType) -> None:
    """The page and the table of `make recipes` say the same: a figure, or that there is none."""
    page = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    stated = recipes.load(name).PUBLISHED

    assert load_example("walk").published(name) == stated
    if stated.startswith("none"):
        assert "## Score" in page
        assert "No score was published" in " ".join(page.partition("## Score")[2].split())
    else:
        assert stated in " ".join(page.split())


def test_the_walk_reads_scores_and_refuses_what_is_none(tmp_path: Path) -> None:
    """Cells have the value with its interval; a missing score, or one outside it, is reported."""
    walk = load_example("walk")
    for stage, value in (("before", 0.25), ("after", 0.5)):
        score = {"metric": "accuracy", "value": value, "low": 0.1, "high": 0.6}
        (tmp_path / f"eval-{stage}.json").write_text(json.dumps(score), encoding="utf-8")

    assert walk.read_scores(tmp_path) == (
        "accuracy", "0.250 (0.100 to 0.600)", "0.500 (0.100 to 0.600)"
    )  # fmt: skip
    (tmp_path / "eval-after.json").write_text('{"metric": "m", "value": 1, "low": 2, "high": 3}')
    with pytest.raises(walk.StrandedError, match="not within its interval"):
        walk.read_scores(tmp_path)
    (tmp_path / "eval-before.json").unlink()
    with pytest.raises(walk.StrandedError, match="no score before"):
        walk.read_scores(tmp_path)


def test_all_seven_experiments_are_there(recipes: ModuleType) -> None:
    """Each has a run file, a preparation and a page that tells what was published."""
    assert recipes.names() == list(NAMES)
    for name in NAMES:
        assert "## Published" in (EXAMPLES / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_accepted_as_it_stands_and_tiny(name: str, recipes: ModuleType) -> None:
    """Both run files pass the check of `qft`, and the tiny one keeps the recipe's choices."""
    settings = yaml.safe_load((EXAMPLES / name / "run.yaml").read_text(encoding="utf-8"))
    real, tiny = (
        RunConfig.model_validate(each) for each in (settings, recipes.tiny_settings(settings))
    )

    assert (real.vm.provider, tiny.vm.provider) == ("azure", "local")
    assert (real.method, real.data, real.eval) == (tiny.method, tiny.data, tiny.eval)
    assert tiny.vm.rehearse_evictions == [recipes.EVICTED_AT]


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("phi15-toxic", "--tokenizer: `{place}` cannot be loaded"),
        ("phi15-ds1000", "--tokenizer: ds1000 has no such choice"),
    ],
)
def test_a_tokenizer_that_cannot_count_is_reported(
    recipes: ModuleType,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    reported: str,
) -> None:
    """One that is not there, or that the recipe has no use for, ends in a sentence."""
    source = tmp_path / "rows.csv"
    code = recipes.main([name, "--source", str(source), "--tokenizer", str(tmp_path)])

    assert code == 65
    assert reported.format(place=tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_the_card_it_names_within_its_budget(
    name: str, recipes: ModuleType, tmp_path: Path
) -> None:
    """Its run file passes the check, its forecast fits, and even the slowest guess is paid for."""
    text = (EXAMPLES / name / "run.yaml").read_text(encoding="utf-8")
    loaded = check(yaml.safe_load(text), tmp_path / "run.yaml")
    reported = recipes.estimate_recipe(recipes.load(name), yaml.safe_load(text))
    slowest_h = reported["hours"] * reported["hours_factor"]
    vm, budget = loaded.config.vm, loaded.config.budget
    price = reference_spot_usd_per_h(vm.card)

    assert reported["fits"]
    assert reported["gpu"] == vm.gpu
    assert vm.max_price is not None
    assert price < vm.max_price
    assert budget.usd is not None
    assert slowest_h * price < budget.usd
    assert budget.hours is not None
    assert slowest_h < budget.hours


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_page_tells_what_the_program_foretells(name: str, recipes: ModuleType) -> None:
    """Memory, time and dollars on the page are what `--plan` prints, and its commands are there."""
    page = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    reported = "".join(f"    {line}\n" for line in recipes.foretold(name).splitlines())

    assert reported in page
    for command in (
        f"    python examples/{name}/prepare.py --source ",
        f"    qft run examples/{name}/run.yaml\n",
        f"    python examples/{name}/prepare.py --tiny\n",
        f"    qft run examples/{name}/out/tiny/run.yaml\n",
    ):
        assert command in page


@pytest.mark.parametrize("name", NAMES)
def test_tiny_rows_become_whole_supervised_examples(
    name: str, recipes: ModuleType, tmp_path: Path
) -> None:
    """Rows in the original format go through converter, template and the tokenizer's own rules."""
    from transformers import AutoConfig, AutoTokenizer

    run_file = recipes.tiny(name, tmp_path / "tiny")
    settings = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    config = TrainerConfig.model_validate(
        {key: settings[key] for key in TrainerConfig.model_fields if key in settings}
    )
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "tiny" / "model"))
    described = AutoConfig.from_pretrained(str(tmp_path / "tiny" / "model"))
    rows = tmp_path / "tiny" / config.data.train_sets[0].path
    items = load_examples(
        config.data, rows, tokenizer, max_length=config.train.max_length,
        seq2seq=described.is_encoder_decoder,
    ).items  # fmt: skip

    assert len(items) == len(rows.read_text(encoding="utf-8").splitlines()) > 8
    for item in items:
        learnt = [label for label in item.labels if label != NOT_TRAINED]
        assert learnt[-1] == tokenizer.eos_token_id
        if "llama" in name:
            assert item.input_ids.count(tokenizer.bos_token_id) == 1
        if "code" in config.data.completion:
            code = json.loads(rows.read_text(encoding="utf-8").splitlines()[item.row - 1])["code"]
            assert tokenizer.decode(learnt[:-1]) == code
