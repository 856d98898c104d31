"""Texts that a stranger may send where JSON is expected, for property tests."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("QFT_FUZZ_EXAMPLES", "30"))
"""How many texts a property is tried with; `QFT_FUZZ_EXAMPLES=10000` is a thorough run."""
FUZZED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 1000,  # the suite tries the same ones everywhere
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([True, False, 0, -1, 2**31, 2**53, 2**63, 10**30, 1e308, -0.0]),
)
texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["\ud800", "\x1b[2J", "a\nb", "\u202e", "../x", "9" * 40, "NaN", "\0", ""]),
)
leaves = st.one_of(st.none(), numbers, texts)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
oddities = st.sampled_from(
    [
        b"",
        b" \n",
        b"null",
        b"[]",
        b'""',
        b"{",
        b'{"a":1,"a":2}',
        b'{"step":' + b"9" * 5000 + b"}",
        b'{"step":-' + b"9" * 5000 + b"}",
        b'{"step":NaN,"loss":Infinity,"eta_s":-Infinity}',
        b'{"loss":1e999}',
        b'{"a":' * 300 + b"1" + b"}" * 300,
        b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b"[" * 5000,
        b'"' + b'\\"' * 20_000,
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf{}",
        b'{"message":"\xff"}',
        b'{"message":"\\ud83d"}',
    ]
)


def changed(valid: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A valid document of which one value, at any depth, was replaced, left out or added."""
    places = list(_places(valid))

    @st.composite
    def change(draw: st.DrawFn) -> bytes:
        document = copy.deepcopy(valid)
        for _ in range(draw(st.integers(1, 3))):
            *way, last = draw(st.sampled_from(places))
            inner: Any = document
            for key in way:
                inner = inner[key] if _has(inner, key) else None
            if _has(inner, last):
                if isinstance(inner, dict) and draw(st.booleans()) and draw(st.booleans()):
                    del inner[last]
                else:
                    inner[last] = draw(trees)
        return spelt(document)

    return change()


def documents(valid: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Whatever may stand where `valid` is expected: changed, cut, foreign, or no JSON at all."""
    whole = spelt(valid)
    cut = st.integers(0, len(whole)).map(lambda at: whole[:at])
    return st.one_of(changed(valid), changed(valid), trees.map(spelt), oddities, cut, st.binary())


def spelt(value: object) -> bytes:
    """Spell any tree as JSON; NaN and lone surrogates as Python writes them."""
    return json.dumps(value).encode()


def _places(value: Any, way: tuple[Any, ...] = ()) -> Any:
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield (*way, key)
        if isinstance(value[key], dict | list):
            yield from _places(value[key], (*way, key))


def _has(inner: Any, key: Any) -> bool:
    if isinstance(inner, dict):
        return key in inner
    return isinstance(inner, list) and isinstance(key, int) and key < len(inner)
