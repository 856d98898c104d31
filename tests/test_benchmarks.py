"""The benchmarks' frame: rounds in turn, ratios round by round, and a loud end if one is missed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from bench import all_measures, command, machine, plot, table
from bench.measure import (
    Goal,
    Growth,
    Limit,
    Measure,
    Ratio,
    Sample,
    Unavailable,
    Variant,
    Workplace,
)
from bench.processes import ProcessFailed, run_process
from bench.results import judge, slope
from bench.rounds import Collected, collect
from bench.rows import SHAPES
from bench.training import ways

Values = Mapping[str, Sequence[float]]
FACTS = {
    "processor": "a processor", "cores": 2, "memory_gb": 8.0, "system": "Linux 6", "commit": "abc",
    "load_before": 0.1, "python": "3.11.7", "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    "peers": {"torch": "2.13.0", "trl": "1.16.0"}, "tools": {"rsync": "3.2.7", "ssh": None},
}  # fmt: skip


def make_measure(
    values: Values,
    *goals: Goal,
    higher: bool = True,
    ran: list[str] | None = None,
    traits: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Measure:
    """Return a measure whose variants have these values, one a round."""

    def run(name: str, number: int) -> Sample:
        if ran is not None:
            ran.append(f"{name}{number}")
        if name.startswith("absent"):
            raise Unavailable("it is not installed")
        return Sample(value=values[name][number], also={"loss": values[name][number] / 10})

    @contextmanager
    def opened(_place: object) -> Iterator[Sequence[Variant]]:
        yield [
            Variant(name=name, run=partial(run, name), **traits.get(name, {})) for name in values
        ]

    return Measure(
        name="group/what", title="a title", unit="s", higher_is_better=higher, open=opened,
        goals=goals,
    )  # fmt: skip


Do = Callable[..., Collected]


@pytest.fixture
def do(tmp_path: Path) -> Do:
    """Collect the rounds of a measure."""
    place = Workplace(
        folder=tmp_path, python=Path(sys.executable), peers_python=tmp_path / "none",
        root=tmp_path, quick=False, on_message=lambda _text: None,
    )  # fmt: skip

    def collected(measure: Measure, rounds: int = 3) -> Collected:
        return collect(measure, place, rounds=rounds, on_sample=lambda _one: None)

    return collected


def test_every_round_runs_every_variant_and_turns_the_order(do: Do) -> None:
    """No variant always follows the same other one."""
    ran: list[str] = []
    do(make_measure({"a": [1, 1, 1], "b": [1, 1, 1], "c": [1, 1, 1]}, ran=ran))

    assert ran == ["a0", "b0", "c0", "b1", "c1", "a1", "c2", "a2", "b2"]


def test_a_ratio_is_the_median_of_the_rounds_ratios(do: Do) -> None:
    """A round in which the whole machine was slower changes both, and so no ratio."""
    goal = Ratio(of="ours", over=("theirs",), at_least=2.0)
    found = do(make_measure({"ours": [4, 40, 5], "theirs": [2, 20, 2]}, goal))

    assert [(one.value, one.rounds, one.met) for one in judge(found)] == [(2.0, 3, True)]


@pytest.mark.parametrize(("higher", "value"), [(True, 0.5), (False, 2.0)])
def test_of_several_others_the_best_counts(do: Do, *, higher: bool, value: float) -> None:
    """The best is the largest where more is better, and the smallest elsewhere."""
    goal = Ratio(of="ours", over=("low", "high"))
    found = do(make_measure({"ours": [2], "low": [1], "high": [4]}, goal, higher=higher), 1)

    assert [one.value for one in judge(found)] == [value]


def test_of_the_ways_to_use_a_tool_the_best_of_the_first_round_goes_on(do: Do) -> None:
    """The others are tried once, and the comparison is with the one that went on."""
    choice = {"choice_of": "tool"}
    goal = Ratio(of="ours", over=("x", "y"))
    found = do(
        make_measure(
            {"ours": [6, 6], "x": [1, 9], "y": [2, 3]}, goal, traits={"x": choice, "y": choice}
        ),
        2,
    )

    assert {name: len(samples) for name, samples in found.samples.items()} == {
        "ours": 2, "x": 1, "y": 2,
    }  # fmt: skip
    assert [(one.text, one.value) for one in judge(found)] == [("ours / y", 2.5)]


def test_a_variant_may_be_run_in_fewer_rounds(do: Do) -> None:
    """What is only printed beside the others need not take as long."""
    found = do(make_measure({"a": [1, 1, 1], "b": [1, 1, 1]}, traits={"b": {"rounds_max": 1}}))

    assert {name: len(samples) for name, samples in found.samples.items()} == {"a": 3, "b": 1}


def test_a_further_value_has_bounds_of_its_own(do: Do) -> None:
    """The loss is compared beside the speed."""
    goals = (
        Ratio(of="ours", over=("theirs",), on="loss", at_least=0.99, at_most=1.01),
        Limit(of="ours", on="loss", at_most=0.1),
    )
    found = do(make_measure({"ours": [2], "theirs": [2.001]}, *goals), 1)

    assert [one.met for one in judge(found)] == [True, False]


def test_what_was_not_measured_is_missed(do: Do) -> None:
    """A tool that is not installed fails the run where it has a bound, with the reason."""
    goals = (
        Ratio(of="ours", over=("absent",), at_least=1.0),
        Ratio(of="ours", over=("absent",)),
        Limit(of="ours", at_least=1.0),
    )
    found = judge(do(make_measure({"ours": [1, 1, 1], "absent": []}, *goals)))

    assert [(one.value, one.met) for one in found] == [(None, False), (None, True), (1.0, True)]
    assert "it is not installed" in table.missed(found)[0]


def test_a_measure_that_cannot_begin_is_missed(do: Do) -> None:
    """An error before the first round is the reason of every goal, and ends nothing else."""

    @contextmanager
    def opened(_place: object) -> Iterator[Sequence[Variant]]:
        raise OSError("no room")
        yield []

    measure = Measure(
        name="group/what", title="", unit="s", higher_is_better=True, open=opened,
        goals=(Limit(of="ours", at_least=1.0),),
    )  # fmt: skip
    verdicts = judge(do(measure))

    assert [(one.met, one.note) for one in verdicts] == [(False, "not measured: OSError: no room")]


def test_growth_is_the_exponent_of_the_power_law(do: Do) -> None:
    """Values that grow with the square of the size have the slope 2."""
    sizes = {"s": 1.0, "m": 10.0, "l": 100.0}
    goal = Growth(name="work", of=tuple(sizes), at_most=1.1)
    values = {name: [size**2, 3 * size**2] for name, size in sizes.items()}
    found = do(
        make_measure(values, goal, traits={name: {"size": size} for name, size in sizes.items()}), 2
    )
    verdict = judge(found)[0]

    assert verdict.value == pytest.approx(2.0)
    assert not verdict.met
    assert plot.growth_series([found])["group/what: work"] == [
        (1.0, 2.0),
        (10.0, 200.0),
        (100.0, 2e4),
    ]
    assert plot.as_svg(plot.growth_series([found])).count("<circle") == 3


def test_a_slope_is_that_of_the_logarithms() -> None:
    """Twice the time for twice the size is 1, whatever the unit."""
    assert slope([(1, 3), (2, 6), (4, 12)]) == pytest.approx(1.0)


def run_command(
    monkeypatch: pytest.MonkeyPatch, folder: Path, measures: Sequence[Measure], *words: str
) -> int:
    """Run the command over these measures, with a page of its own."""
    page = folder / "benchmarks.md"
    if not page.exists():
        page.write_text("# Benchmarks\n")
    monkeypatch.setattr(command, "MEASURES", tuple(measures))
    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setattr(machine, "describe", lambda *_paths: FACTS)
    return command.main(["--out", str(folder), *words])


def test_a_missed_ratio_is_named_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not as it must be stands on stderr, and the rows are appended all the same."""
    goal = Ratio(of="ours", over=("theirs",), at_least=2.0)
    measure = make_measure({"ours": [3] * 5, "theirs": [2] * 5}, goal)

    code = run_command(monkeypatch, tmp_path, [measure])

    captured = capsys.readouterr()
    assert code == command.MISSED
    assert "MISSED group/what: ours / theirs: 1.5, must be >= 2" in captured.err
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| ours / theirs | 1.5 | >= 2 | **missed** |" in page
    assert all(len(line) <= 120 for line in page.splitlines() if not line.startswith("|"))


def test_all_met_ends_with_0_and_leaves_every_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results file has all samples of five rounds and every verdict."""
    goal = Ratio(of="ours", over=("theirs",), at_least=1.0)
    measure = make_measure({"ours": [3] * 5, "theirs": [2] * 5}, goal)

    assert run_command(monkeypatch, tmp_path, [measure]) == 0

    found = json.loads((tmp_path / "bench.json").read_text())
    assert [one["value"] for one in found["measures"][0]["samples"]["ours"]] == [3] * 5
    assert [(one["text"], one["met"]) for one in found["verdicts"]] == [("ours / theirs", True)]


def test_a_run_that_is_cut_leaves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results file is whole after every sample."""
    values: Values = {"ours": [3] * 5, "theirs": [2] * 5}
    measure = make_measure(values)
    ran = []

    def cut(_name: str) -> None:
        ran.append(len(json.loads((tmp_path / "bench.json").read_text())["measures"]))
        raise KeyboardInterrupt

    @contextmanager
    def opened(place: Any) -> Iterator[Sequence[Variant]]:
        with measure.open(place) as variants:
            yield [variants[0], Variant(name="cut", run=lambda _at: cut("cut"))]  # type: ignore[arg-type, return-value]

    broken = Measure(name="group/what", title="", unit="s", higher_is_better=True, open=opened)

    assert run_command(monkeypatch, tmp_path, [broken]) == command.INTERRUPTED
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [one["value"] for one in found["measures"][0]["samples"]["ours"]] == [3]
    assert ran == [1]


def test_a_trial_leaves_the_page_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--quick` does one round, and its figures go nowhere but into the results file."""
    ran: list[str] = []

    run_command(monkeypatch, tmp_path, [make_measure({"ours": [1]}, ran=ran)], "--quick")

    assert ran == ["ours0"]
    assert (tmp_path / "benchmarks.md").read_text() == "# Benchmarks\n"


@pytest.mark.parametrize(
    ("words", "count"),
    [((), 2), (("a",), 1), (("a/x",), 1), (("a/x", "b"), 2), (("--rounds", "1", "b/y"), 1)],
)
def test_only_chosen_measures_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], count: int
) -> None:
    """A name is a group or one measure."""
    ran: list[str] = []
    measures = [
        Measure(
            name=name, title="", unit="s", higher_is_better=True,
            open=make_measure({"v": [1] * 5}, ran=ran).open,
        )
        for name in ("a/x", "b/y")
    ]  # fmt: skip
    only = [word for word in words if "/" in word or word in {"a", "b"}]
    others = [word for word in words if word not in only]

    run_command(monkeypatch, tmp_path, measures, *others, *(["--only", *only] if only else []))

    assert len(ran) == count * (1 if others else 5)


def test_a_name_that_no_measure_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message lists the names that there are."""
    code = run_command(monkeypatch, tmp_path, [make_measure({"v": [1]})], "--only", "nothing")

    assert code == command.BAD_USAGE
    assert "there are: group/what" in capsys.readouterr().err


def test_a_process_is_counted_with_its_children() -> None:
    """CPU time, output and memory are those of the process and of what it started."""
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print('out')"
    ended = run_process([sys.executable, "-c", code])

    assert ended.cpu_s >= 0.2
    assert ended.out == "out\n"
    assert ended.peak_bytes > 1 << 20


def test_a_process_that_fails_or_hangs_is_an_error() -> None:
    """The message has its exit code and the end of its output; a limit kills it."""
    with pytest.raises(ProcessFailed, match=r"(?s)exit 3.*the reason"):
        run_process([sys.executable, "-c", "import sys; print('the reason'); sys.exit(3)"])
    with pytest.raises(ProcessFailed, match="exit -9"):
        run_process([sys.executable, "-c", "import time; time.sleep(600)"], limit_s=0.2)


def test_the_goals_of_every_training_name_ways_that_are_run() -> None:
    """No goal compares with a variant that does not exist, which would always be missed."""
    for shape, measure in zip(SHAPES, all_measures.MEASURES, strict=False):
        names = {way.name for way in ways(shape)}

        assert measure.name == f"training/{shape.name}"
        for goal in measure.goals:
            assert isinstance(goal, Ratio)
            assert {goal.of, *goal.over} <= names


def test_the_rows_of_every_shape_are_the_same_each_time() -> None:
    """The shapes are made without chance, as many rows as asked, and differ in length."""
    source = [{"text": f"tweet {at} " * (1 + at % 3), "label": "neutral"} for at in range(40)]
    for shape in SHAPES:
        made = shape.make(source, shape.rows if shape.name != "tweets" else 40)

        assert made == shape.make(source, len(made))
        assert len({len(json.dumps(row)) for row in made}) > 2


@pytest.mark.parametrize("option", ["--out", "--work"])
def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    """A folder below a file ends with 2 and one line, before anything is measured."""
    file = tmp_path / "file"
    file.touch()

    code = run_command(monkeypatch, tmp_path, [], option, str(file / "below"))

    assert code == command.BAD_USAGE
    assert str(file / "below") in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_rounds_are_a_number_from_1_on(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is refused by its value."""
    with pytest.raises(SystemExit) as ended:
        command.parse(["--rounds", count])

    assert ended.value.code == command.BAD_USAGE
    assert f"{count!r} is no number of rounds" in capsys.readouterr().err
