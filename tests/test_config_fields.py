"""No setting is read by nothing: changing any field of the trainer's config changes what happens.

Every field has a case: settings around it, another value, and who looks. A new field without a case
fails the test; so does one whose value makes no difference to what is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from pydantic import BaseModel
from support import tiny
from support.models import make_adapter
from support.rig import outcome, rig, saves_in_step

from trainer import config as tables
from trainer import model as models
from trainer.adapters.quantised_share import QuantisedShare
from trainer.code_eval.problems import limits_of
from trainer.config import load_config
from trainer.config_errors import BRANCH, keys_at, table_of
from trainer.data_table import DatasetTable
from trainer.errors import ConfigError, DataError
from trainer.eval_tables.any_kind import BRANCHES
from trainer.eval_tables.code import CodeEvalTable
from trainer.eval_tables.common import EvalFields
from trainer.eval_tables.labels import CostTable
from trainer.eval_tables.text import AnswerFields
from trainer.hub_models import find_account
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.saving.interval import choose_interval
from trainer.scoring.code import interpreter_of, load_problems
from trainer.scoring.measures.all_measures import make_measures
from trainer.scoring.rescore import rescore
from trainer.scoring.result import ScoringRequest

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
Tables = Mapping[str, Mapping[str, Any]]
LABEL: Tables = {
    "eval": {"kind": "label", "labels": list(tiny.MOODS)},
    "data": {"eval": "eval.jsonl"},
}
EPOCHS: Tables = {"train": {"steps": None, "epochs": 1}}
NOLA: Tables = {"method": {"kind": "nola"}}
QUANTISED: Tables = {"method": {"kind": "qlora"}}
AUTO: Tables = {"checkpoint": {"every": "auto"}}
ANSWERS: Tables = {
    "eval": {"kind": "text", "measures": ["exact"], "baselines": False},
    "data": {"eval": "eval.jsonl"},
}
CHOICE: Tables = {
    "eval": {"kind": "choice", "options": list(tiny.MOODS), "baselines": False},
    "data": {"eval": "eval.jsonl"},
}
CODE: Tables = {"eval": {"kind": "code"}, "data": {"eval": "eval.jsonl"}}
PROGRAMS: Mapping[str, str] = {
    "code_context": "def test_execution(solution): exec(solution)",
    "other_tests": "def test_execution(solution): compile(solution, '', 'exec')",
}
HELD_OUT: Tables = {"data": {"eval": "eval.jsonl"}}
VALIDATED: Tables = {**HELD_OUT, "train": {"validate_every": 1}}
WORSENING: Tables = {**HELD_OUT, "train": {"validate_every": 1, "lr": 10}}
CONVERSATION: Mapping[str, Any] = {
    "messages": "talk",
    "prompt": "",
    "completion": "",
    "ignore": list(PROGRAMS),  # which the rows have beside their conversations
}
TEXT: Mapping[str, Any] = {"text": "text", "prompt": "", "completion": ""}
SHORT: Tables = {"train": {"max_length": 48}}
SETS: Tables = {"data": {"train": ["train.jsonl", "eval.jsonl"]}}
HUB: Tables = {"model": {"id": "somebody/something"}}


def learning(run: Path) -> object:
    """Two steps: the log, adapter, moments, plan, portions, recomputation and threads."""
    made = rig(run)
    made.train(until=2)
    base = made.context.model.get_base_model()
    return (
        outcome(made),
        made.context.schedule.steps,
        made.state.counters.micro_batch,
        base.is_activation_checkpointing,
        torch.get_num_threads(),
    )


def summing(run: Path) -> object:
    """Whether torch must keep to fixed orders of summing in a step."""
    with rig(run).context.determinism.enforced():
        return torch.are_deterministic_algorithms_enabled()


def lasting(run: Path) -> object:
    """After how many steps a training of six ends."""
    made = rig(run)
    made.train(until=6)
    return made.state.counters.step


def scores(run: Path) -> object:
    """What the base scores on the held-out rows, with intervals and baselines."""
    found = rescore(run, None, on_progress=lambda _done, _total: None)
    return {key: value for key, value in found.items() if "seconds" not in key}


def measured(run: Path) -> object:
    """How answers that are nearly right are measured."""
    table = load_config(run / "config.json").scored
    assert isinstance(table, AnswerFields)
    pairs = (("Yes", "yes"), ("3.1", "3"), ("[1, 2]", "[2, 1]"))
    return [
        (name, [measure.compare(*pair).statistics for pair in pairs])
        for name, measure in make_measures(table, [right for _, right in pairs]).items()
    ]


def judged(run: Path) -> object:
    """By which programs, in what and how answers that are code would be judged."""
    config = load_config(run / "config.json")
    table = config.scored
    assert isinstance(table, CodeEvalTable)
    request = ScoringRequest(
        run_dir=run,
        scratch=run,
        config=config,
        model=SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False)),
        tokenizer=tiny.make_tokenizer(),
        stage="before",
        on_progress=lambda _done, _total: None,
    )
    chosen = load_problems(request)
    return chosen.problems, chosen.tokens_max, limits_of(table), interpreter_of(request)


def sampled(run: Path) -> object:
    """What is kept of the answers to a few held-out rows before the first step."""
    made = rig(run)
    made.train(until=1)
    return made.state.samples


def source(run: Path) -> object:
    """What a hub would be asked for."""
    return models.find_source(load_config(run / "config.json").model, run)


def admitted(run: Path) -> object:
    """Whether a base of which half is quantised may be trained."""
    table = load_config(run / "config.json").method
    half = QuantisedShare(
        storage=str(table.storage), weights=9, quantised=4, matrices=8, quantised_matrices=4
    )
    return half.problem(partly_quantised=table.partly_quantised)


def token_name(run: Path) -> object:
    """Which of two tokens a hub would be shown."""
    name = load_config(run / "config.json").model.token_env
    return find_account({"HF_READ": "hf_a", "HF_TOKEN": "hf_b"}, token_env=name).token_name


def rhythm(run: Path) -> object:
    """When the state would be saved if a save took ten seconds."""
    return choose_interval(load_config(run / "config.json").checkpoint, band=None, save_s=10.0)


def kept(run: Path) -> object:
    """How many checkpoints a whole job leaves behind."""
    with saves_in_step():
        run_job(JobOptions(run_dir=run), lambda _text: None)
    return len(list((run / "checkpoints").iterdir()))


@dataclass(frozen=True)
class Case:
    """Settings around a field, what is set in its table instead, and who looks."""

    change: Mapping[str, Any]
    see: Callable[[Path], object] = learning
    around: Tables = field(default_factory=dict)


def _measured_by(measure: str) -> Tables:
    return {**ANSWERS, "eval": {**ANSWERS["eval"], "measures": [measure]}}


def _on_chat(measure: str) -> Tables:
    return {
        "eval": {**_measured_by(measure)["eval"], "kind": "chat"},
        "data": {"eval": "eval.jsonl", **CONVERSATION},
    }


CASES: Mapping[str, Case] = {
    "model.id": Case({"id": "other"}),
    "model.revision": Case({"revision": "v2"}, source, HUB),
    "model.trust_remote_code": Case({"trust_remote_code": True}, source, HUB),
    "method.from": Case({"from": "parent"}),
    "model.token_env": Case({"token_env": "HF_READ"}, token_name, HUB),
    "model.new_tokens": Case({"new_tokens": ["<|mood|>"]}),
    "method.kind": Case({"kind": "dora"}),
    "method.r": Case({"r": 2}),
    "method.alpha": Case({"alpha": 2}),
    "method.dropout": Case({"dropout": 0.5}),
    "method.targets": Case({"targets": ["q_proj"]}),
    "method.init": Case({"init": "gaussian"}),
    "method.save": Case({"save": ["embed_tokens"]}),
    "method.quant": Case({"quant": "nf4"}, around={"method": {"kind": "rslora"}}),
    "method.double_quant": Case({"double_quant": False}, around={"method": {"kind": "qlora"}}),
    "method.partly_quantised": Case({"partly_quantised": True}, admitted, QUANTISED),
    "method.optimizer": Case({"optimizer": "adamw8bit"}),
    "method.bases": Case({"bases": 7}, around=NOLA),
    "data.train": Case({"train": "eval.jsonl"}),
    "data.eval": Case({"eval": "train.jsonl"}, scores, LABEL),
    "data.prompt": Case({"prompt": "{text} is "}),
    "data.completion": Case({"completion": "{mood}!"}),
    "data.messages": Case(CONVERSATION),
    "data.chat": Case({"chat": "markers"}, around={"data": CONVERSATION}),
    "data.answers": Case({"answers": "last"}, around={"data": CONVERSATION}),
    "data.ignore": Case({"ignore": ["role", *PROGRAMS]}, around={"data": CONVERSATION}),
    "data.loss_on": Case({"loss_on": "all"}),
    "data.text": Case(TEXT),
    "data.too_long": Case({"too_long": "drop"}, around=SHORT),
    "data.day": Case({"day": "2001-02-03"}, around={"data": CONVERSATION}),
    "dataset.path": Case({"train": ["train.jsonl", "other.jsonl"]}, around=SETS),
    "dataset.weight": Case(
        {"train": ["train.jsonl", {"path": "eval.jsonl", "weight": 2}]}, around=SETS
    ),
    "train.steps": Case({"steps": 9}),
    "train.epochs": Case({"epochs": 2}, around=EPOCHS),
    "train.batch_size": Case({"batch_size": 3}),
    "train.micro_batch": Case({"micro_batch": 1}),
    "train.lr": Case({"lr": 1e-3}),
    "train.warmup": Case({"warmup": 3}),
    "train.schedule": Case({"schedule": "constant"}),
    "train.weight_decay": Case({"weight_decay": 0.5}),
    "train.max_grad_norm": Case({"max_grad_norm": 0.01}),
    "train.max_length": Case({"max_length": 24}),
    "train.gradient_checkpointing": Case({"gradient_checkpointing": True}),
    "train.precision": Case({"precision": "bf16"}),
    "train.seed": Case({"seed": 1}),
    "train.group_by_length": Case({"group_by_length": False}),
    "train.threads": Case({"threads": 2}),
    "train.exact": Case({"exact": False}, summing),
    "train.validate_every": Case({"validate_every": 1}, around=HELD_OUT),
    "train.stop_after": Case({"stop_after": 1}, lasting, WORSENING),
    "train.samples": Case({"samples": 3}, sampled, VALIDATED),
    "train.keep_best": Case({"keep_best": False}, around=VALIDATED),
    "checkpoint.every": Case({"every": "10min"}, rhythm),
    "checkpoint.keep": Case(
        {"keep": 3}, kept, {"checkpoint": {"every": 1}, "train": {"steps": 12}}
    ),
    "checkpoint.eviction_band": Case({"eviction_band": "0-5"}, rhythm, AUTO),
    "eval.rows": Case({"rows": 5}, scores, LABEL),
    "eval.kind": Case({"kind": "multilabel"}, scores, LABEL),
    "eval.labels": Case({"labels": [*tiny.MOODS, "mixed"]}, scores, LABEL),
    "eval.none": Case(
        {"none": "neutral"}, scores, {**LABEL, "eval": {**LABEL["eval"], "kind": "multilabel"}}
    ),
    "eval.decoding": Case({"decoding": "free"}, scores, LABEL),
    "eval.baselines": Case({"baselines": False}, scores, LABEL),
    "eval.shots": Case({"shots": 2}, scores, LABEL),
    "eval.costs": Case({"costs": {"positive": {"miss": 5}}}, scores, LABEL),
    "eval.forgetting": Case({"forgetting": True}, scores, LABEL),
    "eval.general": Case({"general": "../other.jsonl"}, scores, LABEL),
    "eval.resamples": Case({"resamples": 1001}, scores, LABEL),
    "eval.text.measures": Case({"measures": ["number"]}, measured, ANSWERS),
    "eval.text.tokens_max": Case({"tokens_max": 3}, scores, ANSWERS),
    "eval.text.ignore_case": Case({"ignore_case": True}, measured, ANSWERS),
    "eval.text.tolerance": Case({"tolerance": {"absolute": 0.5}}, measured, _measured_by("number")),
    "eval.text.lists": Case({"lists": "unordered"}, measured, _measured_by("json")),
    "eval.code.tests": Case({"tests": "other_tests"}, judged, CODE),
    "eval.code.library": Case({"library": "mood"}, judged, CODE),
    "eval.code.python": Case({"python": "/usr/bin/python3"}, judged, CODE),
    "eval.code.tokens_max": Case({"tokens_max": 3}, judged, CODE),
    "eval.code.seconds": Case({"seconds": 3}, judged, CODE),
    "eval.code.memory_gb": Case({"memory_gb": 3}, judged, CODE),
    "eval.chat.measures": Case({"measures": ["number"]}, measured, _on_chat("exact")),
    "eval.chat.tokens_max": Case({"tokens_max": 3}, scores, _on_chat("exact")),
    "eval.chat.ignore_case": Case({"ignore_case": True}, measured, _on_chat("exact")),
    "eval.chat.tolerance": Case({"tolerance": {"relative": 0.5}}, measured, _on_chat("number")),
    "eval.chat.lists": Case({"lists": "unordered"}, measured, _on_chat("json")),
    "eval.choice.options": Case({"options": [*tiny.MOODS, "mixed"]}, scores, CHOICE),
    "eval.choice.by": Case({"by": "letter"}, scores, CHOICE),
    "cost.miss": Case({"costs": {"positive": {"miss": 5}}}, scores, LABEL),
    "cost.false_alarm": Case({"costs": {"positive": {"false_alarm": 5}}}, scores, LABEL),
}
TURNS = (("user", "text"), ("assistant", "mood")) * 2
TEMPLATE = (
    "{{ strftime_now('%d %b %Y') }}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with two models and two files of rows that also hold conversations."""
    root = tmp_path_factory.mktemp("fields")
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    for seed, name in enumerate(("model", "other")):
        tiny.make_model(root / name, seed=seed)
        tokenizer.save_pretrained(str(root / name))
    make_adapter(root / "model", root / "parent")
    for name, count, first in (("train.jsonl", 20, 0), ("eval.jsonl", 9, 4), ("other.jsonl", 9, 7)):
        rows = tiny.make_rows(root / name, count + first).read_text().splitlines()[first:]
        talks = [
            {**row, **PROGRAMS, "talk": [{"role": r, "content": row[key]} for r, key in TURNS]}
            for row in map(json.loads, rows)
        ]
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in talks))
    return root


@pytest.fixture(scope="module")
def notes() -> dict[str, object]:
    """Return what was seen already, by settings: most fields are changed in the same ones."""
    return {}


@pytest.fixture(autouse=True)
def as_a_new_process() -> Iterator[None]:
    """Leave threads, and accelerate's settings of the whole process, as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    AcceleratorState._reset_state(reset_partial_state=True)


def seen(place: Path, notes: dict[str, object], case: Case, changes: Tables) -> object:
    """Return what the case's observer sees under these settings, or how they are refused."""
    model, rows = place / "model", place / "train.jsonl"
    settings = json.loads(json.dumps(tiny.make_config(model, rows)))
    for layer in (case.around, changes):
        for table, fields in layer.items():
            settings[table] = {**settings.get(table, {}), **fields}
    paths = (("model", "id"), ("method", "from"), ("data", "train"), ("data", "eval"))
    for table, key in paths:
        value = settings[table].get(key)
        if isinstance(value, list):
            named = [{"path": one} if isinstance(one, str) else one for one in value]
            settings[table][key] = [{**one, "path": str(place / one["path"])} for one in named]
        elif value and (place / value).exists():
            settings[table][key] = str(place / value)
    key = f"{case.see.__name__} {json.dumps(settings, sort_keys=True)}"
    if key not in notes:
        run = tiny.write_config(place / f"run-{len(list(place.iterdir()))}", settings)
        try:
            notes[key] = case.see(run)
        except (ConfigError, DataError) as error:
            notes[key] = f"refused: {error}"
    return notes[key]


def _key(table: type[BaseModel]) -> str:
    """Under which key a table stands in a config."""
    return table.__name__.removesuffix("Table").removeprefix("Label").lower()


def test_every_field_has_a_case() -> None:
    """All fields of all tables are walked; of a further kind of scoring, those of its own."""
    found = (table_of(one.annotation) for one in tables.TrainerConfig.model_fields.values())
    walked: list[type[BaseModel]] = [*filter(None, found), CostTable, DatasetTable]
    fields = {f"{_key(table)}.{key}" for table in walked for key in keys_at(table, [])}
    of_one_kind = {
        f"eval.{kind}.{key}"
        for kind in BRANCHES.values()
        for key in keys_at(tables.TrainerConfig, ["eval", f"{BRANCH}{kind}"])
        if kind != "label" and key != "kind" and key not in EvalFields.model_fields
    }

    assert set(CASES) == fields | of_one_kind


@pytest.mark.parametrize("name", sorted(CASES))
def test_changing_a_field_changes_what_is_seen(
    place: Path, notes: dict[str, object], name: str
) -> None:
    """With another value of this field alone, something observable is different."""
    case = CASES[name]
    table = name.split(".", maxsplit=1)[0]
    table = {"cost": "eval", "dataset": "data"}.get(table, table)
    others: Tables = {table: case.change}
    before, after = seen(place, notes, case, {}), seen(place, notes, case, others)

    assert not str(before).startswith("refused"), before
    assert before != after


@pytest.mark.parametrize("name", ["method.r", "eval.kind", "checkpoint.keep", "model.revision"])
def test_changing_nothing_changes_nothing(place: Path, notes: dict[str, object], name: str) -> None:
    """Every observer sees the same twice, so a difference above is made by the field."""
    first = seen(place, notes, CASES[name], {})
    notes.clear()

    assert first == seen(place, notes, CASES[name], {})
