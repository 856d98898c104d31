"""Finds the rows inside the JSON objects that programs wrap around them.

Known are the orientations of pandas' `DataFrame.to_json` (split, table, columns, index, list),
`datasets`' `to_dict`, the answer of its server (`rows` with a `row` each), and any object in which
exactly one key holds a list of objects, as SQuAD's `data`.
"""

from __future__ import annotations

from typing import Any

DEPTH_MAX = 3
TURN_KEYS = ({"role", "content"}, {"from", "value"})
SPLITS = frozenset({"train", "test", "validation", "valid", "val", "dev", "eval"})


class UnknownWrapperError(ValueError):
    """An object wraps no rows, or several lists of them; the text says which."""


def unwrap(values: dict[str, Any], depth: int = 1) -> tuple[list[Any], str]:
    """Return the rows inside an object, and a note that says where they were found.

    Raises:
        UnknownWrapperError: there are none, or more than one list of them.
    """
    found = _split(values) or _server(values) or _columns(values) or _table_of_tables(values)
    if found is not None:
        return found
    lists = [key for key, value in values.items() if _is_row_list(value)]
    if len(lists) == 1:
        return values[lists[0]], f"the rows are read from the key `{lists[0]}`"
    if lists:
        names = ", ".join(f"`{key}`" for key in lists)
        raise UnknownWrapperError(f"this one holds several, {names}: write each to its own file")
    inner = [key for key, value in values.items() if isinstance(value, dict) and value]
    if len(inner) == 1 and depth < DEPTH_MAX:
        rows, note = unwrap(values[inner[0]], depth + 1)
        return rows, f"{note} within `{inner[0]}`"
    keys = ", ".join(f"`{key}`" for key in list(values)[:10]) or "none"
    raise UnknownWrapperError(f"this one is a single object with the keys {keys}")


def _split(values: dict[str, Any]) -> tuple[list[Any], str] | None:
    """Rows of pandas' `orient="split"`: names of columns beside lists of cells."""
    names, rows = values.get("columns"), values.get("data")
    if not isinstance(names, list) or not isinstance(rows, list):
        return None
    if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        return None
    if len({str(name) for name in names}) < len(names):
        raise UnknownWrapperError(f"a column name stands twice in {names}")
    listed = [dict(zip(map(str, names), row, strict=True)) for row in rows]
    return listed, "the rows are read from `columns` and `data`, as pandas writes `orient=split`"


def _server(values: dict[str, Any]) -> tuple[list[Any], str] | None:
    """Rows of the answer of Hugging Face's data set server."""
    rows = values.get("rows")
    if not isinstance(rows, list) or not rows:
        return None
    if not all(isinstance(one, dict) and isinstance(one.get("row"), dict) for one in rows):
        return None
    cut = next((at for at, one in enumerate(rows, 1) if one.get("truncated_cells")), None)
    if cut is not None:
        raise UnknownWrapperError(f"the server cut cells of row {cut}: download the files instead")
    total = values.get("num_rows_total")
    some = isinstance(total, int) and total > len(rows)
    more = f"; they are {len(rows)} of {total}, download the files for all" if some else ""
    return [one["row"] for one in rows], f"the rows are read from the key `rows`{more}"


def _columns(values: dict[str, Any]) -> tuple[list[Any], str] | None:
    """Rows of an object that has a list of cells for each column, all of one length."""
    lists = list(values.values())
    if not lists or not all(isinstance(cells, list) for cells in lists):
        return None
    if len({len(cells) for cells in lists}) > 1 or all(_has_objects(cells) for cells in lists):
        return None
    rows = [dict(zip(values, cells, strict=True)) for cells in zip(*lists, strict=True)]
    return rows, "each key is read as a column, with a list of its cells"


def _table_of_tables(values: dict[str, Any]) -> tuple[list[Any], str] | None:
    """Rows of pandas' `orient="columns"` (its default) or `orient="index"`."""
    inner = list(values.values())
    if len(inner) < 2 or not all(isinstance(one, dict) and one for one in inner):
        return None
    if SPLITS.issuperset(values):
        names = ", ".join(f"`{key}`" for key in values)
        raise UnknownWrapperError(f"this one holds several splits, {names}: a file for each")
    keys = list(inner[0])
    if any(set(one) != set(keys) for one in inner):
        return None
    numbered_inside, numbered = all(map(str.isdecimal, keys)), all(map(str.isdecimal, values))
    longer_inside = numbered_inside == numbered and len(keys) > len(inner)
    if longer_inside or (numbered_inside and not numbered):
        rows = [{name: cells[key] for name, cells in values.items()} for key in keys]
        return rows, "each key is read as a column, as pandas writes `orient=columns`"
    return inner, "each key is read as a row, as pandas writes `orient=index`"


def _is_row_list(value: object) -> bool:
    """Return whether a value is a list of objects that are no turns of one conversation."""
    if not isinstance(value, list) or not value or not _has_objects(value):
        return False
    return not any(keys <= set(one) for one in value[:1] for keys in TURN_KEYS)


def _has_objects(cells: list[Any]) -> bool:
    return bool(cells) and all(isinstance(one, dict) for one in cells)
