"""Whatever stands in a run.yaml, the commands accept it and go on, or tell every fault; no more."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from support.oddities import HOSTS, KEYS, ODDITIES, PYTHONS, USERS
from support.runs import make_project

from commands.runs import factory
from commands.runs.config import LoadedConfig, RunConfig, check, check_data_and_model, load, schema
from commands.runs.find_config import find_config
from commands.runs.home import pick_run, run_folder
from commands.runs.payload import build_payload
from commands.runs.planning.estimates import estimate_line, estimate_local_run, estimate_run
from commands.runs.run_to_goal import worst_case_text
from commands.runs.session import policy_of
from commands.ui.errors import UsageError

EXAMPLES = int(os.environ.get("QFT_FUZZ_EXAMPLES", "60"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
BASE: dict[str, Any] = {
    "name": "tiny",
    "vm": {"provider": "local", "max_price": 0.25, "regions": ["local-1"]},
    "budget": {"usd": 1.0, "hours": 1, "evictions": 2},
    "model": {"id": "model"},
    "method": {"kind": "lora"},
    "data": {
        "train": "train.jsonl",
        "eval": "eval.jsonl",
        "prompt": "{text}\n",
        "completion": "{mood}",
    },
    "train": {"steps": 4, "threads": 1},
    "checkpoint": {"every": 2},
    "eval": {"kind": "label", "labels": ["negative", "neutral", "positive"]},
}
SSH = {"host": "gpu.example", "port": 22, "user": "me", "key": "id", "host_key": KEY, "gpu": False}

WORDS = st.text(max_size=40) | st.sampled_from(["a", "owner/name", "model", "train.jsonl", "T4"])
NUMBERS = st.integers() | st.floats() | st.integers(min_value=-(10**400), max_value=10**400)
VALUES = st.recursive(
    st.none() | st.booleans() | WORDS | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


def places(table: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the way to every field of a table and of those in it."""
    table.model_rebuild()
    for name, field in table.model_fields.items():
        yield (*above, name)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from places(kind, (*above, name))


PLACES = sorted(set(places(RunConfig)))


class Raw(str):
    """A piece of YAML that is put into the file as it is."""

    __slots__ = ()


def written(value: Any) -> str:
    """Write a value as YAML on one line: JSON is YAML, but for what is to go in as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(k)}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(written(one) for one in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}" if abs(value) > 10**4000 else str(value)
    return json.dumps(value)


def changed(place: tuple[str, ...], value: Any, *, ssh: bool) -> str:
    """The base config as text, with one value replaced; what is no table on the way becomes one."""
    tables = json.loads(json.dumps(BASE))
    if ssh or place[:2] == ("vm", "ssh"):
        tables["vm"] = {"provider": "ssh", "ssh": dict(SSH)}
    inner = tables
    for name in place[:-1]:
        if not isinstance(inner.get(name), dict):
            inner[name] = {}
        inner = inner[name]
    inner[place[-1]] = value
    lines = [f"{name}: {written(table)}" for name, table in tables.items()]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows, where each example writes its run.yaml."""
    project = make_project(tmp_path_factory.mktemp("fuzz"))
    (project.folder / "id").write_text("no key\n")
    return project.folder


def tried(folder: Path, data: bytes) -> LoadedConfig | UsageError:
    """Load a file as `plan`, `audit` and `doctor` do; go on with what is accepted as they do."""
    path = folder / "run.yaml"
    path.write_bytes(data)
    for ask in (lambda: load(path), lambda: pick_run(folder / "home", str(path), cwd=folder)):
        try:
            ask()
        except UsageError as error:
            checked(error)
    try:
        loaded = load(path)
    except UsageError as error:
        return checked(error)
    goes_on(folder, loaded)
    return loaded


def checked(error: UsageError) -> UsageError:
    """See that a refusal can be shown: short, in words, and as JSON."""
    lines = [error.message, *error.problems, error.hint]
    json.dumps(lines)
    assert error.exit_code == 2
    assert error.message
    assert max(map(len, lines)) < 5000
    return error


def goes_on(folder: Path, loaded: LoadedConfig) -> None:
    """Take the steps that follow a good config, up to where a machine would be asked for."""
    vm = loaded.config.vm
    saved = json.loads(json.dumps(loaded.config.model_dump(mode="json"), allow_nan=False))
    assert check(saved, loaded.path).config == loaded.config
    assert loaded.out.name == run_folder(folder / "home", loaded.config.name).name
    estimate_line(estimate_run(loaded))
    estimate_local_run(loaded)
    worst_case_text(loaded)
    policy_of(loaded)
    factory.want(vm)
    build_payload(loaded, folder / "staging", write=False)
    for step in (
        lambda: check_data_and_model(loaded),
        lambda: factory.make_provider(vm, folder / "home") if vm.provider != "azure" else None,
        lambda: factory.user_key(vm, run_folder(folder / "home", "tiny")),
    ):
        refusable(step)


def refusable(step: Callable[[], object]) -> None:
    """Take a step that may tell a fault."""
    try:
        step()
    except UsageError as error:
        checked(error)


@FUZZ
@given(place=st.sampled_from(PLACES), oddity=st.sampled_from(ODDITIES), ssh=st.booleans())
def test_no_oddity_of_yaml_anywhere_ends_in_a_traceback(
    folder: Path, place: tuple[str, ...], oddity: str, *, ssh: bool
) -> None:
    """Every known oddity, in the place of every field, is accepted or told."""
    text = changed(place, Raw(oddity), ssh=ssh)

    assert isinstance(
        tried(folder, text.encode("utf-8", "surrogatepass")), LoadedConfig | UsageError
    )


@FUZZ
@given(place=st.sampled_from(PLACES), value=VALUES, ssh=st.booleans())
def test_no_value_of_any_type_ends_in_a_traceback(
    folder: Path, place: tuple[str, ...], value: Any, *, ssh: bool
) -> None:
    """Any number, word, list or table, in the place of every field, is accepted or told."""
    text = changed(place, value, ssh=ssh)

    assert isinstance(
        tried(folder, text.encode("utf-8", "surrogatepass")), LoadedConfig | UsageError
    )


@FUZZ
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_file_ends_in_a_traceback(folder: Path, data: bytes) -> None:
    """Any bytes in the place of a run.yaml are told."""
    assert isinstance(tried(folder, data), UsageError)


@FUZZ
@given(cut=st.integers(0, 600), put=st.sampled_from(ODDITIES) | st.text(max_size=8))
def test_no_torn_file_ends_in_a_traceback(folder: Path, cut: int, put: str) -> None:
    """A good file with anything in the middle is accepted or told."""
    text = changed(("name",), "tiny", ssh=False)
    cut %= len(text)
    torn = text[:cut] + put + text[cut:]

    assert isinstance(
        tried(folder, torn.encode("utf-8", "surrogatepass")), LoadedConfig | UsageError
    )


FATAL = [
    ("name: 2026-11-31", "name: YAML reads `2026-11-31` as a date"),
    ("name: 0x_", "name: YAML takes `0x_` for a number, and it is none"),
    ("name: 1:30", "name: YAML reads `1:30` as a number to the base 60"),
    ("name: yes", "YAML reads yes, no, on and off as true and false"),
    (f"train: {{steps: {'9' * 5000}}}", "train.steps: YAML takes `9999"),
    ("train: {steps: 010}", "train.steps: YAML reads `010` as octal"),
    ("train: {lr: .nan}", "train.lr: `.nan` is no finite number"),
    ("train: {lr: nan}", "train.lr: Input should be a finite number"),
    ("budget: {usd: 1e999}", "budget.usd: Input should be a finite number"),
    ("budget: {hours: 9.0e+300}", "budget.hours: the number `9e+300` is out of any range"),
    ("train: {step: 3}", "train.step: unknown key; did you mean `steps`?"),
    ("train: {steps: 3, steps: 4}", "train.steps: given 2 times"),
    ("train: {1: 3}", "train: the key `1` is no word"),
    ("train: {<<: {stepps: 3}}", "train.stepps: unknown key; did you mean `steps`?"),
    (f"name: {'[' * 3000}{']' * 3000}", "nested more than 32 deep"),
    ("name: &a [*a]", "an anchor that holds itself"),
    ("name: !!python/object/apply:os.system [touch x]", "are not read here"),
    ("name: !!binary x", "name: values of the type `binary` are not read here"),
    ('data: {train: "tr\\0ain.jsonl"}', "data.train: it holds a zero byte"),
    ('data: {train: "tr\\u202eain.jsonl"}', "data.train: it holds U+202E"),
    ("data: {train: ~no-such-user/x.jsonl}", "there is no user `no-such-user` here"),
    (f"data: {{train: {'x' * 300}.jsonl}}", "is too long for a path"),
    ("model: {id: -c/x}", "model.id: `-c/x` begins with `-`, like an option"),
    ("vm: {regions: [-x]}", "vm.regions: `-x` is no such name"),
    ("vm: {regions: ['west us']}", "`west us` is no such name"),
    ("vm: {azure: {subscription: '--x'}}", "vm.azure.subscription: `--x` is no such name"),
]


@pytest.mark.parametrize(("line", "reported"), FATAL, ids=[reported for _, reported in FATAL])
def test_what_is_wrong_is_reported_beside_every_other_problem(
    folder: Path, line: str, reported: str
) -> None:
    """One bad value does not hide another: both are told, with the place of each."""
    place, _, table = line.partition(":")
    tables = {name: Raw(written(inner)) for name, inner in BASE.items()} | {
        "checkpoint": Raw("{keeep: 3}")
    }
    if place == "data":
        table = table.replace("}", ', eval: eval.jsonl, prompt: "{text}", completion: "{mood}"}')
    tables[place] = Raw(table)
    text = "\n".join(f"{name}: {inner}" for name, inner in tables.items())

    refused = tried(folder, text.encode())

    assert isinstance(refused, UsageError)
    printed = "\n".join([refused.message, *refused.problems])
    assert reported in printed
    if "is not YAML" not in refused.message:
        assert "checkpoint.keeep: unknown key; did you mean `keep`?" in printed


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in (
        ("host", HOSTS), ("user", USERS), ("python", PYTHONS), ("key", KEYS)
    ) for value in values],
)  # fmt: skip
def test_words_of_the_config_never_become_options(folder: Path, field: str, value: str) -> None:
    """What could be an option, two words or a piece of shell is refused, wherever it was kept."""
    text = changed(("vm", "ssh", field), value, ssh=True)

    refused = tried(folder, text.encode("utf-8", "surrogatepass"))

    assert isinstance(refused, UsageError)
    assert any(problem.startswith(f"vm.ssh.{field}: ") for problem in refused.problems), (
        refused.problems
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", "gpu.example."), ("host", "10.0.0.7"), ("host", "::1"), ("host", "fe80::1%eth0"),
        ("host", "xn--bcher-kva.example"), ("host", "gpu_1"), ("user", "me.too_2-x"),
        ("user", "me@corp.example"), ("user", "_svc"), ("key", "my keys/id 100%"),
        ("key", "~/.ssh/id"),
        ("python", "/opt/conda/envs/a-b/bin/python3.12"), ("python", "venv/bin/python"),
    ],
)  # fmt: skip
def test_names_in_use_are_accepted(folder: Path, field: str, value: str) -> None:
    """Names that hosts, accounts and interpreters have are no fault."""
    loaded = tried(folder, changed(("vm", "ssh", field), value, ssh=True).encode())

    assert isinstance(loaded, LoadedConfig)


def _file(path: Path, how: str) -> None:
    """Put something else in the place of a run.yaml."""
    makers: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path.name),
        "huge": lambda: path.write_bytes(b"a: 1\n" * 300_000),
        "empty": lambda: path.write_bytes(b""),
        "comment": lambda: path.write_bytes(b"# nothing\n"),
        "list": lambda: path.write_bytes(b"- 1\n"),
        "scalar": lambda: path.write_bytes(b"hello\n"),
        "utf-16": lambda: path.write_bytes("name: a\n".encode("utf-16")),
        "utf-16-le": lambda: path.write_bytes("name: a\n".encode("utf-16-le")),
        "latin-1": lambda: path.write_bytes("name: a\n# ü\n".encode("latin-1")),
        "tab": lambda: path.write_bytes(b"name:\n\ta: 1\n"),
        "two": lambda: path.write_bytes(b"name: a\n---\nname: b\n"),
        "bomb": lambda: path.write_text(_bomb()),
    }
    makers[how]()


def _bomb() -> str:
    """Nine anchors that stand for a thousand million values."""
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    for number in range(1, 10):
        before = f"*a{number - 1}"
        lines.append(f"a{number}: &a{number} [{', '.join([before] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("how", "reported"),
    [
        ("nothing", "there is no `"),
        ("folder", "is a directory"),
        ("pipe", "is a pipe or a device"),
        ("device", "is a pipe or a device"),
        ("loop", "cannot be read: "),
        ("huge", "has more than 1 MiB"),
        ("empty", "is empty"),
        ("comment", "is empty"),
        ("list", "holds no tables"),
        ("scalar", "holds no tables"),
        ("utf-16", "is UTF-16 text"),
        ("utf-16-le", "is UTF-16 text"),
        ("latin-1", "line 2 has the byte 0xfc"),
        ("tab", "is not YAML"),
        ("two", "is not YAML"),
        ("bomb", "is not YAML"),
    ],
)
def test_what_is_no_run_yaml_is_reported_at_once(tmp_path: Path, how: str, reported: str) -> None:
    """Anything in the place of the file is named, and nothing waits for it."""
    path = tmp_path / "run.yaml"
    _file(path, how)

    for ask in (
        lambda: find_config(str(path), tmp_path),
        lambda: pick_run(tmp_path, str(path), cwd=tmp_path),
    ):
        with pytest.raises(UsageError) as caught:
            ask()
        assert reported in caught.value.message


def test_a_byte_order_mark_is_no_problem(folder: Path) -> None:
    """Editors on Windows begin UTF-8 files with one."""
    text = changed(("name",), "tiny", ssh=False)

    assert isinstance(tried(folder, b"\xef\xbb\xbf" + text.encode()), LoadedConfig)


def test_anchors_and_merges_are_read(folder: Path) -> None:
    """What is written once and used twice is no key that is given twice."""
    text = changed(("name",), "tiny", ssh=False)
    lines = [line for line in text.splitlines() if not line.startswith(("train", "checkpoint"))]
    lines += [
        "train: &t {<<: {steps: 3, threads: 1}, steps: 4}",
        "checkpoint: {<<: {keep: 3}, every: 2}",
    ]

    loaded = tried(folder, "\n".join(lines).encode())

    assert isinstance(loaded, LoadedConfig)
    assert (loaded.config.train.steps, loaded.config.checkpoint.keep) == (4, 3)


def test_the_schema_names_every_place(folder: Path) -> None:
    """The fuzzed places are those of the schema that editors get."""
    shutil.rmtree(folder / "staging", ignore_errors=True)
    assert {place[0] for place in PLACES} == set(json.loads(schema())["properties"])
    assert ("vm", "ssh", "user") in PLACES


def test_a_pipe_in_the_place_of_rows_is_reported(tmp_path: Path) -> None:
    """Rows are read from files: a pipe would be waited for without end."""
    project = make_project(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    os.mkfifo(tmp_path / "train.jsonl")

    with pytest.raises(UsageError) as caught:
        check_data_and_model(load(project.config))

    assert [problem.partition(": is ")[2] for problem in caught.value.problems] == [
        "a pipe or a device, not a data file"
    ]
