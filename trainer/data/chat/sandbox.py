"""Makes the jinja sandbox that chat templates run in: transformers' own set-up, with limits.

Imported only where a template is rendered: jinja2 comes with transformers, and the laptop that
checks rows without them has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from trainer.data.chat.limits import SIZE_MAX, Limits

COUNTED, BOUNDED = "counted by limits", "bounded by limits"  # no template can name these filters
WIDTH = re.compile(r"\d{7,}")
EXPONENT_MAX = 64
WIDTH_MAX = 1_000_000  # that a filter may be asked for
GROWING = frozenset({"batch", "center", "format", "indent", "join", "replace", "slice", "wordwrap"})
"""Filters whose result can be larger than what they are given."""


class Generation(Extension):
    """Takes `{% generation %}`, which marks what is learnt, as what stands between."""

    tags = {"generation"}  # noqa: RUF012 - jinja reads it from the class

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the statements inside, in a scope of their own as transformers has them."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class LimitedSandbox(ImmutableSandboxedEnvironment):
    """Counts calls, and refuses to make texts or lists that are too large."""

    limits: Limits
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all(nodes.For):
            node.iter = _filtered(node.iter, COUNTED)
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [_filtered(one, BOUNDED) for one in joined.nodes]
        return tree

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a block or a macro has written."""
        written = list(pieces)
        self.limits.size(sum(map(len, written)))
        return "".join(written)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the result of an operator unless it would be too large."""
        self.limits.step()
        if operator == "+" and type(left) is type(right) is str:  # most of what templates do
            self.limits.size(len(left) + len(right))
            return left + right
        if operator == "*":
            for times, value in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(value, Sequence):
                    self.limits.size(times * len(value))
        is_too_high = (
            operator == "**" and isinstance(right, int | float) and abs(right) > EXPONENT_MAX
        )
        if is_too_high or (operator == "%" and isinstance(left, str) and WIDTH.search(left)):
            self.limits.size(SIZE_MAX + 1)
        return self._within(super().call_binop(context, operator, left, right))

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method of a template unless its result would be too large."""
        self.limits.step()
        owner = getattr(called, "__self__", None)
        if isinstance(owner, str):
            self._check_method(getattr(called, "__name__", ""), owner, args)
        return self._within(super().call(context, called, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandbox's own `format` of a text, unless it asks for a width of millions."""
        if WIDTH.search(str(getattr(value, "__self__", ""))) and value.__name__.startswith(
            "format"
        ):
            self.limits.size(SIZE_MAX + 1)
        return super().wrap_str_format(value)

    def _check_method(self, name: str, owner: str, args: tuple[Any, ...]) -> None:
        """Refuse a method of texts whose result would be too large."""
        numbers = [one for one in args if isinstance(one, int)]
        width = max(numbers, default=0)
        self.limits.size(width * (len(owner) + 1) if name == "expandtabs" else width)
        if name == "replace" and len(args) > 1:
            self.limits.size(_replaced(owner, args[0], args[1]))
        elif name == "join" and args:
            self.limits.size(_joined(args[0], owner))

    def _within(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple):
            self.limits.size(len(value))
        elif isinstance(value, int):
            self.limits.size(value.bit_length() // 8)
        return value


def make_environment(
    limits: Limits, *, counted: Callable[[Any], Any], strftime_now: Callable[[str], str]
) -> jinja2.Environment:
    """Return the sandbox, with what chat templates expect in it."""
    environment = LimitedSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], optimized=False
    )
    environment.limits = limits

    def bounded(value: Any) -> Any:
        limits.step()
        if isinstance(value, str):
            limits.size(2 * len(value))
        return value

    for name, applied in list(environment.filters.items()):
        environment.filters[name] = _limited(environment, name, applied)
    environment.filters |= {
        "tojson": partial(_to_json, limits),
        COUNTED: counted,
        BOUNDED: bounded,
    }
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": strftime_now,
        "dict": PlainDict(),
        "namespace": PlainNamespace,
    }
    environment.globals.pop("lipsum", None)  # its paragraphs have no limit, and no use
    return environment


class PlainDict:
    """Makes dictionaries, and gives nothing of the class `dict` away."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Return a new dictionary."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return a dictionary of keys that share a value."""
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """A namespace that takes no name with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name in it
        self, *values = args
        given = dict(*values, **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _to_json(  # noqa: PLR0913, PLR0917 - the signature that templates know
    limits: Limits,
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Return JSON as chat templates expect it: not escaped for HTML."""
    written = sum(_sizes(limits, value))
    limits.size(written * (indent if isinstance(indent, int) else 1))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _sizes(limits: Limits, value: Any) -> Iterator[int]:
    """Yield about how many characters each part of a value takes; one list may stand in many."""
    limits.step()
    yield len(value) if isinstance(value, str) else 1
    if isinstance(value, Mapping):
        value = [item for pair in value.items() for item in pair]
    if isinstance(value, list | tuple):
        for item in value:
            yield from _sizes(limits, item)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace must not hold {name!r}")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno)
    if node.environment is not None:
        made.set_environment(node.environment)
    return made


def _limited(
    environment: LimitedSandbox, name: str, applied: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a filter that counts as a call, and refuses what would be too large."""
    limits = environment.limits

    @wraps(applied)
    def counted(*args: Any, **kwargs: Any) -> Any:
        limits.step()
        found = applied(*args, **kwargs)
        if isinstance(found, str | list | tuple):
            limits.size(len(found))
        return found

    @wraps(applied)
    def limited(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        texts = [one for one in given if isinstance(one, str)]
        width = max((one for one in given if isinstance(one, int)), default=0)
        if width > WIDTH_MAX or (name == "format" and texts and WIDTH.search(texts[0])):
            limits.size(SIZE_MAX + 1)
        if name == "indent" and texts:
            limits.size((width + 1) * (texts[0].count("\n") + 1))
        if name == "replace" and len(texts) > 2:
            limits.size(_replaced(*texts[:3]))
        if name == "join":
            limits.size(max(_joined(one, texts[-1] if texts else "") for one in given))
        return counted(*args, **kwargs)

    return limited if name in GROWING else counted


def _replaced(text: str, old: object, new: object) -> int:
    """Return the length of a text after a replacement, at most."""
    if not isinstance(old, str) or not isinstance(new, str):
        return 0
    return len(text) + text.count(old) * len(new)


def _joined(values: object, between: str) -> int:
    """Return the length that a list of texts has as one text, at least."""
    if not isinstance(values, list | tuple):
        return 0
    return sum(len(one) + len(between) for one in values if isinstance(one, str))


def _raise(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)
