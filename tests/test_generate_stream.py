"""An answer comes in pieces of whole words and characters that together are exactly the answer."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny import make_tokenizer
from transformers import LlamaConfig

from commands.runs import python_program
from commands.ui.output import data_writer
from trainer.config import TrainerConfig
from trainer.data.chat.encoder import words_of
from trainer.results.answer_stream import AnswerStream, end_of_words
from trainer.results.generator import Generator, Prompt

TEXTS = (
    "one two  three\n\nfour",
    "Grüße, naïve café",
    "a 😀 and 👩‍💻 here",
    "今日は雨です。明日は?",
    "กรุงเทพ and back",
    "no-space-at-all",
    "  leading and trailing  ",
    "",
)


def byte_fallback_tokenizer() -> Any:
    """A tokenizer as LLaMA 2 has it: words behind `▁`, all other characters as single bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


def pieces_of(tokenizer: Any, tokens: Sequence[int], opening: Sequence[int] = ()) -> list[str]:
    """What a stream writes for the tokens, one after another."""
    pieces: list[str] = []
    stream = AnswerStream(tokenizer, pieces.append, opening=opening)
    for token in tokens:
        stream.add(token)
    stream.finish()
    return pieces


@pytest.mark.parametrize("make", [make_tokenizer, byte_fallback_tokenizer])
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_answer(make: Callable[[], Any], text: str) -> None:
    """Joined they equal the text of all tokens; none ends within a word or a character."""
    tokenizer = make()
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(tokenizer, tokens)
    whole = words_of(tokenizer, tokens, ())

    assert "".join(pieces) == whole
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    for before, after in pairwise(pieces):
        assert after[0].isspace() or ord(before[-1]) >= 0x0E00, (before, after)


def test_words_come_before_the_answer_is_whole() -> None:
    """A word is written with the token that begins the next one."""
    tokenizer = make_tokenizer()
    tokens = tokenizer("one two three", add_special_tokens=False)["input_ids"]
    pieces: list[str] = []
    stream = AnswerStream(tokenizer, pieces.append)
    seen = []
    for token in tokens:
        stream.add(token)
        seen.append("".join(pieces))

    assert seen[:3] == ["", "", ""]
    assert (seen[3], seen[7], seen[-1]) == ("one", "one two", "one two")


def test_a_word_without_an_end_is_not_held_for_ever() -> None:
    """What has no space for more than a line is written as it comes, and nothing of it twice."""
    tokenizer = make_tokenizer()
    tokens = tokenizer("xy" * 300, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(tokenizer, tokens)

    assert len(pieces) > 3
    assert "".join(pieces) == "xy" * 300


def test_bytes_that_are_no_character_are_not_lost() -> None:
    """Half an emoji at the end of an answer is shown as what a tokenizer makes of it."""
    tokenizer = make_tokenizer()
    tokens = tokenizer("so 😀", add_special_tokens=False)["input_ids"][:-2]

    assert "".join(pieces_of(tokenizer, tokens)) == words_of(tokenizer, tokens, ())


def test_an_opening_by_the_template_is_left_out() -> None:
    """What a template opens answers with is never written; another opening waits for the end."""
    tokenizer = make_tokenizer()
    opening, words, other = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("<think></think>", "yes it is", "<think>or no")
    )

    assert pieces_of(tokenizer, [*opening, *words], opening) == ["yes", " it", " is"]
    assert pieces_of(tokenizer, other, opening) == ["<think>or no"]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("one", ""),
        ("one ", "one"),
        ("one two", "one"),
        ("one\n\n", "one"),
        ("  ", ""),
        ("日本", "日"),
        ("one \N{REPLACEMENT CHARACTER}", "one"),
        ("か\N{COMBINING KATAKANA-HIRAGANA VOICED SOUND MARK}", ""),
    ],
)
def test_the_end_of_words_is_found(text: str, whole: str) -> None:
    """It is before a space, or between characters of a script that has none; marks stay."""
    assert text[: end_of_words(text)] == whole


class ScriptedModel(torch.nn.Module):
    """A causal model that always writes the same tokens after its prompt."""

    def __init__(self, tokens: Sequence[int], on_step: Callable[[], None]) -> None:
        super().__init__()
        self.config = LlamaConfig()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._tokens, self._on_step, self._prompt = tokens, on_step, 0

    def forward(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_more: Any
    ) -> SimpleNamespace:
        """Give all weight to the token that comes next."""
        self._on_step()
        self._prompt = self._prompt or input_ids.shape[1]
        logits = torch.zeros(1, input_ids.shape[1], 320)
        logits[0, -1, self._tokens[attention_mask.shape[1] - self._prompt]] = 1.0
        return SimpleNamespace(logits=logits, past_key_values=None)


def test_text_is_written_while_the_model_still_generates() -> None:
    """The first word is out before the last token is chosen, and nothing follows the end token."""
    tokenizer = make_tokenizer()
    tokens = tokenizer("the sky ist größer", add_special_tokens=False)["input_ids"]
    events: list[str] = []
    model = ScriptedModel([*tokens, tokenizer.eos_token_id], lambda: events.append("step"))
    config = TrainerConfig.model_validate(
        {
            "model": {"id": "m"},
            "data": {"train": "t.jsonl", "prompt": "{a}", "completion": "{b}"},
            "train": {"steps": 1, "max_length": 64},
        }
    )
    given = Generator(model=model, tokenizer=tokenizer, config=config)

    answer = given.generate(Prompt(ids=(5, 6)), tokens_max=50, write=events.append)

    assert (answer.text, answer.stopped) == ("the sky ist größer", True)
    assert [event for event in events if event != "step"] == ["the", " sky", " ist", " größer"]
    assert events.index("the") < len(events) - 1 - events[::-1].index("step")


def test_a_piped_answer_is_written_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes cut anywhere give the text, control characters replaced, line ends as one."""
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    write = data_writer()
    for byte in "größer 😀\r\nred \x1b[31m\n".encode():
        write(bytes([byte]))

    assert out.getvalue() == "größer 😀\nred \N{REPLACEMENT CHARACTER}[31m\n"


def test_a_program_whose_reader_is_interrupted_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while an answer comes leaves no process behind, even if only we got it."""
    monkeypatch.setattr(python_program, "ENDS_S", 0.2)
    sleeps = ["-n", "1", "-r", "1", "import time; time.sleep(600)"]
    with (
        pytest.raises(KeyboardInterrupt),
        python_program.running("timeit", sleeps, around={}) as program,
    ):
        raise KeyboardInterrupt

    assert program.returncode is not None
