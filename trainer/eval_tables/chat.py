"""The table `eval` of runs on conversations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.eval_tables.text import AnswerFields


class ChatEvalTable(AnswerFields):
    """The answers of conversations, each generated after the true turns before it."""

    kind: Literal["chat"] = "chat"
    rows: int = Field(default=100, ge=1, description="Conversations to score, at most.")
