"""Reads numbers in texts, and compares them within a tolerance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException

from trainer.eval_tables.text import ToleranceTable

DIGITS_MAX = 1000
"""Of a number; a longer run of digits is no number."""
PLAIN = str.maketrans(
    "\u2212\u2010\u2011\u2013\ufe63\uff0d\uff0b\uff0e\u066b\uff0c\uff05\u066a", "------+..,%%"
)
"""What people and programs also write for `-`, `+`, `.`, `,` and `%`."""
SEPARATORS = "'\u2019\u00a0\u202f\u2009_\u066c"
"""What separates thousands, beside a comma or a point: apostrophes, spaces that do not break."""
SIGN = r"(?P<sign>(?<![\w.,)\]])[-+])?"
NUMBER = re.compile(
    SIGN + r"(?:[$\u20ac\u00a3\u00a5]\s?)?"
    rf"(?P<digits>\.\d+|\d+(?:[{SEPARATORS}]\d{{3}}(?!\d))*(?:[.,]\d+)*)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,4})(?!\w)"
    r"|\s?(?:[\u00d7x*]|\\times)\s?10\s?(?:\^|\*\*)\s?\{?(?P<power>[-+]?\d{1,4})\}?)?"
    r"(?P<percent>\s?\\?%)?"
)
FRACTION = re.compile(SIGN + r"(?<![\w./,])(?P<above>\d{1,40})/(?P<below>\d{1,40})(?![\w/]|[.,]\d)")
LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(\d{1,40})\}\{(\d{1,40})\}")
CONTEXT = Context(prec=60, traps=[])


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number that was read, and whether it was written as a percentage."""

    value: Decimal
    percent: bool = False


def last_number(text: str) -> Number | None:
    """Return the last number of a text; None if there is none.

    Read are signs, decimal points, thousands separators, `%`, exponents (`2e3`, `2 x 10^3`) and
    fractions (3/4, also LaTeX's), in the digits of any script. A comma is a decimal one where it
    cannot separate thousands: in `3,5`, not in `3,500`.
    """
    plain = LATEX_FRACTION.sub(r"\1/\2", text.translate(PLAIN))
    found: Number | None = None
    end = 0
    for match in NUMBER.finditer(plain):
        value = _number_of(match)
        if value is not None:
            found, end = value, match.end()
    for match in FRACTION.finditer(plain):
        if match.end() >= end and int(match["below"]):
            quotient = CONTEXT.divide(Decimal(match["above"]), Decimal(match["below"]))
            found = Number(value=-quotient if match["sign"] == "-" else quotient)
    return found


def same_number(found: Number, right: Number, tolerance: ToleranceTable) -> bool:
    """Return whether a number is the right one, within the tolerance.

    Where only one of them is a percentage, 50 % is both 50 and 0.5: texts leave the sign out.
    """
    values = [found.value]
    if found.percent != right.percent:
        hundredth = Decimal("0.01") if found.percent else Decimal(100)
        values.append(CONTEXT.multiply(found.value, hundredth))
    return any(within(value, right.value, tolerance) for value in values)


def within(found: Decimal, right: Decimal, tolerance: ToleranceTable) -> bool:
    """Return whether |found - right| is at most the absolute or the relative bound."""
    if found == right:
        return True
    relative = CONTEXT.multiply(Decimal(str(tolerance.relative)), CONTEXT.abs(right))
    distance = CONTEXT.abs(CONTEXT.subtract(found, right))
    bound = max(Decimal(str(tolerance.absolute)), relative)
    return bool(distance.is_finite() and distance <= bound)


def _number_of(match: re.Match[str]) -> Number | None:
    """Return the number of a match of NUMBER; None for a run of digits that is none."""
    digits = _with_point(match["digits"].translate(str.maketrans("", "", SEPARATORS)))
    if len(digits) > DIGITS_MAX:
        return None
    exponent = match["exponent"] or match["power"] or "0"
    try:
        value = Decimal(f"{digits}e{exponent}")
    except DecimalException:
        return None
    return Number(
        value=value.copy_negate() if match["sign"] == "-" else value,
        percent=match["percent"] is not None,
    )


def _with_point(written: str) -> str:
    """Return digits with at most one point, from digits with commas and points between them.

    Those that are no number (`1.2.3`, `1,2,3`) are a list, of which the last is returned.
    """
    comma, point = written.rfind(","), written.rfind(".")
    if comma < 0 and written.count(".") <= 1:
        return written
    mark, other = (",", ".") if comma > point else (".", ",")
    whole, _, rest = written.rpartition(mark)
    if min(comma, point) >= 0:  # both: the later one is the decimal mark
        if mark not in whole and _in_groups(whole, other):
            return f"{whole.replace(other, '')}.{rest}"
        return rest if mark in whole else f"{whole.rpartition(other)[2]}.{rest}"
    if _in_groups(written, mark):
        return written.replace(mark, "")
    return rest if mark in whole else f"{whole}.{rest}"


def _in_groups(text: str, mark: str) -> bool:
    """Return whether digits are separated into groups of three."""
    first, *groups = text.split(mark)
    return bool(groups) and 0 < len(first) <= 3 and all(len(one) == 3 for one in groups)
