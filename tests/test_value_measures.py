"""Numbers and JSON in answers are read as they are meant, and no text of a model is an error."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainer.eval_tables.text import TextEvalTable
from trainer.scoring.answer_figures import compare_answers
from trainer.scoring.measures.all_measures import make_measures
from trainer.scoring.measures.json_fields import JsonFields
from trainer.scoring.measures.json_text import DEPTH_MAX, canonical, read_json
from trainer.scoring.measures.measure import AnswerScore, Measure
from trainer.scoring.measures.number_text import Number, last_number
from trainer.scoring.measures.reference_problems import reference_problems


def measure(name: str, **fields: object) -> Measure:
    """A measure as a table `eval` with these fields makes it."""
    return make_measures(TextEvalTable.model_validate({"measures": [name], **fields}), ())[name]


def compare_json(answer: str, right: str, **fields: object) -> AnswerScore:
    """The score of an answer in JSON."""
    return measure("json", **fields).compare(answer, right)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 42.", "42"),
        ("#### 1,234,567.50", "1234567.50"),
        ("It is -5", "-5"),
        ("It is \u22125 °C", "-5"),
        ("5-3", "3"),
        ("- 5 apples", "5"),
        ("$1,000", "1000"),
        ("-$20", "-20"),
        ("costs 3,5 euros", "3.5"),
        ("costs 1.234,56 euros", "1234.56"),
        ("1.234.567", "1234567"),
        ("3,500", "3500"),
        ("12 345", "345"),
        ("12\u00a0345", "12345"),
        ("12'345.5", "12345.5"),
        ("1_000_000", "1000000"),
        ("first 1, then 2", "2"),
        ("1,2,3", "3"),
        ("version 1.2.3", "3"),
        (".5", "0.5"),
        ("6.02e23", "6.02e23"),
        ("2.5 \u00d7 10^-3", "0.0025"),
        (r"\boxed{2 \times 10^{4}}", "20000"),
        ("1e5 m", "100000"),
        ("3/4", "0.75"),
        ("-1/8", "-0.125"),
        ("1/0", "0"),
        (r"so $-\frac{1}{4}$.", "-0.25"),
        ("on 30/11/2026", "2026"),
        ("x=7)", "7"),
        ("+8", "8"),
        ("\u0663\u066b\u0665", "3.5"),
        ("\uff11\uff12", "12"),
        ("007", "7"),
        ("1e99999", "99999"),
    ],
)
def test_the_last_number_is_read_as_people_write_it(text: str, value: str) -> None:
    """Signs, points, separators, exponents and fractions, in the digits of any script."""
    found = last_number(text)

    assert found is not None
    assert found.value == Decimal(value)


@pytest.mark.parametrize("text", ["", "none", "twelve", "½", "-", "%", "1" * 5000])
def test_a_text_without_a_number_has_none(text: str) -> None:
    """Words for numbers are none, nor are thousands of digits in a row."""
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("answer", "right", "tolerance", "score"),
    [
        ("about 42", "42", {}, 1),
        ("42.0", "42", {}, 1),
        ("42.1", "42", {}, 0),
        ("42.1", "42", {"absolute": 0.1}, 1),
        ("0.3", "0.2", {"absolute": 0.1}, 1),
        ("42.2", "42", {"absolute": 0.1}, 0),
        ("99", "100", {"relative": 0.01}, 1),
        ("98.9", "100", {"relative": 0.01}, 0),
        ("-99", "100", {"relative": 0.01}, 0),
        ("50 %", "50%", {}, 1),
        ("50%", "0.5", {}, 1),
        ("50", "50%", {}, 1),
        ("0.5", "50%", {}, 1),
        ("5%", "50%", {}, 0),
        ("no idea", "42", {}, 0),
        ("none", "none", {}, 1),
        ("7", "none", {}, 0),
        ("1e300", "1e-300", {"relative": 1.0}, 0),
        ("3.50", "35", {}, 0),
        ("-5", "5", {}, 0),
    ],
)
def test_numbers_are_right_within_the_tolerance(
    answer: str, right: str, tolerance: dict[str, float], score: float
) -> None:
    """The larger of the two bounds counts, decimally exact; a percentage is also its share."""
    assert measure("number", tolerance=tolerance).compare(answer, right).score == score


def test_an_answer_without_a_number_is_counted() -> None:
    """It is wrong, and has a note of its own."""
    assert measure("number").compare("I do not know", "42").notes == ("unreadable",)


@settings(deadline=None)
@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12
    )
)
def test_every_number_is_read_back(value: Decimal) -> None:
    """However a program writes it: plain, with separators, with an exponent, as a percentage."""
    for text in (f"{value:f}", f"{value:,f}", f"so it is {value:e}."):
        assert last_number(text) == Number(value=value)
    assert last_number(f"{value:,f}%") == Number(value=value, percent=True)


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789.,-+eE%'/$x\u00d7^10 \u00a0\u2212٣", max_size=40) | st.text(max_size=40))
def test_no_text_breaks_the_reader_of_numbers(text: str) -> None:
    """Any text has a finite number or none, and is right beside itself."""
    found = last_number(text)

    assert found is None or found.value.is_finite()
    assert measure("number").compare(text, text).score == 1


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(values)
def test_a_value_is_right_beside_itself(value: Any) -> None:
    """However it is indented, fenced or ordered, a value equals itself in every figure."""
    text = json.dumps(value)
    turned = json.dumps(_turned(value), indent=2)
    for unordered in ("ordered", "unordered"):
        found = compare_json(f"```json\n{turned}\n```", text, lists=unordered)
        assert found.score == 1
        assert found.statistics[3] == 1


def _turned(value: Any) -> Any:
    """The same value with the keys of its objects in the reverse order."""
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(value)}
    return [_turned(one) for one in value] if isinstance(value, list) else value


@settings(max_examples=200, deadline=None)
@given(st.text('{}[]",:0123456789.eE-+truefalsn \\u', max_size=40) | values.map(json.dumps))
def test_json_is_read_exactly_where_python_reads_it(text: str) -> None:
    """What the standard library refuses has no value; what it reads has the same one."""
    assume(not re.search(r"[eE][-+]?\d{10}", text))  # beyond any number that is compared
    try:
        expected = json.loads(text, parse_constant=lambda _: json.loads("!"), parse_int=float)
    except ValueError:
        assert read_json(text) is None
    else:
        found = read_json(text)
        assert found is not None
        assert json.loads(json.dumps(found.value, default=float)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "no", "{", '{"a": 1} trailing', "NaN", "[Infinity]", "-Infinity", "'a'", "{a: 1}",
        "[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 200 + "]" * 200, "\ufeff{}",
        "```json\n{}", "```\n{}\n```\n```\n{}\n```", "1e9999999999999999999999",
        "[" + "1," * 20_000 + "1]",
    ],
)  # fmt: skip
def test_what_is_no_json_is_unreadable(text: str) -> None:
    """It is wrong as a whole, noted, and no error, however deep or long it is."""
    found = compare_json(text, '{"a": 1}')

    assert found.score == 0
    assert found.notes == ("unreadable",)
    assert found.statistics == (0, 0, 1, 0, 0, 1)


def test_huge_numbers_are_read() -> None:
    """Numbers of thousands of digits, which Python's own reader refuses, are compared exactly."""
    digits = "7" * 6000

    assert compare_json(f"[{digits}]", f"[{digits}]").score == 1
    assert compare_json(f"[{digits}8]", f"[{digits}9]").score == 0
    assert compare_json("[1e999999999]", "[1]", tolerance={"relative": 0.5}).score == 0
    assert compare_json("[1.0, 1E1]", "[1, 10]").score == 1


@pytest.mark.parametrize(
    ("answer", "right", "counts"),
    [
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', (1, 2, 2)),
        ('{"a": 1}', '{"a": 1, "b": 3}', (1, 1, 2)),
        ('{"a": 1, "b": 3, "c": 4}', '{"a": 1, "b": 3}', (2, 3, 2)),
        ('{"a": "1"}', '{"a": 1}', (0, 1, 1)),
        ('{"a": true}', '{"a": 1}', (0, 1, 1)),
        ('{"a": null}', '{"a": 0}', (0, 1, 1)),
        ('{"a": {}}', '{"a": []}', (0, 1, 1)),
        ('{"a": "e\\u0301 x"}', '{"a": " é  x "}', (1, 1, 1)),
        ("[1, 2, 3]", "[3, 2, 1]", (1, 3, 3)),
        ('{"a": {"b": [1, {"c": 2}]}}', '{"a": {"b": [1, {"c": 3}]}}', (1, 2, 2)),
        ('"text"', '"text"', (1, 1, 1)),
        ('{"a": 1, "a": 1}', '{"a": 1}', (1, 2, 1)),
        ('{"-1": 1}', "[1]", (0, 1, 1)),
    ],
)
def test_leaves_are_compared_place_by_place(
    answer: str, right: str, counts: tuple[int, int, int]
) -> None:
    """Right leaves, leaves of the answer and of the right one; types and places count."""
    found = compare_json(answer, right)

    assert found.statistics[:3] == counts
    assert found.statistics[3] == float(counts[0] == counts[1] == counts[2])
    assert found.score == pytest.approx(2 * counts[0] / (counts[1] + counts[2]))


def test_a_doubled_key_is_a_mistake() -> None:
    """The last value counts as in every reader, but the answer is not exact, and it is noted."""
    found = compare_json('{"a": 2, "a": 1}', '{"a": 1}')

    assert found.notes == ("doubled_keys",)
    assert found.statistics == (1, 2, 1, 0, 1, 1)


@pytest.mark.parametrize(
    ("answer", "right", "shared"),
    [
        ("[3, 1, 2]", "[1, 2, 3]", 3),
        ("[1, 1, 2]", "[1, 2, 2]", 2),
        ('[{"a": 1}, {"b": 2}]', '[{"b": 2}, {"a": 1}]', 2),
        ("[1.05, 2.0]", "[2.1, 1.0]", 2),
        ("[1.0, 1.0]", "[1.1, 5]", 1),
        ('["x", 1]', '[1, "y"]', 1),
        ("[[1, 2]]", "[[2, 1]]", 0),
    ],
)
def test_lists_may_be_without_order(answer: str, right: str, shared: int) -> None:
    """Entries then count wherever they stand, each once; numbers within the tolerance."""
    found = compare_json(answer, right, lists="unordered", tolerance={"absolute": 0.1})

    assert found.statistics[0] == shared


def test_json_figures_are_over_all_leaves() -> None:
    """Micro precision, recall and F1, shares that are readable and exact, and accuracy by field."""
    pairs = [
        ('{"name": "Ann", "items": [{"price": 3}, {"price": 4}]}',
         '{"name": "Ann", "items": [{"price": 3}, {"price": 5}]}'),
        ('{"name": "Bob"}', '{"name": "Bob", "items": [{"price": 1}]}'),
        ("sorry", '{"name": "Cy"}'),
        ('```json\n{"name": "Di", "extra": 1}\n```', '{"name": "Di"}'),
    ]  # fmt: skip
    compared = compare_answers({"json": measure("json")}, pairs)
    figures = {key: one["value"] for key, one in compared.figures(resamples=1000).items()}
    about = compared.about()["json"]

    assert figures["json_precision"] == pytest.approx(4 / 6)
    assert figures["json_recall"] == pytest.approx(4 / 7)
    assert figures["json"] == pytest.approx(8 / 13)
    assert figures["json_readable"] == 0.75
    assert figures["json_exact"] == 0.0
    assert about["notes"] == {"unreadable": 1}
    assert {key: (one["value"], one["n"]) for key, one in about["fields"].items()} == {
        "name": (0.75, 4),
        "items[].price": (pytest.approx(1 / 3), 3),
    }


def test_names_of_fields_can_be_written() -> None:
    """Half a character in a key, which JSON can spell, does not break the result's file."""
    compared = compare_answers({"json": measure("json")}, [("{}", '{"\\ud800": 1}')])

    assert b"ud800" in json.dumps(compared.about(), ensure_ascii=False).encode()


def test_canonical_texts_are_equal_for_equal_values() -> None:
    """Order of keys, zeros behind the point and ways of writing letters make no difference."""
    assert canonical({"b": Decimal("1.0"), "a": "é"}) == canonical(
        {"a": "e\u0301", "b": Decimal(1)}
    )
    assert canonical(Decimal("1e999999999")) == "1e999999999"
    assert canonical(["1"]) != canonical([Decimal(1)])


@pytest.mark.parametrize(
    ("texts", "measures", "rows"),
    [
        (['{"a": 1}', "[1]"], ["json"], []),
        (['{"a": 1}', "plain"], ["json"], [2]),
        (['{"a": 1, "a": 2}'], ["json"], [1]),
        (["[" * (DEPTH_MAX + 2) + "]" * (DEPTH_MAX + 2)], ["json"], [1]),
        (["none", "7"], ["number"], []),
        (["none", "never"], ["number"], [1]),
        (["none"], ["exact"], []),
    ],
)
def test_right_answers_that_cannot_be_compared_are_named(
    texts: list[str], measures: list[str], rows: list[int]
) -> None:
    """Each that is no JSON, and the first where none has a number."""
    found = reference_problems(list(enumerate(texts, start=1)), measures)

    assert [row for row, _ in found] == rows
    assert all("`eval.measures`" in problem for _, problem in found)


def test_json_fields_need_no_table() -> None:
    """The measure's figures are those of its statistics, whatever the tolerance was."""
    table = TextEvalTable(measures=["json"])

    assert list(JsonFields(tolerance=table.tolerance).figures) == [
        "json", "json_precision", "json_recall", "json_exact", "json_readable",
    ]  # fmt: skip
