"""Makes the jinja sandbox that chat templates run in: transformers' own set-up, with limits.

Imported only where a template is rendered: jinja2 comes with transformers, and the laptop that
checks rows without them has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
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

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the result of an operator unless it would be too large."""
        self.limits.step()
        if operator == "+" and type(left) is type(right) is str:  # most of what templates do
            self.limits.size(len(left) + len(right))
            return left + right
        if operator == "*":
            for times, value in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(value, str | list | tuple):
                    self.limits.size(times * len(value))
        elif operator == "**" and isinstance(right, int | float) and abs(right) > EXPONENT_MAX:
            self.limits.size(SIZE_MAX + 1)
        elif operator == "%" and isinstance(left, str):
            self._check_widths(left, (right,))
        found = super().call_binop(context, operator, left, right)
        if isinstance(found, str | list | tuple):
            self.limits.size(len(found))
        elif isinstance(found, int):
            self.limits.size(found.bit_length() // 8)
        return found

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method of a template unless its result would be too large."""
        self.limits.step()
        owner = getattr(called, "__self__", None)
        if isinstance(owner, str):
            self._check_widths(owner, args)
            if getattr(called, "__name__", "") in {"replace", "join"}:
                self.limits.size(_length_after(called.__name__, owner, args))
        found = super().call(context, called, *args, **kwargs)
        if isinstance(found, str | list | tuple):
            self.limits.size(len(found))
        return found

    def _check_widths(self, form: str, args: tuple[Any, ...]) -> None:
        """Refuse a width of millions in a format, or as an argument of a method of texts."""
        if WIDTH.search(form) or any(isinstance(one, int) and one > SIZE_MAX for one in args):
            self.limits.size(SIZE_MAX + 1)


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

    environment.filters |= {"tojson": to_json, COUNTED: counted, BOUNDED: bounded}
    for name in ("center", "indent", "wordwrap", "format", "replace", "batch", "slice", "join"):
        environment.filters[name] = _limited(environment, environment.filters[name])
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


def to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - the signature that templates know
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Return JSON as chat templates expect it: not escaped for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace must not hold {name!r}")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno)
    if node.environment is not None:
        made.set_environment(node.environment)
    return made


def _limited(environment: LimitedSandbox, applied: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that refuses widths of millions, and counts as a call."""
    from functools import wraps

    @wraps(applied)
    def limited(*args: Any, **kwargs: Any) -> Any:
        environment.limits.step()
        numbers = [one for one in (*args, *kwargs.values()) if isinstance(one, int)]
        environment.limits.size(max(numbers, default=0))
        for one in args:
            if isinstance(one, str) and applied.__name__ == "do_format" and WIDTH.search(one):
                environment.limits.size(SIZE_MAX + 1)
        return applied(*args, **kwargs)

    return limited


def _length_after(name: str, owner: str, args: tuple[Any, ...]) -> int:
    """Return an upper bound of the length that `replace` or `join` would make."""
    if name == "join" and args and isinstance(args[0], list | tuple):
        return sum(len(str(one)) for one in args[0]) + len(owner) * len(args[0])
    if name == "replace" and len(args) > 1 and all(isinstance(one, str) for one in args[:2]):
        return len(owner) + owner.count(args[0]) * len(args[1])
    return 0


def _raise(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)
