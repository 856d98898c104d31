"""Lets a model answer, greedily: freely, or bound to a list of answers with their probabilities.

Prompts are read once per batch, padded on the left, and both ways of answering start from the same
read. The model comes back exactly as it was: same modes, same random state, nothing cached.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.errors import DoesNotFit

TOKENS_PER_BATCH = 4096  # what a forward pass takes at once, padding included
ROWS_PER_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class GeneratedTokens:
    """What a model wrote for one prompt, without the EOS, and whether it came to one."""

    tokens: tuple[int, ...]
    stopped: bool


class Decoder:
    """One model with what is needed to ask it; use it inside `undisturbed(model)`."""

    def __init__(self, model: Any, *, eos_ids: Sequence[int], pad_id: int) -> None:
        self._model = model
        self._eos = frozenset(eos_ids)
        self._pad = pad_id
        self._seq2seq = bool(model.config.is_encoder_decoder)
        self._device = next(model.parameters()).device
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepts = frozenset(inspect.signature(base.forward).parameters)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> DecodingState:
        """Read the prompts; the reading knows the next token's logits, float32 [batch, words]."""
        width = max(len(prompt) for prompt in prompts)
        ids = [[self._pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        tokens = torch.tensor(ids, device=self._device)
        attention_mask = torch.tensor(mask, device=self._device)
        if self._seq2seq:
            encoder_outputs = self._model.get_encoder()(
                input_ids=tokens, attention_mask=attention_mask
            )
            start = self._model.config.decoder_start_token_id
            first = torch.full((len(prompts), 1), start, device=self._device)
            state = DecodingState(attention_mask=attention_mask, encoder_outputs=encoder_outputs)
            return self._forward(first, state)
        return self._forward(tokens, DecodingState(attention_mask=attention_mask))

    def step(self, state: DecodingState, tokens: Sequence[int]) -> DecodingState:
        """Return the reading after one more token per row; the given reading is used up."""
        fed = torch.tensor(tokens, device=self._device)[:, None]
        if not self._seq2seq:
            state.attention_mask = torch.cat([state.attention_mask, torch.ones_like(fed)], dim=1)
        return self._forward(fed, state)

    def generate(self, state: DecodingState, *, tokens_max: int) -> list[GeneratedTokens]:
        """Continue greedily to an EOS, or for `tokens_max` tokens; the reading is used up."""
        rows = len(state.logits)
        written: list[list[int]] = [[] for _ in range(rows)]
        stopped = [False] * rows
        for turn in range(tokens_max):
            chosen = state.logits.argmax(dim=-1).tolist()
            for row, token in enumerate(chosen):
                if token in self._eos:
                    stopped[row] = True
                elif not stopped[row]:
                    written[row].append(token)
            if all(stopped) or turn == tokens_max - 1:
                break
            fed = [self._pad if end else token for end, token in zip(stopped, chosen, strict=True)]
            state = self.step(state, fed)
        return [
            GeneratedTokens(tokens=tuple(tokens), stopped=end)
            for tokens, end in zip(written, stopped, strict=True)
        ]

    def score_choices(self, state: DecodingState, trie: Trie) -> torch.Tensor:
        """Return the probability of every answer of `trie`, float64 [batch, answers], rows sum 1.

        At each fork of the trie the model's probability is shared out among the branches there
        are, so words that no answer can go on with play no part. A stretch without a fork costs
        nothing unless a fork follows. The reading is used up.
        """
        result = torch.zeros(len(state.logits), trie.answers, dtype=torch.float64)
        certain = torch.zeros(len(state.logits), 1, dtype=torch.float64)
        self._descend(trie.root, state, certain, result)
        return result.exp()

    def _descend(
        self, node: Node, state: DecodingState, log_share: torch.Tensor, result: torch.Tensor
    ) -> None:
        branches = list(node.branches.items())
        if len(branches) > 1:
            logits = state.logits[:, [token for token, _ in branches]]
            shares = logits.double().cpu().log_softmax(dim=-1) + log_share
        else:
            shares = log_share
        for at, (token, child) in enumerate(branches):
            share = shares[:, at : at + 1]
            if child.only_answer is not None:
                result[:, child.only_answer] = share[:, 0]
                continue
            last = at == len(branches) - 1
            kept = state if last else state.fork()
            self._descend(child, self.step(kept, [token] * len(share)), share, result)

    def _forward(self, tokens: torch.Tensor, state: DecodingState) -> DecodingState:
        arguments: dict[str, Any] = {"use_cache": True, "past_key_values": state.past_key_values}
        if self._seq2seq:
            arguments |= {
                "encoder_outputs": state.encoder_outputs,
                "attention_mask": state.attention_mask,
                "decoder_input_ids": tokens,
            }
        else:
            arguments |= {"input_ids": tokens, "attention_mask": state.attention_mask}
            if "position_ids" in self._accepts:
                places = state.attention_mask.cumsum(dim=1) - 1
                arguments["position_ids"] = places.clamp(min=0)[:, -tokens.shape[1] :]
            if "logits_to_keep" in self._accepts:
                arguments["logits_to_keep"] = 1
        out = self._model(**arguments)
        state.past_key_values = out.past_key_values
        state.logits = out.logits[:, -1].float()
        return state


@dataclass
class DecodingState:
    """How far a batch has been read: the model's memory of it, and what it would say next."""

    attention_mask: torch.Tensor
    encoder_outputs: Any = None
    past_key_values: Any = None
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def fork(self) -> DecodingState:
        """Return an independent copy; the prompt's encoding is shared, since nothing changes it."""
        return DecodingState(
            attention_mask=self.attention_mask,
            encoder_outputs=self.encoder_outputs,
            past_key_values=copy.deepcopy(self.past_key_values),
            logits=self.logits,
        )


@dataclass(kw_only=True)
class Node:
    """A place in the trie; `only_answer` is set once no fork is left below."""

    branches: dict[int, Node] = field(default_factory=dict)
    below: list[int] = field(default_factory=list)

    @property
    def only_answer(self) -> int | None:
        """The one answer that is still possible here, or None if there are several."""
        return self.below[0] if len(self.below) == 1 else None


class Trie:
    """All answers as token sequences, each ending in EOS, joined at their common beginnings."""

    def __init__(self, answers: Sequence[Sequence[int]], *, eos_id: int) -> None:
        self.root = Node()
        self.answers = len(answers)
        for number, answer in enumerate(answers):
            node = self.root
            node.below.append(number)
            for token in (*answer, eos_id):
                node = node.branches.setdefault(token, Node())
                node.below.append(number)
            if len(node.below) > 1:
                raise ValueError(f"two answers are the same tokens: {list(answer)}")


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Put the model in evaluation mode, and leave modes and random states exactly as they were.

    So evaluating and then training equals training alone, bit for bit.
    """
    modes = [(module, module.training) for module in model.modules()]
    random = torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    model.eval()
    try:
        # Not inference_mode: tensors that a module keeps from it could not be trained with later.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        torch.set_rng_state(random)
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)


def batches_by_length(
    lengths: Sequence[int], *, tokens: int = TOKENS_PER_BATCH, rows: int = ROWS_PER_BATCH
) -> Iterator[list[int]]:
    """Yield places grouped by similar length, at most `rows` and `tokens` (with padding) each.

    The longest come first, so a batch that is too big for the memory is met at once.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batch and (len(batch) == rows or (len(batch) + 1) * lengths[batch[0]] > tokens):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def run_in_batches(
    prompts: Sequence[Sequence[int]],
    answer: Callable[[list[int]], None],
    beat: Callable[[int, int], None],
) -> None:
    """Give `answer` all places in batches, telling `beat(done, total)` after each and before all.

    A batch for which memory runs out is given again in halves.

    Raises:
        DoesNotFit: memory does not even suffice for one prompt.
    """
    waiting = list(batches_by_length([len(prompt) for prompt in prompts]))
    done = 0
    beat(done, len(prompts))
    while waiting:
        batch = waiting.pop(0)
        try:
            answer(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise DoesNotFit(
                    "one held-out row does not fit into the memory of the device; shorten it, or "
                    f"rent a larger GPU ({error})"
                ) from error
            middle = len(batch) // 2
            waiting = [batch[:middle], batch[middle:], *waiting]
        else:
            done += len(batch)
            beat(done, len(prompts))
            continue
        torch.cuda.empty_cache()
