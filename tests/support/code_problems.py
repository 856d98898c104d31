"""Problems in the format of DS-1000, written for these tests, with right and wrong answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.code_eval.problems import Problem

FRAME = '''
import copy
{imports}

def generate_test_case(test_case_id):
    test_input = {inputs}[test_case_id - 1]
    expected = solve(copy.deepcopy(test_input))
    return test_input, expected


def solve(data):
    {solution}


def exec_test(result, ans):
    try:
        assert {compare}
        return 1
    except:
        return 0


exec_context = r"""
data = test_input
[insert]
"""


def test_execution(solution: str):
    code = exec_context.replace("[insert]", solution)
    for number in range({cases}):
        test_input, expected = generate_test_case(number + 1)
        environment = {{"test_input": test_input}}
        exec(code, environment)
        assert exec_test(environment["result"], expected)
'''
NO_LOOPS = """

def test_string(solution: str):
    import io
    import tokenize

    words = [one.string for one in tokenize.tokenize(io.BytesIO(solution.encode()).readline)]
    assert "for" not in words and "while" not in words
"""


def total() -> str:
    """A program that wants the sum of a list, with no loop in the text of the answer."""
    program = FRAME.format(
        imports="import statistics",
        inputs="[[1, 2, 3], [10, -4]]",
        solution="return sum(data)",
        compare="result == ans",
        cases=2,
    )
    return program + NO_LOOPS


def indented() -> str:
    """A program that inserts the answer into the body of a function: its first spaces matter."""
    program = FRAME.format(
        imports="",
        inputs="[['b', 'a'], []]",
        solution="return sorted(data)",
        compare="result == ans",
        cases=2,
    )
    inserted = "data = test_input\n[insert]\n"
    return program.replace(
        inserted,
        "def ordered(data):\n[insert]\n    return result\n\nresult = ordered(test_input)\n",
    )


def array() -> str:
    """A program that wants the column means of an array, compared by the library itself."""
    return FRAME.format(
        imports="import numpy as np",
        inputs="[np.arange(6.0).reshape(3, 2)]",
        solution="return data.mean(axis=0)",
        compare="np.testing.assert_allclose(result, ans) is None",
        cases=1,
    )


def missing() -> str:
    """A program that imports a library which no machine has."""
    return FRAME.format(
        imports="import a_library_that_is_nowhere",
        inputs="[1]",
        solution="return data",
        compare="result == ans",
        cases=1,
    )


def problem(tests: str, row: int = 1, *, library: str = "Lists", reference: str = "") -> Problem:
    """Return a problem with this test program."""
    return Problem(row=row, library=library, tests=tests, reference=reference)


ROWS: list[dict[str, Any]] = [
    {"problem": "sum of data", "code": "result = sum(data)", "library": "Lists", "group": "a",
     "code_context": total()},
    {"problem": "sort data", "code": "    result = sorted(data)", "library": "Lists", "group": "b",
     "code_context": indented()},
    {"problem": "anything", "code": "result = data", "library": "Nowhere", "group": "c",
     "code_context": missing()},
]  # fmt: skip
"""Three rows as `qft data ds1000` makes them; the last one's own solution fails everywhere."""


def write_rows(path: Path) -> Path:
    """Write the three rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path
