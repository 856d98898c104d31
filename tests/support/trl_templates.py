"""The chat templates in TRL's wheel, tokenizers that hold their tokens, and conversations.

The tokenizers are byte-level without merges, so that every text has one tokenization only, and what
a test compares is what was rendered. TRL itself is not imported: it is slow to load.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CONTROL = re.compile(
    r"<\|[^|<>\s{}]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|<\|\"\|>|<\|[a-z_]+>|<[a-z_]+\|>"
    r"|</?(?:start_of_turn|end_of_turn|end_of_utterance|start_of_image|sop)>|\[gMASK\]"
)
END_OF_SEQUENCE: Mapping[str, str] = MappingProxyType(
    {
        "cohere": "<|END_OF_TURN_TOKEN|>",
        "deepseek": "<\uff5cend▁of▁sentence\uff5c>",
        "diffusion_gemma": "<turn|>",
        "gemma4": "<turn|>",
        "gptoss": "<|return|>",
        "lfm2": "<|im_end|>",
        "llama3": "<|eot_id|>",
        "muse": "<|eot|>",
        "nemotron": "<|im_end|>",
        "qwen": "<|im_end|>",
    }
)
"""The `eos_token` of the tokenizers published with these templates; elsewhere it is `<eos>`."""
WITH_PICTURES = frozenset({"idefics3", "llava_next", "smolvlm"})
"""Templates of which content is a list of parts, pictures among them: they take no plain text."""

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where."}},
                "required": ["city"],
            },
        },
    }
]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _answer(text: str, reasoning: str | None = None, **more: Any) -> dict[str, Any]:
    thought = {} if reasoning is None else {"reasoning_content": reasoning}
    return {"role": "assistant", "content": text, **thought, **more}


def _called(reasoning: str | None = None) -> dict[str, Any]:
    call = {"name": "weather", "arguments": {"city": "Rome"}}
    calls = [{"type": "function", "id": "call00001", "function": call}]
    return _answer("", reasoning, tool_calls=calls)


_RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "sunny"}
_TWO = [_user("Where is it?"), _answer("Here."), _user("Since when?"), _answer("Since May.")]
CONVERSATIONS: Mapping[str, list[dict[str, Any]]] = MappingProxyType(
    {
        "one turn": _TWO[:2],
        "two turns": _TWO,
        "system and two turns": [{"role": "system", "content": "Be brief."}, *_TWO],
        "reasoning": [
            _user("Where is it?"),
            _answer("Here.", "I look around."),
            _user("Since when?"),
            _answer("Since May.", "I look into the book."),
        ],
        "tools": [_user("Will it rain?"), _called(), _RESULT, _answer("No.")],
        "reasoning and tools": [
            _user("Will it rain?"),
            _called("I must ask."),
            _RESULT,
            _answer("No.", "Sunny means no rain."),
        ],
    }
)


@cache
def folder() -> Path:
    """The directory of TRL's chat templates."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


@cache
def names() -> tuple[str, ...]:
    """The names of the templates that bases are published with."""
    found = (path.stem for path in folder().glob("*.jinja"))
    return tuple(sorted(name for name in found if not name.endswith("_training")))


@cache
def source(name: str) -> str:
    """The text of a template."""
    return (folder() / f"{name}.jinja").read_text(encoding="utf-8")


def has_training(name: str) -> bool:
    """Whether TRL has a variant of a template that marks what is learnt."""
    return (folder() / f"{name}_training.jinja").is_file()


@cache
def tokenizer(name: str) -> Any:
    """A byte-level tokenizer with the control tokens of a template as special tokens."""
    eos = next((end for key, end in END_OF_SEQUENCE.items() if name.startswith(key)), "<eos>")
    made = byte_level(sorted({*CONTROL.findall(source(name)), "<bos>", eos, "<pad>"}), eos=eos)
    made.chat_template = source(name)
    return made


def byte_level(control: Sequence[str], *, eos: str) -> Any:
    """A tokenizer of bytes with these special tokens, and `<think>` as a plain added one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={one: at for at, one in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(one, special=True) for one in control])
    inner.add_tokens([AddedToken(one) for one in ("<think>", "</think>")])
    names = {name: f"<{name}>" for name in ("bos", "pad") if f"<{name}>" in control}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=eos,
        **{f"{name}_token": token for name, token in names.items()},
    )
