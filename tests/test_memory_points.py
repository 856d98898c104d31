"""Published peaks of memory are predicted from a table, also where it is not as it should be."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_errors import leave_one_out, leave_one_source_out

from trainer.__main__ import main
from trainer.estimate.points import errors_of, predict, read_rows

ROOT = Path(__file__).resolve().parent.parent
POINTS = ROOT / "docs" / "memory-points.csv"
ROWS = read_rows(POINTS)
ROW = {
    "id": "x", "model": "Llama-3.1-8B Alpaca", "method": "qlora", "quant": "nf4 bf16", "r": "16",
    "targets": "all linear", "micro_bs": "2", "seq": "1024", "seq_kind": "exact",
    "grad_ckpt": "yes", "optim": "AdamW", "gpu": "A10G", "metric": "max_reserved", "value": "",
    "unit": "GB", "source": "somewhere",
}  # fmt: skip


def ninth_tenth(errors: list[float]) -> float:
    """The error that nine tenths stay below."""
    return sorted(abs(one) for one in errors)[int(0.9 * len(errors))]


def gb(**cells: str) -> float:
    """What is predicted of the row above with other cells."""
    found = predict({**ROW, **cells}).predicted_gb
    assert found is not None
    return found


def test_published_peaks_are_predicted() -> None:
    """Half within 3 %, nine tenths within 10 %, all known, and no fit where memory ran out."""
    errors = errors_of(ROWS)

    assert len(errors.relative) > 45
    assert errors.median < 0.03
    assert errors.ninth_tenth < 0.10
    assert (errors.unknown, errors.false_fits, errors.false_misses) == (0, 0, 0)


def test_a_row_left_out_is_predicted_as_well() -> None:
    """With the slack and the logits fitted on the other rows, half stay within 4 %."""
    errors = leave_one_out(ROWS)

    assert statistics.median(abs(one) for one in errors) < 0.04
    assert ninth_tenth(errors) < 0.15


def test_a_source_left_out_is_predicted_by_what_its_code_says() -> None:
    """With nothing fitted on a source's own rows, half stay within 8 %, nine tenths within 25 %."""
    errors = [one for each in leave_one_source_out(ROWS).values() for one in each]

    assert statistics.median(abs(one) for one in errors) < 0.08
    assert ninth_tenth(errors) < 0.25


def test_the_command_prints_a_line_of_json_a_row_in_order(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A row of an unknown model, and one that ends early, have null and the reason."""
    lines = POINTS.read_text(encoding="utf-8").splitlines()
    file = tmp_path / "some.csv"
    file.write_text("\n".join([*lines[:3], "7,Nobody-5B", ",", *lines[-8:-6]]) + "\n")

    assert main(["forecast", "--points", str(file)]) == 0

    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["id"] for one in printed] == ["1", "6", "7", "", "139", "140"]
    assert {"id", "predicted_gb", "fits"} <= set(printed[0])
    assert printed[2]["predicted_gb"] is None
    assert "Nobody-5B" in printed[2]["reason"]
    assert printed[0]["predicted_gb"] == pytest.approx(9.44, rel=0.05)


def test_what_fits_is_predicted_where_the_metric_asks_for_it() -> None:
    """A 13B model in float32 fits no T4, a 1B model in 4 bits does; both have their need."""
    ask = {"metric": "fits(1)/OOM(0)", "gpu": "T4"}
    large = predict({**ROW, **ask, "model": "llama-13b", "quant": "none fp32"})
    small = predict({**ROW, **ask, "model": "Llama-3.2-1B"})

    assert (large.fits, small.fits) == (False, True)
    assert (large.predicted_gb or 0) > 50
    assert predict({**ROW, **ask, "gpu": "abacus"}).predicted_gb is None


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({}, {"seq": "2048"}), ({}, {"micro_bs": "4"}), ({}, {"r": "64"}),
        ({}, {"grad_ckpt": "no"}), ({}, {"quant": "none bf16"}), ({"targets": "q,v"}, {}),
        ({"optim": "adamw_8bit"}, {}), ({"model": "Llama-2-7B"}, {"model": "Llama-2-13B"}),
        ({}, {"model": "Llama-3.1-8B full FT", "quant": "none bf16"}),
        ({}, {"targets": "all+head"}), ({}, {"targets": "all linear, embed_tokens, lm_head"}),
        ({}, {"model": "Llama-3.1-8B DoRA"}), ({"metric": "max_allocated"}, {}),
        ({}, {"metric": "reported"}), ({"model": "Llama-3.1-8B VeRA"}, {}),
        ({"quant": "nf4-dq bf16"}, {}), ({"model": "Llama-3.1-8B r8", "r": "?"}, {}),
        ({"seq": "8192"}, {"seq": "8192", "model": "Llama-3.1-8B HF eager"}),
    ],
    ids=str,
)  # fmt: skip
def test_more_of_anything_never_takes_less(less: dict[str, str], more: dict[str, str]) -> None:
    """Tokens, rows, rank, layers, targets, moments and bits move the prediction upwards."""
    card = {"gpu": "-"}

    assert gb(**card, **less) < gb(**card, **more)


@pytest.mark.parametrize("source", sorted({row["source"] for row in ROWS}))
def test_every_published_loop_takes_more_for_more(source: str) -> None:
    """For each source: more tokens, a higher rank, no checkpointing never take less."""
    at = {"source": source, "gpu": "-"}
    lengths = [gb(**at, seq=str(one)) for one in (64, 256, 1024, 4096)]
    ranks = [gb(**at, r=str(one)) for one in (1, 8, 64)]

    assert lengths == sorted(lengths)
    assert ranks == sorted(ranks)
    assert gb(**at, grad_ckpt="yes") <= gb(**at, grad_ckpt="no")


def test_the_length_of_short_rows_is_not_the_cap() -> None:
    """A cap says nothing of Alpaca, whose rows are shorter; packed rows reach it."""
    rows = {"seq": "8192", "seq_kind": "cap only", "gpu": "-"}

    assert gb(**rows) < gb(**rows, model="Llama-3.1-8B Conv")
    assert gb(**{**rows, "seq_kind": "packed"}) == gb(**rows, model="Llama-3.1-8B Conv")


CELL = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "?",
            "-",
            "nan",
            "-1",
            "1e999",
            "0",
            "9" * 30,
            "2,048",
            "T4",
            "no",
            "after load 5.9.8",
            "fits",
            "static",
            "ctx",
            "9G",
            "c_attn",
            "full",
            "r=0",
            "gptq",
            "8x T4",
        ]
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(ROW)), CELL, max_size=4))
def test_an_odd_cell_ends_nothing(cells: dict[str, str]) -> None:
    """Whatever stands in a row, there is a finite prediction above 0, or a reason."""
    found = predict({**ROW, **cells})

    if found.predicted_gb is None:
        assert found.reason
    else:
        assert 0 < found.predicted_gb < 1e9


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfe\x00", "no CSV in UTF-8"), (b"a,b\n1,2\n", "does not name the column `model`")],
)
def test_a_file_that_is_no_table_is_refused(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the file and what is wrong; the exit code is that of a setting."""
    file = tmp_path / "points.csv"
    file.write_bytes(content)

    assert main(["forecast", "--points", str(file)]) == 78
    assert words in capsys.readouterr().err


def test_the_document_has_the_errors_as_they_are() -> None:
    """The table in `docs/memory-points.md` is what `make memory` finds."""
    page = (ROOT / "docs" / "memory-points.md").read_text(encoding="utf-8")
    every = [one for each in leave_one_source_out(ROWS).values() for one in each]
    found = (list(errors_of(ROWS).relative), leave_one_out(ROWS), every)

    for errors in found:
        middle = statistics.median(abs(one) for one in errors)
        assert f"| {100 * middle:.1f} % | {100 * ninth_tenth(errors):.1f} % |" in page


def test_predicting_needs_no_torch() -> None:
    """The command runs on a laptop without the trainer's libraries."""
    code = (
        "import sys; from trainer.__main__ import main; "
        f"main(['forecast', '--points', {str(POINTS)!r}, '--errors']); "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_make_memory_prints_the_errors() -> None:
    """Median, nine tenths and false fits, and the errors with each row and source left out."""
    script = [sys.executable, "tests/memory.py"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    out: Any = done.stdout

    assert "median error" in out
    assert "0 false fits" in out
    assert "each source left out: median" in out
