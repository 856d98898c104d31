"""Encodes the conversations under every chat template of TRL, and writes docs/chat-templates.md.

    PYTHONPATH=.:tests python tests/support/template_table.py

writes the table anew; a test checks that the committed one is what comes out.
"""

from __future__ import annotations

import copy
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from support import trl_templates as trl
from trainer.data.chat.conversation import read_conversation
from trainer.data.chat.encoder import ChatEncoder
from trainer.data.codec import NOT_TRAINED, Codec, Example
from trainer.data.template import MissingFieldError

PAGE = Path(__file__).parent.parent.parent / "docs" / "chat-templates.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


@dataclass(frozen=True)
class Learnt:
    """One answer of an example: the tokens before it, and those that are learnt."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def row(name: str) -> dict[str, Any]:
    """A data set's row with one of the conversations."""
    tools = {"tools": trl.TOOLS} if "tools" in name else {}
    return {"messages": copy.deepcopy(trl.CONVERSATIONS[name]), **tools}


@cache
def encoder(template: str) -> ChatEncoder:
    """An encoder with one of the templates, without a limit of length."""
    codec = Codec.from_tokenizer(trl.tokenizer(template), max_length=10**9, seq2seq=False)
    return ChatEncoder(codec=codec, style="template")


@cache
def encoded(template: str, conversation: str) -> tuple[tuple[Example, ...], str]:
    """The examples of a conversation under a template, or why there are none."""
    try:
        found = encoder(template).encode(read_conversation(row(conversation), "messages"), row=1)
    except MissingFieldError as error:
        return (), str(error)
    return tuple(item for item, _ in found), ""


def learnt(items: Sequence[Example]) -> list[Learnt]:
    """The answers that examples learn, in order."""
    found = []
    for item in items:
        start = None
        for at, label in enumerate((*item.labels, NOT_TRAINED)):
            if label != NOT_TRAINED and start is None:
                start = at
            elif label == NOT_TRAINED and start is not None:
                found.append(Learnt(item.input_ids[:start], item.input_ids[start:at]))
                start = None
    return found


def table() -> str:
    """The table of all templates and conversations, with the reasons of refusals under it."""
    reasons: dict[str, int] = {}
    head = ["template", *trl.CONVERSATIONS]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in trl.names():
        cells = []
        for conversation in trl.CONVERSATIONS:
            items, reason = encoded(name, conversation)
            if reason:
                cells.append(f"refused [{reasons.setdefault(reason, len(reasons) + 1)}]")
            else:
                cells.append("trained" if len(items) == 1 else f"trained, {len(items)} examples")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines.append("")
    for reason, number in reasons.items():
        lines += textwrap.wrap(f"{number}. {reason}", 100, subsequent_indent="   ")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with its table replaced."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")
