"""The page of common bases has every row of the shipped table, and is made by this file.

python tests/test_common_bases_page.py   writes docs/common-bases.md anew
"""

from __future__ import annotations

from pathlib import Path

from trainer.estimate.base_rows import CommonBase
from trainer.estimate.common_bases import COMMON_BASES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "common-bases.md"
HEAD = """# The table of common bases

What a plan takes for the sizes of a base where its `config.json` is neither here nor to be had from
a hub; [bases.md](bases.md#common-bases-without-a-network) says how an id or a name is matched.
Parameters are those published (the model card, or the hub's count of the weights; a matrix that is
in memory once is counted once). The sizes of each row make them to within 1 %, which a test holds.
The download is that of the files in the precision in which they are published.

| base | parameters | download | gated | other names of the same sizes |
|---|---|---|---|---|
"""


def row(base: CommonBase) -> str:
    """One line of the page."""
    parameters = f"{base.billions:.3g} B" if base.billions >= 1 else f"{base.billions * 1e3:.3g} M"
    same = ", ".join(f"`{one}`" for one in base.same_sizes)
    gated = "yes" if base.gated else ""
    return f"| `{base.id}` | {parameters} | {base.download_bytes / 1e9:.2f} GB | {gated} | {same} |"


def page() -> str:
    """The whole page, families together."""
    rows = sorted(COMMON_BASES, key=lambda one: one.id.rpartition("/")[2].lower())
    return HEAD + "".join(f"{row(one)}\n" for one in rows)


def test_the_page_has_the_table_that_is_shipped() -> None:
    """Ids, parameters, downloads, gates and other names stand there as the program has them."""
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
