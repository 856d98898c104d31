"""Estimates tokens and dollars before a judge is asked; what was used is read from its answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from commands.runs.judge_table import TokenPrices

CHARS_PER_TOKEN, CHARS_PER_TOKEN_OF_CODE = 3.5, 3.0
VERDICT_TOKENS = 120
"""Of a usual verdict: three sentences and a word."""
MESSAGE_TOKENS = 12
"""What roles and separators add to a request of two messages."""
MTOK = 1_000_000
WIDE = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
"""Characters of Chinese, Japanese and Korean: about a token each."""
CODE = re.compile(r"[{};=()\[\]<>_]")
CODE_SHARE = 0.05
"""Of brackets and the like, from which a text counts as code; prose has about 0.01."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens that were sent and received, and in how many requests."""

    prompt: int = 0
    answer: int = 0
    requests: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt=self.prompt + other.prompt,
            answer=self.answer + other.answer,
            requests=self.requests + other.requests,
        )

    def usd(self, prices: TokenPrices | None) -> float | None:
        """Return what it costs; None without prices."""
        if prices is None:
            return None
        return (self.prompt * prices.prompt + self.answer * prices.answer) / MTOK


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has, rounded up."""
    wide = len(WIDE.findall(text))
    other = len(text) - wide
    code = len(CODE.findall(text)) > CODE_SHARE * max(len(text), 1)
    return wide + -int(-other // (CHARS_PER_TOKEN_OF_CODE if code else CHARS_PER_TOKEN))


def estimate_request(messages: list[dict[str, str]]) -> Usage:
    """Return about what one request uses."""
    sent = sum(estimate_tokens(one["content"]) for one in messages)
    return Usage(prompt=sent + MESSAGE_TOKENS, answer=VERDICT_TOKENS, requests=1)
