"""Rows of a hub are fetched by name and revision on the machine, and nothing else is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import support.hub as hubs
from pydantic import ValidationError
from support import tiny

from commands.runs.config import check, check_data_and_model
from commands.runs.payload import build_payload
from trainer.__main__ import main
from trainer.config import TrainerConfig
from trainer.data.rows import read_rows
from trainer.data_table import DataTable
from trainer.errors import DataError
from trainer.hub import HubFile, Shards, fetch, parse, rely_on_cache
from trainer.rundir.layout import data_facts

NAMED = "hub:me/pairs@v1/data/train.jsonl"
PLACE = "me/pairs/resolve/v1/data/train.jsonl"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[hubs.Hub]:
    """A hub on loopback with rows in two formats."""
    with hubs.running() as running:
        rows = tiny.make_rows(tmp_path / "rows.jsonl", 12)
        running.datasets[PLACE] = rows.read_bytes()
        yield running


def train(run: Path, hub: hubs.Hub, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the trainer in a process of its own that knows this hub."""
    env = {**tiny.quiet_environment(), "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)}
    env["HF_HUB_OFFLINE"] = "0"
    return subprocess.run(
        tiny.trainer_command("train", run),
        cwd=tiny.ROOT, env=env, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_a_run_on_a_hub_is_the_run_on_the_same_file(hub: hubs.Hub, tmp_path: Path) -> None:
    """Fetched rows give the adapter of local ones; other bytes under the name are refused."""
    steps = {"steps": 3}
    local = tiny.make_run(tmp_path / "local", rows=12, train=steps)
    remote = tiny.make_run(tmp_path / "remote", rows=1, train=steps, data={"train": NAMED})
    here = main(["train", "--run-dir", str(local)])
    there = train(remote, hub, tmp_path / "home")
    hub.datasets[PLACE] += hub.datasets[PLACE]
    changed = train(remote, hub, tmp_path / "another home")

    assert (here, there.returncode) == (0, 0), there.stderr
    assert tiny.adapter_bytes(local) == tiny.adapter_bytes(remote)
    assert changed.returncode == 78
    assert "data.train: was" in changed.stderr


def test_every_format_is_read_from_a_hub(hub: hubs.Hub, tmp_path: Path) -> None:
    """JSON lines, a JSON list, CSV and Parquet keep their endings, which tell the format."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    packed = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"], "mood": ["b"]}), packed)
    bodies = {
        "a.jsonl": b'{"text": "a", "mood": "b"}\n',
        "a.json": b'[{"text": "a", "mood": "b"}]',
        "a.csv": b"text,mood\na,b\n",
        "a.parquet": packed.getvalue(),
    }
    for name, body in bodies.items():
        hub.datasets[f"me/pairs/resolve/v1/{name}"] = body
        wanted = HubFile(repo="me/pairs", revision="v1", path=name)
        rows = read_rows(fetch(wanted, endpoint=hub.endpoint, cache=tmp_path / "cache"))

        assert [dict(row.fields) for row in rows] == [{"text": "a", "mood": "b"}]
    assert {line.rpartition("/")[2] for line in hub.requests} == set(bodies)


def test_a_file_that_is_not_there_is_reported_so(hub: hubs.Hub, tmp_path: Path) -> None:
    """A wrong path ends with the data set, its revision and the path."""
    wanted = HubFile(repo="me/pairs", revision="v1", path="no.jsonl")

    with pytest.raises(DataError, match=r"no\.jsonl of the data set me/pairs at v1 cannot be"):
        fetch(wanted, endpoint=hub.endpoint, cache=tmp_path / "cache")
    assert hub.requests != []


@pytest.mark.parametrize("ask", [["audit"], ["generate", "--base-only"]])
def test_a_silent_hub_costs_no_half_minute(tmp_path: Path, ask: list[str]) -> None:
    """A hub that is not there is asked once; then the cache decides, with a hint and no trace."""
    with socket.socket() as closed:  # bound and not listening: nobody else takes the port
        closed.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{closed.getsockname()[1]}"
        rows = tiny.make_rows(tmp_path / "rows.jsonl", 12)
        tables = tiny.make_config(tmp_path, rows, model={"id": "nobody/nothing"})
        run = tiny.write_config(tmp_path / "run", tables)
        env = {**tiny.quiet_environment(), "HF_ENDPOINT": place, "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "trainer", ask[0], "--run-dir", str(run), *ask[1:]],
            cwd=tiny.ROOT, env={**env, "HF_HUB_OFFLINE": "0", "HF_DEBUG": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert (done.returncode, done.stdout) == (78, "")
    assert "model.id: nobody/nothing (revision main) cannot be loaded" in done.stderr
    assert f"hint: {place} does not answer" in done.stderr
    assert "Retrying" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("word", ["1", "true"])
def test_a_network_that_is_switched_off_is_not_used(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """Whoever says so has no hint to expect, and no wait."""
    monkeypatch.setenv("HF_HUB_OFFLINE", word)
    monkeypatch.setenv("HF_ENDPOINT", "no place at all")

    assert rely_on_cache() is None


def test_an_address_that_is_none_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped HF_ENDPOINT is told like a hub that is away."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")

    assert "hub.example does not answer" in (rely_on_cache() or "")
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_hub_that_answers_is_used(hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any answer is a sign of life, also a refusal, and changes nothing."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for place in (hub.endpoint, f"{hub.endpoint}/datasets/nothing"):
        monkeypatch.setenv("HF_ENDPOINT", place)

        assert rely_on_cache(wait_s=300) is None
        assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_names_are_taken_apart() -> None:
    """Repository, revision and path are told apart, and a plain file name is no hub's."""
    assert parse(NAMED) == HubFile(repo="me/pairs", revision="v1", path="data/train.jsonl")
    assert parse("train.jsonl") is None


@pytest.mark.parametrize(
    "name",
    ["hub:me/pairs/train.jsonl", "hub:pairs@v1/a.jsonl", "hub:me/pairs@v1/../a.jsonl", "hub:"],
)
def test_a_name_without_revision_or_path_is_refused(name: str) -> None:
    """A hub's name without a revision, or with a path that climbs, is a fault of the config."""
    with pytest.raises(ValidationError, match="write `hub:OWNER/NAME@REVISION/PATH`"):
        DataTable(train=name, prompt="{a}", completion="{b}")


@pytest.mark.parametrize("folder", ["da*a", "**", "[d]ata"])
def test_a_pattern_stands_in_a_files_name_alone(folder: str) -> None:
    """Whose folders are a pattern would mix configurations, which is told before anything else."""
    with pytest.raises(ValidationError, match="a pattern may stand in the name of the files"):
        DataTable(train=f"hub:me/pairs@v1/{folder}/a.parquet", prompt="{a}", completion="{b}")


def put_shards(hub: hubs.Hub, *texts: Sequence[str]) -> HubFile:
    """Put a split of several Parquet files on a hub, last first, beside another split."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, part in reversed([*enumerate(texts)]):
        packed = io.BytesIO()
        pq.write_table(pa.table({"text": pa.array(part, pa.string())}), packed)
        for split in ("train", "test"):
            name = f"{split}-{number:05}-of-{len(texts):05}.parquet"
            hub.datasets[f"me/pairs/resolve/v1/data/{name}"] = packed.getvalue()
    hub.datasets["me/pairs/resolve/v1/train-00000-of-00001.parquet"] = b"in another folder"
    return HubFile(repo="me/pairs", revision="v1", path="data/train-*.parquet")


def test_the_shards_of_a_split_are_read_as_one_file(hub: hubs.Hub, tmp_path: Path) -> None:
    """All and only the files that fit, in the order of their names, all of one commit."""
    wanted = put_shards(hub, ["a", "b"], [], ["c"])
    shards = fetch(wanted, endpoint=hub.endpoint, cache=tmp_path / "cache")
    rows = read_rows(shards)

    assert [(row.number, row.fields["text"]) for row in rows] == [(1, "a"), (2, "b"), (3, "c")]
    assert str(shards) == "data/train-*.parquet of the data set me/pairs at v1"
    listed, *fetched = hub.requests
    assert listed == "GET /api/datasets/me/pairs/revision/v1"
    assert {line.rpartition("-of-")[0].partition(" ")[2] for line in fetched} == {
        f"/datasets/me/pairs/resolve/{hubs.COMMIT}/data/train-0000{n}" for n in range(3)
    }


def test_shards_that_are_not_there_or_not_whole_are_named(hub: hubs.Hub, tmp_path: Path) -> None:
    """A pattern that nothing fits, a data set that is none, and a broken shard by its own name."""
    wanted = put_shards(hub, ["a"], ["b"])
    hub.datasets["me/pairs/resolve/v1/data/train-00001-of-00002.parquet"] = b"PAR1 broken"
    get = partial(fetch, endpoint=hub.endpoint, cache=tmp_path / "cache")

    with pytest.raises(DataError, match=r"valid-\* of the data set me/pairs at v1: no file there"):
        get(replace(wanted, path="data/valid-*"))
    with pytest.raises(DataError, match="at v2 cannot be fetched"):
        get(replace(wanted, revision="v2"))
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet:1: not Parquet"):
        read_rows(get(wanted))


def test_a_run_on_shards_is_the_run_on_their_rows(hub: hubs.Hub, tmp_path: Path) -> None:
    """Rows in two files give the adapter of one."""
    lines = hub.datasets.pop(PLACE).splitlines(keepends=True)
    for number, part in enumerate((lines[:5], lines[5:])):
        hub.datasets[f"me/pairs/resolve/v1/data/train-{number}.jsonl"] = b"".join(part)
    named = {"train": "hub:me/pairs@v1/data/train-*.jsonl"}
    local = tiny.make_run(tmp_path / "local", rows=12, train={"steps": 3})
    remote = tiny.make_run(tmp_path / "remote", rows=1, train={"steps": 3}, data=named)
    here = main(["train", "--run-dir", str(local)])
    there = train(remote, hub, tmp_path / "home")

    assert (here, there.returncode) == (0, 0), there.stderr
    assert tiny.adapter_bytes(local) == tiny.adapter_bytes(remote)


def test_the_fingerprint_knows_every_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bytes in the last of them are other data."""
    files = tuple(tmp_path / f"train-{number}.jsonl" for number in range(2))
    tables = tiny.make_config(tmp_path, Path("x"), data={"train": "hub:me/pairs@v1/train-*.jsonl"})
    config = TrainerConfig.model_validate(tables)
    monkeypatch.setattr("trainer.hub.fetch", lambda _: Shards(name="train-*", files=files))
    found = []
    for last in (b"b", b"c", b"b"):
        for file, body in zip(files, (b"a", last), strict=True):
            file.write_bytes(body)
        found.append(data_facts(config, tmp_path)["data.train"])

    assert (found[0] == found[2], found[0] == found[1]) == (True, False)


def test_nothing_is_copied_for_a_hub(tmp_path: Path) -> None:
    """The laptop accepts the name, sends no rows, and the machine's config still names the hub."""
    model = tiny.make_model(tmp_path / "model")
    tables: dict[str, Any] = tiny.make_config(model, Path("x"), data={"train": NAMED})
    loaded = check({"name": "rows", **tables}, tmp_path / "run.yaml")
    check_data_and_model(loaded)
    payload = build_payload(loaded, tmp_path / "staged")

    assert payload.data == {}
    assert NAMED in payload.config.read_text(encoding="utf-8")
    assert [item.label for item in payload.items("qft/rows")] == ["code", "base model", "config"]
