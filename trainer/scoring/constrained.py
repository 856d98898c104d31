"""Decodes greedily: freely, or constrained to a list of answers with their probabilities.

Prompts are prefilled once per batch, padded on the left, and both ways of decoding start from the
same KV cache. The model is left as it was: same modes, same random state, nothing cached.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.device.out_of_memory import MEMORY_ERRORS, give_memory_back, is_out_of_memory
from trainer.errors import DoesNotFit
from trainer.scoring.batch_memory import BatchMemory

TOKENS_PER_BATCH = 4096  # what a forward pass takes at once, padding included
ROWS_PER_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class GeneratedTokens:
    """The tokens generated for one prompt, without the EOS, and whether it was reached."""

    tokens: tuple[int, ...]
    stopped: bool


class Decoder:
    """Decodes with one model, causal or encoder-decoder; use it inside `eval_mode(model)`."""

    def __init__(self, model: Any, *, eos_ids: Sequence[int], pad_id: int) -> None:
        self._model = model
        self._eos = frozenset(eos_ids)
        self._pad = pad_id
        self._seq2seq = bool(model.config.is_encoder_decoder)
        self._device = next(model.parameters()).device
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._forward_arguments = frozenset(inspect.signature(base.forward).parameters)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> DecodingState:
        """Prefill the prompts; `logits` are those of the next token, float32 [batch, words]."""
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
        """Return the state after one more token per row; the given state is consumed."""
        fed = torch.tensor(tokens, device=self._device)[:, None]
        if not self._seq2seq:
            state.attention_mask = torch.cat([state.attention_mask, torch.ones_like(fed)], dim=1)
        return self._forward(fed, state)

    def generate(
        self,
        state: DecodingState,
        *,
        tokens_max: int,
        on_token: Callable[[int, int], None] = lambda _row, _token: None,
    ) -> list[GeneratedTokens]:
        """Decode greedily to an EOS, or for `tokens_max` tokens; the state is consumed.

        `on_token` gets the row and each of its tokens as soon as it is chosen, but for the EOS.
        """
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
                    on_token(row, token)
            if all(stopped) or turn == tokens_max - 1:
                break
            fed = [self._pad if end else token for end, token in zip(stopped, chosen, strict=True)]
            state = self.step(state, fed)
        return [
            GeneratedTokens(tokens=tuple(tokens), stopped=end)
            for tokens, end in zip(written, stopped, strict=True)
        ]

    def score_choices(self, state: DecodingState, trie: Trie) -> torch.Tensor:
        """Return the probability of each answer of `trie`, float64 [batch, answers], rows sum to 1.

        At each fork of the trie the softmax is over the branches there are, so tokens that continue
        no answer play no part. A stretch without a fork costs nothing unless a fork follows. The
        state is consumed.
        """
        log_probs = torch.zeros(len(state.logits), trie.answers, dtype=torch.float64)
        at_root = torch.zeros(len(state.logits), 1, dtype=torch.float64)
        self._descend(trie.root, state, at_root, log_probs)
        return log_probs.exp()

    def _descend(
        self, node: Node, state: DecodingState, log_prob: torch.Tensor, result: torch.Tensor
    ) -> None:
        branches = list(node.branches.items())
        if len(branches) > 1:
            logits = state.logits[:, [token for token, _ in branches]]
            log_probs = logits.double().cpu().log_softmax(dim=-1) + log_prob
        else:
            log_probs = log_prob
        for at, (token, child) in enumerate(branches):
            below = log_probs[:, at : at + 1]
            if child.only_answer is not None:
                result[:, child.only_answer] = below[:, 0]
                continue
            last = at == len(branches) - 1
            forked = state if last else state.fork()
            self._descend(child, self.step(forked, [token] * len(below)), below, result)

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
            if "position_ids" in self._forward_arguments:
                places = state.attention_mask.cumsum(dim=1) - 1
                arguments["position_ids"] = places.clamp(min=0)[:, -tokens.shape[1] :]
            if "logits_to_keep" in self._forward_arguments:
                arguments["logits_to_keep"] = 1
        out = self._model(**arguments)
        state.past_key_values = out.past_key_values
        state.logits = out.logits[:, -1].float()
        return state


@dataclass
class DecodingState:
    """The KV cache of a batch (`past_key_values`) with the logits of its next tokens."""

    attention_mask: torch.Tensor
    encoder_outputs: Any = None
    past_key_values: Any = None
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def fork(self) -> DecodingState:
        """Return an independent copy; the encoder's outputs are shared: nothing changes them."""
        return DecodingState(
            attention_mask=self.attention_mask,
            encoder_outputs=self.encoder_outputs,
            past_key_values=copy.deepcopy(self.past_key_values),
            logits=self.logits,
        )


@dataclass(kw_only=True)
class Node:
    """A node of the trie; `below` are the answers that pass through it."""

    branches: dict[int, Node] = field(default_factory=dict)
    below: list[int] = field(default_factory=list)

    @property
    def only_answer(self) -> int | None:
        """The one answer that passes through this node, or None if there are several."""
        return self.below[0] if len(self.below) == 1 else None


class Trie:
    """A prefix tree of answers as token sequences, each ending in EOS."""

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
    """Put the model in evaluation mode without gradients; restore modes and random states after it.

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
    """Yield batches of rows of similar length, at most `rows` and `tokens` (with padding) each.

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
    on_progress: Callable[[int, int], None],
) -> None:
    """Call `answer` with all row numbers in batches, and `on_progress(done, total)` between them.

    A batch for which memory runs out is answered again in halves.

    Raises:
        DoesNotFit: memory does not even suffice for one prompt.
    """
    done = 0
    on_progress(done, len(prompts))
    lengths = [len(prompt) for prompt in prompts]
    for part in parts_that_fit(batches_by_length(lengths), lengths, answer, memory_for_batches()):
        done += len(part)
        on_progress(done, len(prompts))


def memory_for_batches() -> BatchMemory:
    """Return what keeps the batches of one pass within memory."""
    return BatchMemory(on_processor=not torch.cuda.is_available())


def parts_that_fit(
    batches: Iterable[list[int]],
    lengths: Sequence[int],
    answer: Callable[[list[int]], None],
    memory: BatchMemory,
) -> Iterator[list[int]]:
    """Call `answer` with each batch, or part of one that memory suffices for; yield what is done.

    Raises:
        DoesNotFit: memory does not even suffice for one row.
    """
    waiting = list(batches)
    while waiting:
        batch = waiting.pop(0)
        of_batch = [lengths[at] for at in batch]
        if (fitting := memory.rows(of_batch)) < len(batch):
            waiting = [batch[:fitting], batch[fitting:], *waiting]
            continue
        try:
            with memory.watched(of_batch):
                answer(batch)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise DoesNotFit(
                    "one held-out row does not fit into the memory of the device; shorten it, or "
                    f"rent a larger GPU ({error})"
                ) from error
            middle = len(batch) // 2
            waiting = [batch[:middle], batch[middle:], *waiting]
        else:
            yield batch
            continue
        give_memory_back()
