"""A pull brings a tree home whole, and writes nothing but what was asked for where it was asked."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ssh_servers
from support.trees import make_tree, read_tree

from remote.errors import Damaged, RemoteError, Untrusted
from remote.on_machine import tree_ops
from remote.ssh import SshConnection, connect
from remote.sync.api import pull, push
from remote.sync.manifest import Limits
from remote.sync.plan import Progress, SyncOptions

OPTIONS = SyncOptions(chunk_bytes=1 << 20, python=sys.executable)


@pytest.fixture(scope="module", params=ssh_servers.KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ssh_servers.RunningServer]:
    """A server of each kind for the file."""
    with ssh_servers.start_server(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


@pytest.fixture(scope="module")
def connection(server: ssh_servers.RunningServer) -> Iterator[SshConnection]:
    """One connection for the file."""
    with connect(server.host) as opened:
        yield opened


@pytest.fixture
def there(server: ssh_servers.RunningServer, tmp_path: Path) -> Path:
    """A tree on the machine; its remote name is `qft/` and the name of the test's directory."""
    return make_tree(server.home / "qft" / tmp_path.name)


def test_pull_into_nothing(connection: SshConnection, there: Path, tmp_path: Path) -> None:
    """Everything arrives, bit for bit, and no partial file stays behind."""
    seen: list[Progress] = []
    report = pull(
        connection, f"qft/{there.name}", tmp_path / "home", on_progress=seen.append, options=OPTIONS
    )

    assert read_tree(tmp_path / "home") == read_tree(there)
    assert (report.files_sent, report.bytes_sent) == (5, 3_004_115)
    assert (seen[-1].bytes_done, seen[-1].files_done) == (3_004_115, 5)


def test_second_pull_fetches_only_what_differs(
    connection: SshConnection, there: Path, tmp_path: Path
) -> None:
    """What is here already does not travel, and what is only here stays unless asked."""
    pull(connection, f"qft/{there.name}", tmp_path / "home", options=OPTIONS)
    (there / "one").write_bytes(b"2")
    (tmp_path / "home" / "mine").write_text("mine")
    second = pull(connection, f"qft/{there.name}", tmp_path / "home", options=OPTIONS)
    third = pull(
        connection,
        f"qft/{there.name}",
        tmp_path / "home",
        options=SyncOptions(delete=True, python=sys.executable),
    )

    assert (second.files_sent, second.bytes_sent, second.removed) == (1, 1, ())
    assert (third.files_sent, third.removed) == (0, ("mine",))
    assert read_tree(tmp_path / "home") == read_tree(there)


def test_only_some_files(connection: SshConnection, there: Path, tmp_path: Path) -> None:
    """Single files can be asked for; those that are not there are left out."""
    options = SyncOptions(only=("one", "a/small", "absent"), python=sys.executable)
    pull(connection, f"qft/{there.name}", tmp_path / "home", options=options)

    assert sorted(read_tree(tmp_path / "home")) == ["a/small", "one"]


def test_nothing_there_to_pull(connection: SshConnection, tmp_path: Path) -> None:
    """A directory that the machine does not have is an error, and nothing is made here."""
    with pytest.raises(RemoteError, match="there is no directory"):
        pull(connection, "qft/nowhere", tmp_path / "home")

    assert not (tmp_path / "home").exists()


def test_growing_file_is_pulled_as_it_was(
    connection: SshConnection, there: Path, tmp_path: Path
) -> None:
    """A log that grows while it is read arrives as it was when it was listed."""
    before = (there / "big").read_bytes()

    def grow(_: Progress) -> None:
        with (there / "big").open("ab") as file:
            file.write(b"more")

    pull(connection, f"qft/{there.name}", tmp_path / "home", on_progress=grow, options=OPTIONS)

    assert (tmp_path / "home" / "big").read_bytes() == before


def test_file_that_vanishes_is_looked_up_again(
    connection: SshConnection, there: Path, tmp_path: Path
) -> None:
    """A file removed while the tree is read, as a rotated checkpoint is, is simply not pulled."""

    def remove(_: Progress) -> None:
        (there / "big").unlink(missing_ok=True)
        (there / "a" / "small").unlink(missing_ok=True)

    pull(connection, f"qft/{there.name}", tmp_path / "home", on_progress=remove, options=OPTIONS)

    assert sorted(read_tree(tmp_path / "home")) == ["a/b/c/deep", "empty", "one"]


def test_file_that_never_rests(connection: SshConnection, there: Path, tmp_path: Path) -> None:
    """A file that is rewritten during every attempt is `Damaged`, and the old one here stays."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "big").write_bytes(b"old")
    count = 0

    def rewrite(_: Progress) -> None:
        nonlocal count
        count += 1
        (there / "big").write_bytes(bytes([count % 256]) * 3_000_001)

    with pytest.raises(Damaged, match="big did not arrive as announced, 3 times"):
        pull(connection, f"qft/{there.name}", home, on_progress=rewrite, options=OPTIONS)

    assert (home / "big").read_bytes() == b"old"


def test_source_written_during_a_push(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """A file changed while it is pushed is sent again; one that always changes is `Damaged`."""
    tree = make_tree(tmp_path / "tree")
    contents = iter([b"x" * 3_000_001, b"y" * 3_000_001])

    def change(_: Progress) -> None:
        (tree / "big").write_bytes(next(contents, b"final"))

    push(connection, tree, f"qft/{tmp_path.name}", on_progress=change, options=OPTIONS)
    assert read_tree(server.home / "qft" / tmp_path.name)["big"] == b"final"

    (tree / "big").write_bytes(b"restless")
    count = 0

    def always(_: Progress) -> None:
        nonlocal count
        count += 1
        (tree / "big").write_bytes(bytes([count % 256]) * 3_000_001)

    with pytest.raises(Damaged):
        push(connection, tree, f"qft/{tmp_path.name}", on_progress=always, options=OPTIONS)
    assert read_tree(server.home / "qft" / tmp_path.name)["big"] == b"final"


def digest(data: bytes) -> str:
    """Hash for a manifest."""
    return hashlib.sha256(data).hexdigest()


GOOD = [4, digest(b"evil")]
ATTACKS: dict[str, Any] = {
    "absolute": {"/qft-evil": GOOD},
    "parent": {"../evil": GOOD},
    "parent inside": {"a/../../evil": GOOD},
    "current": {"./evil": GOOD},
    "empty part": {"a//evil": GOOD},
    "empty": {"": GOOD},
    "nul": {"a\0b": GOOD},
    "newline": {"a\nb": GOOD},
    "escape sequence": {"a\x1b[2Jb": GOOD},
    "backslash": {"..\\evil": GOOD},
    "lone surrogate": {"a\ud800": GOOD},
    "case": {"Model": GOOD, "model": GOOD},
    "unicode form": {"caf\u00e9": GOOD, "cafe\u0301": GOOD},
    "file is directory": {"a": GOOD, "a/b": GOOD},
    "partial files": {".qft-partial/x": GOOD},
    "partial files, other case": {"a/.QFT-Partial": GOOD},
    "10 TB": {"evil": [10_000_000_000_000, GOOD[1]]},
    "negative": {"evil": [-1, GOOD[1]]},
    "float size": {"evil": [4.0, GOOD[1]]},
    "bool size": {"evil": [True, GOOD[1]]},
    "text size": {"evil": ["4", GOOD[1]]},
    "short checksum": {"evil": [4, "abc"]},
    "no checksum": {"evil": [4]},
    "long name": {"a" * 300: GOOD},
    "long path": {"/".join(["aaaaaaaaa"] * 200): GOOD},
    "too many": {f"f{number}": GOOD for number in range(101)},
    "too much": {f"f{number}": [900_000, GOOD[1]] for number in range(10)},
    "a list": [["evil", *GOOD]],
    "nothing": None,
}


def lie(
    connection: SshConnection,
    server: ssh_servers.RunningServer,
    answer: dict[str, Any],
    packed: bytes = b"",
) -> None:
    """Have the machine answer with lies: replace our script there, as whoever owns it can."""
    connection.run("true")
    script = Path(tree_ops.__file__).read_bytes()
    target = server.home / "qft" / f"tree_ops-{digest(script)[:8]}.py"
    target.parent.mkdir(exist_ok=True)
    target.write_text(
        "import json, sys\n"
        "sys.stdin.buffer.read()\n"
        f"sys.stdout.write({tree_ops.ANSWER_MARK!r}); sys.stdout.flush()\n"
        f"if sys.argv[1] == 'pack': sys.stdout.buffer.write({packed!r})\n"
        f"else: sys.stdout.write({json.dumps(json.dumps(answer))})\n"
    )


@pytest.fixture
def lying(
    connection: SshConnection, server: ssh_servers.RunningServer
) -> Iterator[Callable[..., None]]:
    """Make the machine lie for one test."""

    def answer_with(answer: dict[str, Any], packed: bytes = b"") -> None:
        lie(connection, server, answer, packed)

    yield answer_with
    for script in (server.home / "qft").glob("tree_ops-*.py"):
        script.unlink()


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(
    lying: Callable[..., None], connection: SshConnection, tmp_path: Path, name: str
) -> None:
    """A list of files that could do harm is refused before anything is written."""
    lying({"exists": True, "files": ATTACKS[name], "irregular": []}, b"evil" * 1000)
    limits = Limits(files_max=100, file_bytes_max=1_000_000, total_bytes_max=8_000_000)
    with pytest.raises(Untrusted):
        pull(connection, "qft/x", tmp_path / "home", limits=limits, options=OPTIONS)

    assert list(tmp_path.iterdir()) == []
    assert not Path("/qft-evil").exists()


def test_symlink_there_is_refused(connection: SshConnection, there: Path, tmp_path: Path) -> None:
    """A link in the machine's tree is refused, wherever it points."""
    (there / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(Untrusted, match=r"'passwd', which is no regular file \(link\)"):
        pull(connection, f"qft/{there.name}", tmp_path / "home", options=OPTIONS)

    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("packed", [b"", b"evi", b"evil!", b"e" * 5_000_000])
def test_wrong_amount_of_data(
    lying: Callable[..., None], connection: SshConnection, tmp_path: Path, packed: bytes
) -> None:
    """A machine that sends less or more than it announced is not believed."""
    lying({"exists": True, "files": {"x": GOOD}, "irregular": []}, packed)
    with pytest.raises(Untrusted):
        pull(connection, "qft/x", tmp_path / "home", options=OPTIONS)

    assert read_tree(tmp_path / "home") == {}


def test_wrong_data(lying: Callable[..., None], connection: SshConnection, tmp_path: Path) -> None:
    """Bytes that differ from their checksum never become a file."""
    lying({"exists": True, "files": {"x": GOOD}, "irregular": []}, b"good")
    with pytest.raises(Damaged):
        pull(connection, "qft/x", tmp_path / "home", options=OPTIONS)

    assert not (tmp_path / "home" / "x").exists()


def test_more_than_was_requested(
    lying: Callable[..., None], connection: SshConnection, tmp_path: Path
) -> None:
    """A machine that offers a file that was not asked for is not believed."""
    lying({"exists": True, "files": {".bashrc": GOOD}, "irregular": []}, b"evil")
    options = SyncOptions(only=("status.json",), python=sys.executable)
    with pytest.raises(Untrusted, match="not asked for"):
        pull(connection, "qft/x", tmp_path / "home", options=options)


@pytest.mark.parametrize("answer", ["[]", "nonsense", "[" * 100_000, "{}"])
def test_answer_that_is_none(
    lying: Callable[..., None],
    connection: SshConnection,
    server: ssh_servers.RunningServer,
    tmp_path: Path,
    answer: str,
) -> None:
    """An answer that is no answer is refused, and does not break anything."""
    lying({})
    script = next((server.home / "qft").glob("tree_ops-*.py"))
    output = tree_ops.ANSWER_MARK + answer
    script.write_text(f"import sys\nsys.stdin.buffer.read()\nsys.stdout.write({output!r})\n")
    with pytest.raises(RemoteError):
        pull(connection, "qft/x", tmp_path / "home", options=OPTIONS)

    assert list(tmp_path.iterdir()) == []


def test_no_write_through_a_symlink_here(
    connection: SshConnection, there: Path, tmp_path: Path
) -> None:
    """A link in the target directory is not followed; a link at a file's place is replaced."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious")
    home = tmp_path / "home"
    home.mkdir()
    (home / "a").symlink_to(outside)
    with pytest.raises(RemoteError, match="a link on the way"):
        pull(connection, f"qft/{there.name}", home, options=OPTIONS)
    (home / "a").unlink()
    (home / "one").symlink_to(outside / "victim")
    pull(connection, f"qft/{there.name}", home, options=OPTIONS)

    assert (outside / "victim").read_text() == "precious"
    assert read_tree(home) == read_tree(there)
