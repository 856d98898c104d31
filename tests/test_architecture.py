"""The plan of the house holds: who imports whom, what is loaded when, and how long things get."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("infra", "remote", "trainer")
FILE_LINES_P90 = 360
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
LOOP_LINES_MAX = 90
PROGRAMS = ["chaos", "conftest", "memory", "trackers"]
"""The files in `tests` that are no tests: run by make, or read by pytest."""
ASSERTING = ("assert_", "check", "expect", "wait_for", "await_", "until")
"""How helpers that fail a test begin."""
CONFINED = {
    "azure": ("infra/azure",),
    "boto3": ("infra/aws",),
    "botocore": ("infra/aws",),
    "asyncssh": ("infra/local/ssh_server",),
    "fabric": ("remote/ssh", "remote/sync"),
    "paramiko": ("remote/ssh", "remote/sync"),
    "torch": ("trainer/",),
    "transformers": ("trainer/",),
    "peft": ("trainer/",),
    "bitsandbytes": ("trainer/",),
    "accelerate": ("trainer/",),
    "rich": ("commands/ui/console", "cli.py"),
}
PROVIDERS = ("infra.aws", "infra.azure", "infra.local", "infra.ssh_host")
"""Who gives machines: none imports another, and what they share imports none of them."""
HEAVY = {*CONFINED, "pydantic", "yaml", "psutil"} - {"rich"}


def sources(*places: str) -> list[Path]:
    """The Python files of some places, or of the whole program."""
    found: list[Path] = []
    for place in places or ("cli.py", *ROOMS, "commands"):
        path = ROOT / place
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return found


@cache
def parsed(path: Path) -> ast.Module:
    """A file as a tree; most checks read all of them, and reading is what takes long."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> tuple[str, ...]:
    """The modules that a file imports anywhere, by their full names."""
    found: list[str] = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module)
    return tuple(found)


def trespasses(paths: list[Path], room: str) -> list[str]:
    """The imports of other rooms, or of the door, in the files of a room."""
    foreign = {*ROOMS, "cli", "commands"} - {room}
    return [
        f"{path.name} imports {name}"
        for path in paths
        for name in imported(path)
        if name.split(".")[0] in foreign
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_another(room: str) -> None:
    """Infra, remote and trainer know nothing of each other, nor of the door."""
    assert trespasses(sources(room), room) == []


def test_an_import_across_rooms_would_be_noticed(tmp_path: Path) -> None:
    """The check above fails on a file that imports another room, even inside a function."""
    bad = tmp_path / "bad.py"
    bad.write_text("def act():\n    from remote.ssh import connect\n    return connect\n")

    assert trespasses([bad], "infra") == ["bad.py imports remote.ssh"]


def imported_providers(paths: list[Path], own: str) -> list[str]:
    """The imports of providers other than `own` in these files."""
    return [
        f"{path.name} imports {name}"
        for path in paths
        for name in imported(path)
        if name.startswith(PROVIDERS) and not name.startswith(own or " ")
    ]


@pytest.mark.parametrize(
    ("place", "own"),
    [
        ("infra/renting", ""),
        ("infra/catalog", ""),
        ("infra/run", ""),
        ("infra/azure", "infra.azure"),
        ("infra/aws", "infra.aws"),
        ("infra/local", "infra.local"),
    ],
)
def test_providers_know_nothing_of_each_other(place: str, own: str) -> None:
    """What rented machines share, and what drives a run, knows no provider; none knows another."""
    assert imported_providers(sources(place), own) == []


def test_an_import_of_another_provider_would_be_noticed(tmp_path: Path) -> None:
    """The check above fails on a file that imports another provider, even inside a function."""
    bad = tmp_path / "bad.py"
    bad.write_text("def act():\n    from infra.azure.sdk import Arm\n    return Arm\n")

    assert imported_providers([bad], "") == ["bad.py imports infra.azure.sdk"]
    assert imported_providers([bad], "infra.aws") == ["bad.py imports infra.azure.sdk"]
    assert imported_providers([bad], "infra.azure") == []


@pytest.mark.parametrize("path", sorted((ROOT / "remote" / "on_machine").glob("*.py")))
def test_scripts_for_the_machine_stand_alone(path: Path) -> None:
    """What is uploaded parses as Python 3.8 and imports nothing but the standard library."""
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))

    assert {name.split(".")[0] for name in imported(path)} <= set(sys.stdlib_module_names)


def importers_of(paths: list[Path], module: str) -> list[str]:
    """The files among these that import a module or something in it, by any way of writing it."""
    parent, _, name = module.rpartition(".")
    found = []
    for path in paths:
        named = [
            f"{node.module}.{alias.name}"
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.ImportFrom) and node.module == parent
            for alias in node.names
        ]
        if any(f"{one}.".startswith(f"{parent}.{name}.") for one in (*imported(path), *named)):
            found.append(path.name)
    return found


def test_only_the_group_imports_what_joins_processes() -> None:
    """Nothing else may depend on torch.distributed, which one process alone never needs."""
    others = [path for path in sources() if path.parent != ROOT / "trainer" / "group"]

    assert importers_of(others, "torch.distributed") == []
    assert "joined.py" in importers_of(sources("trainer/group"), "torch.distributed")


def test_an_import_of_what_joins_processes_would_be_noticed(tmp_path: Path) -> None:
    """The check above knows all ways to import it."""
    found = []
    for at, line in enumerate(
        (
            "import torch.distributed as dist",
            "from torch import distributed",
            "from torch.distributed import TCPStore",
            "from torch.distributed.fsdp import fully_shard",
            "import torch",
        )
    ):
        path = tmp_path / f"bad{at}.py"
        path.write_text(f"def act():\n    {line}\n")
        found += importers_of([path], "torch.distributed")

    assert found == ["bad0.py", "bad1.py", "bad2.py", "bad3.py"]


def arrows(room: str, *, folders: bool) -> dict[str, set[str]]:
    """Who imports whom inside a room: files, or the folders (and single files) at its top."""

    def place(module: str) -> str:
        return ".".join(module.split(".")[:2]) if folders else module

    found: dict[str, set[str]] = {}
    for path in sources(room):
        here = place(".".join(path.relative_to(ROOT).with_suffix("").parts))
        targets = found.setdefault(here, set())
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    longer = ROOT.joinpath(*node.module.split("."), f"{alias.name}.py")
                    name = f"{node.module}.{alias.name}" if longer.exists() else node.module
                    if name.startswith(f"{room}.") and place(name) != here:
                        targets.add(place(name))
    return found


@pytest.mark.parametrize("unit", ["file", "folder"])
@pytest.mark.parametrize("room", [*ROOMS, "commands"])
def test_nothing_imports_in_a_circle(room: str, unit: str) -> None:
    """Files stand in an order, and so do the folders of a room: there is one to begin with."""
    order = list(TopologicalSorter(arrows(room, folders=unit == "folder")).static_order())

    assert len(order) > 1


def test_a_circle_would_be_noticed() -> None:
    """The check above fails on two files that import each other."""
    with pytest.raises(CycleError):
        list(TopologicalSorter({"one": {"other"}, "other": {"one"}}).static_order())


@pytest.mark.parametrize("library", sorted(CONFINED))
def test_heavy_libraries_stay_in_their_rooms(library: str) -> None:
    """A vendor's library is imported only where the design says, so that it can be replaced."""
    outside = [
        str(path.relative_to(ROOT))
        for path in sources()
        if library in {name.split(".")[0] for name in imported(path)}
        and not str(path.relative_to(ROOT)).startswith(CONFINED[library])
    ]

    assert outside == []


def test_help_loads_none_of_the_heavy_libraries() -> None:
    """`qft --help` imports neither clouds nor SSH nor torch, which is why it is instant."""
    ask = (
        "import sys, cli; sys.argv = ['qft', '--help'];\ntry: cli.main()\nexcept SystemExit: pass\n"
    )
    loaded_code = "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"

    done = subprocess.run(
        [sys.executable, "-c", ask + loaded_code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert HEAVY & loaded == set()
    assert "typer" in loaded


def length(path: Path) -> int:
    """The number of lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    "places", [("cli.py", *ROOMS, "commands"), ("tests",)], ids=["qft", "tests"]
)
def test_most_files_are_short(places: tuple[str, ...]) -> None:
    """Nine files of ten are at most a few screens; a longer one has a second room inside it."""
    lengths = sorted(length(path) for path in sources(*places))

    assert lengths[len(lengths) * 9 // 10] <= FILE_LINES_P90


def test_a_long_file_says_why() -> None:
    """A file above the limit has a paragraph in its docstring that begins with `Long because`."""
    silent = [
        str(path.relative_to(ROOT))
        for path in sources("cli.py", *ROOMS, "commands", "tests")
        if length(path) > FILE_LINES_MAX
        and "\nLong because" not in (ast.get_docstring(parsed(path)) or "")
    ]

    assert silent == []


def test_no_function_is_longer_than_a_page() -> None:
    """Bodies of functions fit on a screen; the training loop may take a page."""
    long = []
    for path in sources():
        most = LOOP_LINES_MAX if path.name == "loop.py" else FUNCTION_LINES_MAX
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.body[0].lineno + 1
                if length > most:
                    long.append(f"{path.relative_to(ROOT)}:{node.name} {length}")

    assert long == []


def test_every_file_opens_with_its_promise() -> None:
    """The first thing in a file is a sentence that says what it is for."""
    silent = [
        str(path.relative_to(ROOT))
        for path in sources("cli.py", *ROOMS, "commands", "tests", "examples")
        if not ast.get_docstring(parsed(path))
    ]

    assert silent == []


def silent_handlers(path: Path) -> list[int]:
    """The lines that drop an exception without a word: `except: pass`, or `suppress` without why.

    The reason of a `suppress` is a comment on its line, or on the line above.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None or all(isinstance(part, ast.Pass) for part in node.body):
                found.append(node.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            above, here = lines[node.lineno - 2].strip(), lines[node.lineno - 1]
            if "  # " not in here and not above.startswith("# "):
                found.append(node.lineno)
    return found


def test_no_exception_is_dropped_without_a_reason() -> None:
    """What is caught is answered or reported, and what is suppressed has its reason beside it."""
    silent = [
        f"{path.relative_to(ROOT)}:{line}" for path in sources() for line in silent_handlers(path)
    ]

    assert silent == []


def test_a_dropped_exception_would_be_noticed(tmp_path: Path) -> None:
    """The check above sees an empty handler, a bare one, and a `suppress` without a reason."""
    bad = tmp_path / "bad.py"
    bad.write_text(
        "try:\n    act()\nexcept OSError:\n    pass\n"
        "with suppress(OSError):\n    act()\n"
        "with suppress(OSError):  # it is gone\n    act()\n"
        "# It may be gone.\nwith contextlib.suppress(OSError):\n    act()\n"
    )

    assert silent_handlers(bad) == [3, 5]


def test_no_test_imports_another_test() -> None:
    """What tests share is in `tests/support`; beside the tests there are programs only."""
    tests = sorted((ROOT / "tests").glob("*.py"))
    found = [
        f"{path.name} imports {name}"
        for path in [*tests, *sources("tests/support")]
        for name in imported(path)
        if name.split(".")[0].startswith("test_")
    ]

    assert found == []
    assert [path.stem for path in tests if not path.stem.startswith("test_")] == PROGRAMS


def test_every_test_says_what_it_proves_and_can_fail() -> None:
    """Each test has a docstring, and asserts or expects an error, itself or through a helper."""
    idle = [
        f"{path.name}:{node.name}"
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not (ast.get_docstring(node) and can_fail(node))
    ]

    assert idle == []


def can_fail(test: ast.FunctionDef) -> bool:
    """Whether a test asserts, expects an error, or hands that to a helper that says so by name."""
    for node in ast.walk(test):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in {"raises", "warns"} or name.startswith(ASSERTING):
                return True
    return False


def test_every_dependency_is_bounded() -> None:
    """Each dependency has an upper bound, type stubs aside, and a line in the constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    wanted = [line for line in [*project["dependencies"], *extras] if not line.startswith("types-")]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for name in ("constraints.txt", "constraints-trackers.txt")
        for line in (ROOT / name).read_text().splitlines()
    }

    assert [line for line in wanted if ",<" not in line] == []
    names = [line.split(">=")[0].lower().replace("_", "-") for line in wanted]
    assert [name for name in names if name not in pinned] == []
