"""Says of a text that stands where a number belongs how the number is written."""

from __future__ import annotations

import re

CURRENCY = re.compile(
    r"^(?:usd|us\$|[$€£])\s*|\s*(?:us\$|usd|dollars?|eur|euros?|[$€£])?\s*"
    r"(?:/|per|an|a)?\s*(?:hours?|hrs?|h)?$",
    re.IGNORECASE,
)
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?")


def number_problem(text: str, *, shown: str, whole: bool = False) -> str:
    """Return what is wrong with a text that is no number, and how to write it.

    `shown` is the text as a message may show it; `whole` asks for a number without decimals.
    """
    bare = CURRENCY.sub("", text.strip())
    pointed = re.sub(r"(?<=\d),(?=\d)", ".", bare) if bare.count(",") == 1 else bare
    value = pointed.replace(" ", "")
    if not NUMBER.fullmatch(value) or (whole and "." in value):
        example = "20" if whole else "0.25"
        return f"`{shown}` is no number; write digits only, such as `{example}`"
    reasons = []
    if bare != text.strip():
        reasons.append("without a unit")
    if pointed != bare:
        reasons.append("with a point for the decimals")
    how = f", {' and '.join(reasons)}" if reasons else ""
    return f"`{shown}` is no number; write `{value}`{how}"
