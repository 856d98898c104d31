"""Reads a `run.yaml` into plain values; whatever YAML makes of them, the rest can still be checked.

What YAML reads as another thing than its writer meant (a date, octal, base 60), or cannot read at
all, becomes a `Misread` in its place, so that it is told together with every other fault.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.ui.errors import UsageError
from remote.errors import shorten

if TYPE_CHECKING:
    import yaml

FILE_BYTES_MAX = 1 << 20
DEPTH_MAX = 32
"""How deep tables and lists may be nested; a run.yaml needs four."""
VALUES_MAX = 100_000
"""How many values a file may hold once its anchors are followed."""
INT_MAX = 2**63 - 1
SHOWN_MAX = 60
HALVES = re.compile("[\ud800-\udfff]")
TAG = "tag:yaml.org,2002:"
START_ONE = "`qft init` writes a run.yaml to start from"
DATES = {("data", "day")}
"""Where a date is meant, so that what YAML reads as one needs no quotes."""
QUOTE = "if the word itself is meant, put it in quotes"
COMMA = "a number has a point for its decimals (`0.20`): a comma begins the next key"


@dataclass(frozen=True)
class Misread:
    """A value that YAML cannot read, or reads as something that nobody means in a `run.yaml`."""

    why: str


@dataclass(kw_only=True)
class Content:
    """What a file holds, and what is wrong with its keys."""

    tables: dict[str, Any]
    faults: list[str] = field(default_factory=list)


def read_tables(path: Path) -> Content:
    """Read a `run.yaml`; raises UsageError if it is no file, no UTF-8, no YAML, or no tables."""
    import yaml

    text = _text(path)
    try:
        loader = _loader_class()(text)
        loader.name = str(path)
        node = loader.get_single_node()
        if node is None:
            raise UsageError(f"`{path}` is empty", hint=START_ONE)
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"`{path}` holds no tables", hint=START_ONE)
        _demand_bounded(node)
        reading = _Reading(loader)
        return Content(tables=reading.table(node, ()), faults=reading.faults)
    # Besides its own errors the library lets through what Python says of `"\\U00110000"`.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        lines = [shorten(line) for line in str(error).splitlines()]
        raise UsageError(f"`{path}` is not YAML", problems=lines) from error


def _text(path: Path) -> str:
    """Read the file as text, whatever was put in its place."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"`{path}` is a directory", hint=f"try `{path}/run.yaml`")
        if not stat.S_ISREG(mode):  # opening a pipe would wait, reading a device never ends
            raise UsageError(f"`{path}` is a pipe or a device, not a file", hint=START_ONE)
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no `{path}`", hint=START_ONE) from None
    except OSError as error:
        raise UsageError(
            f"`{shorten(str(path))}` cannot be read: {error.strerror}",
            hint="mend its rights or its name",
        ) from error
    if len(data) > FILE_BYTES_MAX:
        raise UsageError(
            f"`{path}` has more than {FILE_BYTES_MAX >> 20} MiB: that is no run.yaml",
            hint="rows belong into a file of their own, named in `data.train`",
        )
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\0" in data:
        raise UsageError(
            f"`{path}` is UTF-16 text or no text at all", hint="save it as UTF-8 in your editor"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"`{path}` is not UTF-8 text: line {line} has the byte 0x{data[error.start]:02x}",
            hint="save it as UTF-8 in your editor",
        ) from error


def _loader_class() -> type[yaml.SafeLoader]:
    """Make the loader that does not follow a file deeper than any stack allows."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Composes nodes; values are made of them in `_Reading`."""

        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            """Compose one node, if it is not nested too deep."""
            self.depth += 1
            if self.depth > DEPTH_MAX:
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    f"tables and lists are nested more than {DEPTH_MAX} deep",
                    parent.start_mark if parent else None,
                )
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

    return Loader


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield what lies directly in a table or list."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _demand_bounded(root: yaml.Node) -> None:
    """Refuse what anchors make endless or huge: a few lines can stand for billions of values."""
    import yaml

    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size_of(node: yaml.Node, depth: int) -> int:
        if id(node) in above or depth > DEPTH_MAX:
            message = "an anchor that holds itself, or leads too deep"
            raise yaml.composer.ComposerError(None, None, message, node.start_mark)
        if id(node) not in sizes:
            above.add(id(node))
            sizes[id(node)] = 1 + sum(size_of(child, depth + 1) for child in _children(node))
            above.remove(id(node))
        return sizes[id(node)]

    if size_of(root, 0) > VALUES_MAX:
        message = f"more than {VALUES_MAX:,} values, with its anchors followed"
        raise yaml.composer.ComposerError(None, None, message, root.start_mark)


def _is_empty(value: Any) -> bool:
    """Tell whether nothing stands behind a key, as behind the 20 of `{max_price: 0,20}`."""
    return getattr(value, "value", None) == ""


class _Reading:
    """Makes plain values of nodes, and gathers what is wrong with keys."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._seen: set[int] = set()
        self.faults: list[str] = []

    def table(self, node: yaml.MappingNode, where: tuple[str, ...]) -> dict[str, Any]:
        """Make a table; a key that is no word, or comes twice, is a fault and is left out."""
        import yaml

        if id(node) not in self._seen:  # an anchor's table comes again, then with all it merged
            self._seen.add(id(node))
            self._demand_single_keys(node, where)
        self._loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = self._value(key, where) if isinstance(key, yaml.ScalarNode) else None
            if isinstance(name, str):
                found[name] = self._value(value, (*where, name))
                continue
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or table"
            place = ".".join(where) or "config"
            remedy = COMMA if isinstance(name, int) and _is_empty(value) else QUOTE
            self.faults.append(f"{place}: the key `{_short(shown)}` is no word; {remedy}")
        return found

    def _demand_single_keys(self, node: yaml.MappingNode, where: tuple[str, ...]) -> None:
        """Tell the keys that are given twice: the last one would win, unsaid."""
        import yaml

        lines: dict[str, list[int]] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines.setdefault(key.value, []).append(key.start_mark.line + 1)
        for name, found in lines.items():
            if len(found) > 1:
                place = ".".join((*where, _short(name)))
                there = ", ".join(str(line) for line in found[:5])
                self.faults.append(f"{place}: given {len(found)} times (lines {there}): keep one")

    def _value(self, node: yaml.Node, where: tuple[str, ...]) -> Any:
        """Make the value of any node."""
        import yaml

        kind = node.tag.removeprefix(TAG)
        if kind == "timestamp" and where in DATES:
            return str(node.value)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.table(node, where)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._value(child, (*where, str(i))) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(kind, node)
        return Misread(f"values of the type `{_short(kind)}` are not read here")

    def _scalar(self, kind: str, node: yaml.ScalarNode) -> Any:
        """Make a number, a word, true, false or nothing."""
        text = str(node.value)
        shown = _short(text)
        if HALVES.search(text):
            return Misread("it holds half a character: `\\uD800` to `\\uDFFF` stand for none alone")
        if kind in {"str", "null"}:
            return text if kind == "str" else None
        if kind == "timestamp":
            return Misread(f"YAML reads `{shown}` as a date; {QUOTE}")
        if kind not in {"int", "float", "bool"}:
            return Misread(f"values of the type `{_short(kind)}` are not read here")
        if kind != "bool" and ":" in text:
            return Misread(f"YAML reads `{shown}` as a number to the base 60; {QUOTE}")
        digits = text.replace("_", "").lstrip("+-")
        if kind == "int" and len(digits) > 1 and digits[0] == "0" and digits.isdigit():
            return Misread(f"YAML reads `{shown}` as octal: leave out the 0, or {QUOTE}")
        try:
            made = {
                "int": self._loader.construct_yaml_int,
                "float": self._loader.construct_yaml_float,
                "bool": self._loader.construct_yaml_bool,
            }[kind](node)
        except (ValueError, KeyError, IndexError, OverflowError):
            meant = "a truth value" if kind == "bool" else "a number"
            return Misread(f"YAML takes `{shown}` for {meant}, and it is none; {QUOTE}")
        if kind == "int" and abs(made) > INT_MAX:
            return Misread(f"the number `{shown}` is too large")
        if kind == "float" and not abs(made) < float("inf"):
            return Misread(f"`{shown}` is no finite number")
        return made


def _short(text: str) -> str:
    """Cut a value to what a message can show."""
    return shorten(text, SHOWN_MAX)
