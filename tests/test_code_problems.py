"""Problems are read from rows, answers are cleaned without losing a space, figures count them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.code_problems import ROWS, indented, problem, total

from commands.runs.score import read_score
from trainer.code_eval.client import commands, require_linux
from trainer.code_eval.hours import running_seconds
from trainer.code_eval.libraries import libraries_in
from trainer.code_eval.limits import Outcome
from trainer.code_eval.problems import clean_answer, limits_of, program_for, read_problems
from trainer.config import TrainerConfig
from trainer.data.codec import Example
from trainer.data.row import Row
from trainer.errors import ConfigError, DataError
from trainer.eval_tables.code import CodeEvalTable
from trainer.scoring.code_figures import Judged, code_details, code_gain, pass_share
from trainer.scoring.code_verdicts import run_programs
from trainer.scoring.free_answers import FreeAnswer
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.result import EvalResult
from trainer.scoring.score_words import result_words

TABLE = CodeEvalTable()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("result = 1", "result = 1"),
        (" result = 1\n", " result = 1\n"),
        ("    x = 1\n    return x\n</code>\nbla", "    x = 1\n    return x\n"),
        ("result = 1\n```\nThat adds one.", "result = 1\n"),
        ("Here it is:\n```python\n  a = 1\n```\nDone.\n```python\nb = 2\n```", "  a = 1\n"),
        ("```\nresult = 1\n```\n", "result = 1\n"),
        ("```Py\r\nresult = 1\n```", "result = 1\n"),
        ("<code>\nresult = 1\n</code>", "\nresult = 1\n"),
        ("result = 1\nEND SOLUTION\nproblem 2", "result = 1"),
        ("plt.plot(x)\n# SOLUTION END\nmore", "plt.plot(x)\n"),
        ("", ""),
    ],
)
def test_an_answer_is_cut_where_it_ends_and_keeps_its_spaces(text: str, code: str) -> None:
    """Fences and marks of the prompt end an answer; spaces at its beginning stay."""
    assert clean_answer(text) == code


def test_a_program_looks_at_the_text_only_where_it_has_a_test_for_it() -> None:
    """`test_string` is called for problems that define it, with the answer as it was written."""
    code = "result = 'a\\n'\n"

    with_text = program_for(problem(total()), code)
    without = program_for(problem(indented()), code)

    assert with_text.endswith(f"code = {code!r}\ntest_execution(code)\ntest_string(code)\n")
    assert without.endswith(f"code = {code!r}\ntest_execution(code)\n")


def test_problems_are_those_of_the_rows_that_are_scored() -> None:
    """Rows give their program, library and family; a row that is not scored gives nothing."""
    rows = [Row(number=at, fields=row) for at, row in enumerate(ROWS, start=1)]
    found = read_problems(rows, {1: "one", 3: "three"}, TABLE, place="eval.jsonl")

    assert [(one.row, one.library, one.reference, one.group) for one in found] == [
        (1, "Lists", "one", "a"),
        (3, "Nowhere", "three", "c"),
    ]


def test_published_rows_are_read_as_they_are() -> None:
    """A row of DS-1000 itself has its library in `metadata`; without any, all are one group."""
    fields: dict[str, Any] = {"code_context": total(), "metadata": {"library": "Scipy"}}
    rows = [Row(number=1, fields=fields), Row(number=2, fields={"code_context": total()})]

    found = read_problems(rows, {1: "", 2: ""}, TABLE, place="eval.jsonl")

    assert [one.library for one in found] == ["Scipy", "all"]


def test_every_row_without_a_test_program_is_named() -> None:
    """Rows that lack the field, or whose field is no program, are refused together with the fix."""
    rows = [
        Row(number=1, fields={"code": "x"}),
        Row(number=2, fields={"code_context": "print()"}),
        Row(number=3, fields={"code_context": total()}),
    ]
    with pytest.raises(DataError) as caught:
        read_problems(rows, {1: "", 2: "", 3: ""}, TABLE, place="eval.jsonl")

    assert "eval.jsonl:1: no field `code_context`" in str(caught.value)
    assert "eval.jsonl:2: `code_context` is no test program" in str(caught.value)
    assert "eval.jsonl:3" not in str(caught.value)
    assert "make them again" in str(caught.value)


def test_the_table_sets_the_limits() -> None:
    """Seconds and memory of the table are those of an answer."""
    limits = limits_of(CodeEvalTable(seconds=7, memory_gb=0.5))

    assert (limits.wall_s, limits.memory_bytes) == (7, 2**29)


def test_settings_that_would_be_read_by_nothing_are_refused() -> None:
    """Few-shot prompts are not written for code, and no setting switches the sandbox off."""
    with pytest.raises(ValidationError, match="`shots` is not for `kind: code`"):
        CodeEvalTable(shots=2)
    with pytest.raises(ValidationError, match="sandbox"):
        CodeEvalTable.model_validate({"kind": "code", "sandbox": False})


def test_a_config_may_ask_for_code() -> None:
    """`eval: {kind: code}` is a table of a run's config."""
    tables = {
        "model": {"id": "model"},
        "data": {"train": "a.jsonl", "eval": "b.jsonl", "prompt": "{p}", "completion": "{c}"},
        "eval": {"kind": "code", "rows": 5},
    }

    assert TrainerConfig.model_validate(tables).scored == CodeEvalTable(rows=5)


def test_only_libraries_that_a_program_names_are_imported() -> None:
    """Words of the programs decide what is worth importing beforehand."""
    assert libraries_in(["import numpy as np\nfrom pandas import x", "no torches"]) == [
        "numpy",
        "pandas",
    ]


@pytest.mark.parametrize(("system", "named"), [("darwin", "macOS"), ("win32", "Windows")])
def test_systems_without_a_sandbox_are_refused(system: str, named: str) -> None:
    """On macOS and Windows nothing is run, and the message says what to do."""
    with pytest.raises(ConfigError, match=f"Linux only, and this is {named}"):
        require_linux(system)


def test_a_processor_without_a_filter_is_refused() -> None:
    """Where the numbers of system calls are not listed, none could be refused."""
    with pytest.raises(ConfigError, match="this is riscv64"):
        require_linux("linux", "riscv64")


def test_root_is_tried_first_and_nothing_of_the_environment_goes_along() -> None:
    """An ordinary user tries `sudo -n`, then himself; the environment is empty in every case."""
    tried = [*commands("/usr/bin/python3", ["numpy"], root=False)]

    assert tried[0][:2] == ["sudo", "-n"]
    assert tried[-1][0] == "env"
    assert all("env" in one and one[one.index("env") + 1] == "-i" for one in tried)
    assert all(one[0] != "sudo" for one in commands("/usr/bin/python3", [], root=True))


def judged(row: int, library: str, *, right: str, given: str, group: str = "") -> Judged:
    """Return a problem with the verdicts on its own solution and on the answer."""
    item = Example((1,), (1,), "question", "solution", row, 1)
    return Judged(
        problem=problem(total(), row, library=library),
        item=item,
        answer=FreeAnswer(text="answer", stopped=True),
        code="answer",
        reference=Outcome(verdict=right, error="ImportError" * (right != "passed")),
        outcome=Outcome(verdict=given),
    )


def test_problems_that_cannot_be_scored_here_are_named_and_not_counted() -> None:
    """pass@1 is of the problems whose own solution passes; the others are listed with a reason."""
    found = [
        judged(1, "Numpy", right="passed", given="passed"),
        judged(2, "Numpy", right="passed", given="wrong"),
        judged(3, "Pandas", right="error", given="error"),
    ]
    details = code_details(found, [Outcome(verdict="wrong")] * 3, {"python": "3.11"})

    assert pass_share(found).value == 0.5
    assert (details["problems"], details["scorable"]) == (3, 2)
    assert details["not_scorable"] == [
        {"row": 3, "library": "Pandas", "reason": "error ImportError"}
    ]
    assert [one["row"] for one in details["documents"]] == [1, 2]
    assert [one["score"] for one in details["documents"]] == [1.0, 0.0]
    assert details["libraries"]["Pandas"] == {
        "problems": 1, "scorable": 0, "passed": 0, "pass_at_1": None,
    }  # fmt: skip
    assert details["verdicts"] == {"passed": 1, "wrong": 1}
    assert details["baselines"]["empty"]["pass_at_1"]["value"] == 0


def test_a_library_without_a_pass_has_wilsons_interval() -> None:
    """0 of 22 is [0, 0.149], as published tables of the score interval have it, not [0, 0]."""
    found = [judged(at, "Numpy", right="passed", given="wrong") for at in range(22)]
    share = code_details(found, [], {})["libraries"]["Numpy"]["pass_at_1"]

    assert share["low"] == 0
    assert share["high"] == pytest.approx(0.1487, abs=5e-4)


def result(scores: dict[int, float]) -> EvalResult:
    """Return a result with these scores by row; rows below 10 are one family."""
    documents = [
        {"row": row, "score": score, "group": "family" if row < 10 else None}
        for row, score in scores.items()
    ]
    return EvalResult(
        stage="after", kind="code", metric="pass_at_1", decoding="free", value=0, low=0, high=0,
        n=len(scores), stop_rate=1, parse_failures=0, out_of_vocabulary=0, seconds=0,
        details={"documents": documents},
    )  # fmt: skip


def test_a_gain_is_over_problems_that_both_could_score() -> None:
    """Problems that only one of two results has are left out of their difference."""
    change = code_gain(result({1: 0, 2: 1, 11: 0, 12: 0}), result({2: 1, 11: 1, 12: 0, 13: 1}))

    assert change is not None
    assert (change["n"], change["value"]) == (3, pytest.approx(1 / 3))
    assert code_gain(result({1: 0}), result({2: 0})) is None


def test_a_family_of_problems_is_resampled_as_one() -> None:
    """Near-duplicates that all got better give a wider interval than as many single problems."""
    family = dict.fromkeys(range(5), 1.0) | dict.fromkeys(range(11, 20), 0.0)
    single = dict.fromkeys(range(11, 16), 1.0) | dict.fromkeys(range(16, 25), 0.0)
    widths = []
    for after in (family, single):
        change = code_gain(result(dict.fromkeys(after, 0.0)), result(after))
        assert change is not None
        widths.append(change["high"] - change["low"])

    assert widths[0] > widths[1]


def test_what_is_judged_is_not_run_again(tmp_path: Path) -> None:
    """Every verdict is kept before the next program begins; another answer is another program."""
    problems = [problem(total(), row) for row in range(3)]
    ran: list[str] = []

    def run(program: str) -> Outcome:
        ran.append(program)
        if len(ran) == 2:
            raise OSError
        return Outcome(verdict="passed", seconds=0.5)

    def judge(codes: list[str]) -> list[str]:
        kept = KeptRows(tmp_path / "verdicts.jsonl", {})
        found = run_programs(
            problems, "answer", codes, run=run, kept=kept, on_progress=lambda *_counts: None
        )
        return [one.verdict for one in found]

    with pytest.raises(OSError):  # noqa: PT011 - the one raised above
        judge(["a", "b", "c"])
    assert judge(["a", "b", "c"]) == ["passed"] * 3
    assert len(ran) == 4
    assert judge(["a", "b", "other"]) == ["passed"] * 3
    assert len(ran) == 5


def test_a_plan_can_count_the_time_of_programs() -> None:
    """Twice as many problems take more time, and baselines a third run of each."""
    assert running_seconds(200, baselines=False) > running_seconds(100, baselines=False)
    assert running_seconds(100, baselines=True) > running_seconds(100, baselines=False)


def test_a_score_says_of_how_many_problems_it_is(tmp_path: Path) -> None:
    """Where some problems cannot be scored, both lines on a result name the number of all."""
    found = asdict(result({1: 1, 2: 0}))
    found["details"] |= {"problems": 3}
    (tmp_path / "eval-after.json").write_text(json.dumps(found))

    assert "on 2 rows (of 3 problems" in result_words(found, {})
    assert "n=2, scorable of 3)" in str(read_score(tmp_path / "eval-after.json"))
    found["details"]["problems"] = 2
    assert "problems" not in result_words(found, {})
