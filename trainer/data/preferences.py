"""Recognises rows of preferences by their columns, and says how answers can be learnt from them.

The forms are those of TRL's preference and unpaired preference types, of comparisons as published
for reward models (`response_0`, `response_1` and which is better), and of ranked lists. Fine-tuning
learns answers; which of them is good, the config has to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CHOSEN = ("chosen", "chosen_response", "response_chosen", "chosen_answer", "preferred")
REJECTED = ("rejected", "rejected_response", "response_rejected", "rejected_answer", "dispreferred")
ANSWERS = ("completion", "response", "answer", "output")
PROMPTS = ("prompt", "instruction", "question", "input", "query")
PAIRS = (("0", "1"), ("1", "2"), ("a", "b"))
STEMS = ("response", "answer", "output", "completion", "human_ref", "generation", "candidate")
JUDGED_BY = ("winner", "prefer", "better", "safer", "score", "label", "choice", "rank", "rating")
LISTS = ("responses", "completions", "answers", "candidates", "outputs", "generations")


def describe_preferences(fields: Mapping[str, Any]) -> str:
    """Return what kind of preferences a row holds and how to learn from it; empty if it is none."""
    names = {name.casefold(): name for name in fields}
    return _pair(fields, names) or _unpaired(fields, names) or _comparison(names) or _ranked(
        fields, names
    )  # fmt: skip


def bad_answer(fields: Mapping[str, Any], learnt: Sequence[str]) -> str:
    """Return by what a row calls one of the `learnt` fields a bad answer; empty if it does not."""
    names = {name.casefold(): name for name in fields}
    label, rejected = names.get("label", ""), _first(names, REJECTED)
    if rejected in learnt and _first(names, CHOSEN):
        return f"`{rejected}` is the worse answer of a preference"
    if _first(names, ANSWERS) in learnt and fields.get(label) is False:
        return f"`{label}: false`, as in rows for KTO"
    return ""


def _pair(fields: Mapping[str, Any], names: Mapping[str, str]) -> str:
    chosen, rejected = _first(names, CHOSEN), _first(names, REJECTED)
    if not chosen or not rejected:
        return ""
    kind = f"the row is a preference, a better answer `{chosen}` and a worse one `{rejected}`"
    prompt, value = _first(names, PROMPTS), fields[chosen]
    if isinstance(value, list) and prompt and isinstance(fields[prompt], list):
        how = f"join `{prompt}` and `{chosen}` to one list of messages, and name it in `messages`"
    elif isinstance(value, list):
        how = f"`messages: {chosen}`"
    elif prompt:
        how = f'`prompt: "{{{prompt}}}"` and `completion: "{{{chosen}}}"`'
    else:  # the whole dialogue as one text
        how = f"`text: {chosen}`"
    return f"{kind}; qft learns answers: to learn the better ones, {how}"


def _unpaired(fields: Mapping[str, Any], names: Mapping[str, str]) -> str:
    answer, label = _first(names, ANSWERS), names.get("label", "")
    if not answer or not isinstance(fields.get(label), bool):
        return ""
    how = f'keep those with `{label}: true`, and give `completion: "{{{answer}}}"`'
    kind = f"the row is an answer `{answer}` that `{label}` calls good or bad, as for KTO"
    return f"{kind}; qft learns answers: {how}"


def _comparison(names: Mapping[str, str]) -> str:
    judge = next((names[one] for one in names if any(word in one for word in JUDGED_BY)), "")
    for stem in STEMS:
        for first, second in PAIRS:
            for join in ("_", ""):
                two = [f"{stem}{join}{end}" for end in (first, second)]
                if judge and all(one in names for one in two):
                    shown = " and ".join(f"`{names[one]}`" for one in two)
                    return (
                        f"the row compares two answers, {shown}, judged by `{judge}`; qft learns "
                        "answers: write the better one of each row into a column of its own"
                    )
    return ""


def _ranked(fields: Mapping[str, Any], names: Mapping[str, str]) -> str:
    found = _first(names, LISTS)
    value = fields.get(found)
    if not isinstance(value, list) or len(value) < 2:
        return ""
    keys = {str(key) for one in value if isinstance(one, Mapping) for key in one}
    beside = [name for low, name in names.items() if isinstance(fields[name], list)]
    judged = [key for key in (*keys, *beside) if any(word in key.casefold() for word in JUDGED_BY)]
    if not judged:
        return ""
    return (
        f"the row is a list of answers, `{found}`, ranked by `{min(judged)}`; qft learns answers: "
        "write the best one of each row into a column of its own"
    )


def _first(names: Mapping[str, str], wanted: Sequence[str]) -> str:
    return next((names[one] for one in wanted if one in names), "")
