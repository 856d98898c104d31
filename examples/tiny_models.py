"""Makes small models of the recipes' architectures on the spot: random weights, real rules.

Each has the layers, the special tokens and the kind of tokenizer of its large namesake, so that a
recipe's whole path can be walked on any computer in a minute. They know nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

UNKNOWN: Mapping[str, Any] = {"unk_token": "<unk>"}
LLAMA_ENDS: Mapping[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
T5_ENDS: Mapping[str, Any] = {"pad_token": "<pad>", "eos_token": "</s>"}
HIDDEN, LAYERS, HEADS, WIDE, WORDS_MAX = 64, 2, 4, 128, 600


def make(kind: str, directory: Path, texts: Sequence[str]) -> None:
    """Write a model of this kind to `directory`, with a tokenizer made of `texts`."""
    import torch
    import transformers

    tokenizer, settings = TOKENIZERS[kind](texts)
    tokenizer.save_pretrained(str(directory))
    common = {"vocab_size": len(tokenizer), **settings}
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config: Any
    if kind == "phi":
        config = transformers.PhiConfig(**sizes, **common, intermediate_size=WIDE)
    elif kind == "falcon":
        config = transformers.FalconConfig(**sizes, **common, multi_query=True)
    elif kind == "llama":
        config = transformers.LlamaConfig(
            **sizes, **common, intermediate_size=WIDE, tie_word_embeddings=False
        )
    else:
        gate = "gated-gelu" if kind == "flan-t5" else "relu"
        config = transformers.T5Config(
            **common, d_model=HIDDEN, d_kv=HIDDEN // HEADS, d_ff=WIDE, num_layers=LAYERS,
            num_heads=HEADS, feed_forward_proj=gate, decoder_start_token_id=0,
            tie_word_embeddings=kind != "flan-t5",
        )  # fmt: skip
    torch.manual_seed(0)
    family = (
        transformers.AutoModelForSeq2SeqLM
        if config.is_encoder_decoder
        else transformers.AutoModelForCausalLM
    )
    family.from_config(config).save_pretrained(str(directory))


def _byte_level(texts: Sequence[str]) -> tuple[Any, Mapping[str, Any]]:
    """Phi and Falcon: byte-level BPE whose only control token begins, ends and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS_MAX, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=end, eos_token=end, unk_token=end
    )
    return tokenizer, {"bos_token_id": 0, "eos_token_id": 0}


def _llama(texts: Sequence[str]) -> tuple[Any, Mapping[str, Any]]:
    """OpenLLaMA: pieces with byte fallback, a BOS before every text, no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>"]
    inner = Tokenizer(models.BPE(byte_fallback=True, **UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
    )
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS_MAX, special_tokens=specials + raw, show_progress=False, max_token_length=8
    )
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **UNKNOWN, **LLAMA_ENDS)
    return tokenizer, {"bos_token_id": 1, "eos_token_id": 2}


def _t5(texts: Sequence[str]) -> tuple[Any, Mapping[str, Any]]:
    """T5: Unigram pieces, an end token behind every text, its own padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
    # Counted, not trained: the library's Unigram trainer makes other pieces of the same texts each
    # time, and a run on them could not be compared with an earlier one.
    words = [f"▁{word}" for text in texts for word in text.split()]
    counts = Counter(piece for word in words for piece in (word, *word))
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    pieces = [(piece, math.log(count / counts.total())) for piece, count in common]
    inner = Tokenizer(models.Unigram([*specials, *pieces[: WORDS_MAX - len(specials)]], unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **UNKNOWN, **T5_ENDS)
    return tokenizer, {"pad_token_id": 0, "eos_token_id": 1}


TOKENIZERS: Mapping[str, Callable[[Sequence[str]], tuple[Any, Mapping[str, Any]]]] = {
    "phi": _byte_level,
    "falcon": _byte_level,
    "llama": _llama,
    "flan-t5": _t5,
    "t5": _t5,
}
