"""What the proof for a card runs its processes with: packages from a folder, and limits."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from gpu import borrowed, shapes, weights
from gpu.borrowed import FOLDER, GIVEN, choose, environment, needed, pack
from gpu.running import Processes, summary
from support import tiny

from trainer.data.examples import load_examples
from trainer.data_table import DataTable

ROOT = Path(__file__).resolve().parent.parent
WHOLE = dict.fromkeys(GIVEN, "1.0") | {"bitsandbytes": "0.50.2", "pydantic": "2.14.3"}
SUFFIX = ".cpython-312-x86_64-linux-gnu.so"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A filled folder, with pydantic's compiled half for Python 3.12 only."""
    for name in ("bitsandbytes", "pydantic"):
        (tmp_path / FOLDER / name / name).mkdir(parents=True)
        (tmp_path / FOLDER / name / name / "__init__.py").touch()
    core = tmp_path / FOLDER / "pydantic" / "pydantic_core"
    core.mkdir()
    (core / f"_pydantic_core{SUFFIX}").touch()
    return tmp_path / FOLDER


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, []),
        ({"bitsandbytes": None}, ["bitsandbytes"]),
        ({"pydantic": None}, ["pydantic"]),
        ({"bitsandbytes": None, "pydantic": None}, ["bitsandbytes", "pydantic"]),
        ({"bitsandbytes": "0.49.1"}, ["bitsandbytes"]),
        ({"bitsandbytes": "0.50.0.dev1+cu130"}, []),
        ({"bitsandbytes": "1.0"}, []),
        ({"pydantic": "2.9.2"}, ["pydantic"]),
        ({"pydantic": "1.10.13"}, ["pydantic"]),
    ],
)
def test_only_what_a_python_lacks_is_taken_from_the_folder(
    folder: Path, changes: dict[str, str | None], taken: list[str]
) -> None:
    """A package that is there and new enough is used as it is; one too old is replaced."""
    choice = choose({**WHOLE, **changes}, folder, suffix=SUFFIX)

    assert list(choice.paths) == [folder / name for name in taken]
    assert choice.lacking == ()
    assert [line.split()[0] for line in choice.messages] == taken


@pytest.mark.parametrize(
    ("found", "suffix", "lacking", "text"),
    [
        ({"torch": None}, SUFFIX, ("torch",), ""),
        ({"pydantic": None}, ".cpython-311-x86_64-linux-gnu.so", ("pydantic",), "compiled half"),
        ({"pydantic": None}, ".cpython-312-aarch64-linux-gnu.so", ("pydantic",), "compiled half"),
    ],
)
def test_what_cannot_be_had_is_named(
    folder: Path, found: dict[str, str | None], suffix: str, lacking: tuple[str, ...], text: str
) -> None:
    """A package that is nowhere, or was packed for another Python, is said to be lacking."""
    choice = choose({**WHOLE, **found}, folder, suffix=suffix)

    assert choice.lacking == lacking
    assert choice.paths == ()
    assert text in " ".join(choice.messages)


def test_what_is_only_compared_with_is_taken_if_it_was_packed_and_never_lacking(
    folder: Path,
) -> None:
    """Where TRL is neither there nor packed the comparison alone is left out."""
    for name in ("trl", "datasets"):
        (folder / name / name).mkdir(parents=True)
        (folder / name / name / "__init__.py").touch()
    choice = choose({**WHOLE, "datasets": "5.2.0"}, folder, suffix=SUFFIX)

    assert choice.paths == (folder / "trl",)
    assert choice.lacking == ()


def test_without_the_folder_the_way_to_fill_it_is_reported(tmp_path: Path) -> None:
    """Who has no folder reads the command that fills one."""
    choice = choose({**WHOLE, "bitsandbytes": None}, tmp_path / FOLDER, suffix=SUFFIX)

    assert choice.lacking == ("bitsandbytes",)
    assert "python tests/gpu --pack" in choice.messages[0]


def test_processes_see_one_card_and_no_network(folder: Path) -> None:
    """Our code is first on the path, then the folder, then what was there; one card of several."""
    choice = choose({**WHOLE, "bitsandbytes": None}, folder, suffix=SUFFIX)
    base = {"PYTHONPATH": "/theirs", "CUDA_VISIBLE_DEVICES": "3,5", "HOME": "/home"}
    made = environment(base, choice, root=Path("/code"), work=Path("/w"))

    assert made["PYTHONPATH"] == f"/code:/code/tests:{folder}/bitsandbytes:/theirs"
    assert made["CUDA_VISIBLE_DEVICES"] == "3"
    assert made["HF_HUB_OFFLINE"] == "1"
    assert made["HOME"] == "/home"
    assert made["HF_HOME"] == "/w/huggingface"
    assert (
        environment({}, choice, root=Path("/code"), work=Path("/w"))["CUDA_VISIBLE_DEVICES"] == "0"
    )
    assert (
        environment({"CUDA_VISIBLE_DEVICES": ""}, choice, root=ROOT, work=Path("/w"))[
            "CUDA_VISIBLE_DEVICES"
        ]
        == ""
    )


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("bitsandbytes/libbitsandbytes_cuda130.so", True),
        ("bitsandbytes/libbitsandbytes_cpu.so", True),
        ("bitsandbytes/libbitsandbytes_cuda128.so", False),
        ("bitsandbytes/libbitsandbytes_cuda132.so", False),
        ("bitsandbytes/libbitsandbytes_rocm72.so", False),
        ("bitsandbytes/libbitsandbytes_xpu2025.so", False),
        ("bitsandbytes/nn/modules.py", True),
        ("bitsandbytes-0.50.2.dist-info/METADATA", True),
        ("bitsandbytes/__pycache__/consts.cpython-311.pyc", False),
        ("multiprocess/tests/__init__.py", False),
        ("../../../bin/tool", False),
    ],
)
def test_one_generation_of_cuda_is_brought_along(file: str, wanted: bool) -> None:  # noqa: FBT001
    """Of 130 MB of libraries one for the card is taken, and the small one for CPUs."""
    assert needed(file, cuda="130") is wanted


def test_a_packed_folder_serves_a_python_that_lacks_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is installed here is copied, small enough to travel, and imports from there."""

    def unreachable(requirement: str, python: str | None = None) -> Path:
        raise subprocess.CalledProcessError(1, ["pip"], stderr=f"no {requirement} for {python}")

    monkeypatch.setattr(borrowed, "download", unreachable)
    message: list[str] = []
    size = pack(tmp_path / FOLDER, on_message=message.append)
    choice = choose(dict.fromkeys(WHOLE, "1.0") | {"bitsandbytes": None, "pydantic": None},
                    tmp_path / FOLDER)  # fmt: skip
    ask = (
        "import pydantic, pydantic_core, bitsandbytes; from importlib import metadata as m;"
        "print(pydantic_core.__file__, bitsandbytes.__file__, m.version('bitsandbytes'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env=environment({}, choice, root=ROOT, work=tmp_path),
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert size < 40 << 20
    assert sum("pydantic-core" in line for line in message) == len(borrowed.PYTHONS) - 1
    assert choice.lacking == ()
    core, bits, version = done.stdout.split()
    assert core.startswith(str(tmp_path))
    assert bits.startswith(str(tmp_path))
    assert version == "0.50.2"
    libraries = {path.name for path in (tmp_path / FOLDER).rglob("libbitsandbytes_*")}
    assert libraries == {"libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so"}


def test_the_compiled_half_comes_from_the_wheel_of_each_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For another Python the very version that this pydantic wants is fetched and unpacked."""
    requested: list[tuple[str, str | None]] = []

    def download(requirement: str, python: str | None = None) -> Path:
        requested.append((requirement, python))
        place = tmp_path / f"wheel{len(requested)}" / "one.whl"
        place.parent.mkdir()
        with zipfile.ZipFile(place, "w") as wheel:
            wheel.writestr(f"pydantic_core/_pydantic_core.cpython-{str(python)[2:]}.so", b"built")
            wheel.writestr("pydantic_core/__init__.py", "raise SystemExit")
        return place

    monkeypatch.setattr(borrowed, "download", download)
    pack(tmp_path / FOLDER, on_message=lambda _text: None)
    core = tmp_path / FOLDER / "pydantic" / "pydantic_core"
    wanted = borrowed.core_of(tmp_path / FOLDER)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"

    assert [one for one in requested if one[1] is not None] == [
        (f"pydantic-core=={wanted}", python) for python in borrowed.PYTHONS if python != here
    ]
    assert len(list(core.glob("*.so"))) == len(borrowed.PYTHONS)
    assert "raise SystemExit" not in (core / "__init__.py").read_text()


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    """Real processes of this Python, which find modules in `tmp_path`."""
    (tmp_path / "logs").mkdir()
    return Processes(
        python=sys.executable,
        environment={"PYTHONPATH": str(tmp_path)},
        root=tmp_path,
        logs=tmp_path / "logs",
    )


def test_a_process_is_killed_as_soon_as_it_is_requested(
    tmp_path: Path, processes: Processes
) -> None:
    """The kill is SIGKILL to the whole group: a child of the process does not outlive it."""
    (tmp_path / "endless.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path('child.part').write_text(str(child.pid))\n"
        "pathlib.Path('child.part').rename('child')\n"
        "time.sleep(600)\n"
    )
    ended = processes.run("endless", limit_s=300, until=(tmp_path / "child").exists)
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")

    def gone() -> bool:
        return not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"

    deadline_s = time.monotonic() + 60
    while not gone() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert gone()
    assert (ended.code, ended.killed, ended.stopped, ended.fine) == (-9, True, False, False)


def test_a_process_that_hangs_is_stopped_at_its_limit(tmp_path: Path, processes: Processes) -> None:
    """After its time it is killed, and the line says so with what it said last."""
    (tmp_path / "hang.py").write_text(
        "import sys, time\nprint('Error: stuck', file=sys.stderr, flush=True)\ntime.sleep(600)\n"
    )
    ended = processes.run("hang", limit_s=3)

    assert (ended.stopped, ended.killed, ended.fine) == (True, False, False)
    assert summary(ended, limit_s=3).startswith("stopped: not done after 3 s")


def test_what_a_process_says_and_how_it_ends_is_kept(tmp_path: Path, processes: Processes) -> None:
    """Output, errors and the exit code come back, also of one that breaks at once."""
    (tmp_path / "fine.py").write_text("print('out')\n")
    fine = processes.run("fine", limit_s=300)
    missing = processes.run("nothing_of_that_name", limit_s=300)

    assert (fine.fine, fine.out) == (True, "out\n")
    assert missing.code == 1
    assert (
        summary(missing, limit_s=1)
        == f"exit 1: {sys.executable}: No module named nothing_of_that_name"
    )


def test_closing_ends_what_runs_and_starts_nothing_more(
    tmp_path: Path, processes: Processes
) -> None:
    """Ctrl-C leaves no training behind on the card."""
    (tmp_path / "wait.py").write_text(
        "import pathlib, time\npathlib.Path('up').touch()\ntime.sleep(600)\n"
    )

    def close() -> None:
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        processes.close()

    closer = threading.Thread(target=close)
    closer.start()
    ended = processes.run("wait", limit_s=300)
    closer.join()
    after = processes.run("wait", limit_s=300)

    assert (ended.code, ended.fine) == (-9, False)
    assert (after.code, after.stopped) == (None, True)


def test_written_models_are_what_transformers_loads(tmp_path: Path) -> None:
    """The files hold every weight by its name, in bfloat16, random where it should be."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = shapes.MODELS["tiny"]
    weights.write_model(tmp_path / "m", config, bank=weights.make_bank())
    model, found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", output_loading_info=True, dtype=torch.bfloat16
    )
    letters = AutoTokenizer.from_pretrained(tmp_path / "m")("a b").input_ids
    query, other = (model.model.layers[at].self_attn.q_proj.weight.detach() for at in (1, 0))

    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert len(letters) == 3
    assert model.model.norm.weight.detach().tolist() == [1.0] * 64
    assert query.float().std().item() == pytest.approx(weights.SPREAD, rel=0.1)
    assert not torch.equal(query, other)


def test_rows_are_of_the_stated_length_and_none_is_cut(tmp_path: Path) -> None:
    """A row is between the shortest and the longest length, so the forecast's longest is there."""
    rows = shapes.write_rows(tmp_path / "rows.jsonl", longest=512, shortest=256)
    table = DataTable(train=str(rows), prompt="{text}", completion="{answer}", loss_on="all")
    found = load_examples(table, rows, tiny.make_tokenizer(), max_length=512)
    lengths = [len(row.input_ids) for row in found.items]

    assert (min(lengths), max(lengths), len(lengths)) == (256, 512, shapes.ROWS)
    assert found.report.truncated == 0
    assert len(set(lengths)) > 30
    assert all(row.targets >= len(row.input_ids) - 1 for row in found.items)


def test_large_models_are_cut_into_shards_that_hold_every_tensor_once() -> None:
    """No shard of the 8B model is much larger than the others, and nothing is left out."""
    config = shapes.MODELS["8b"]
    cut = weights.cut(config)
    names = [name for shard in cut for _, name, _ in shard]
    sizes = [sum(2 * shapes.elements(shape) for _, _, shape in shard) for shard in cut]

    assert sorted(names) == sorted(name for name, _ in shapes.tensors(config))
    assert len(set(names)) == len(names)
    assert max(sizes) <= weights.SHARD_BYTES
    assert sum(sizes) == 2 * shapes.PUBLISHED["8b"]
