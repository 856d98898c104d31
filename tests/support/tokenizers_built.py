"""Small tokenizers of every kind, built on the spot, so that tests need no download."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "You are so nice, thank you very much for the article! toxic obscene insult N/A",
    "import pandas as pd\n    result = df.groupby('a').sum()\n",
    "### Wikipedia comment: stupid page\n### Classifications:\n",
    "positive negative neutral Tweet: Sentiment: HUMAN RESPONSE the a of and to in is it you that",
    "0123456789 <s> </s> [CLS] [SEP] ¡señor! naïve 你好",
)
KINDS = ("bpe", "unigram", "wordpiece")
SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "[CLS]", "[SEP]")


def build(
    kind: str = "bpe", *, bos: bool = True, eos: bool = True, pad: bool = False, frame: bool = True
) -> Any:
    """Return a fast tokenizer; `frame` says whether it adds its BOS (and [SEP]) by itself."""
    inner = _trained(kind)
    if frame and kind == "wordpiece":
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(name, inner.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
    elif frame and bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
        )
    names: dict[str, str] = {"unk_token": "<unk>"}
    if bos:
        names["bos_token"] = "[CLS]" if kind == "wordpiece" else "<s>"
    if eos:
        names["eos_token"] = "[SEP]" if kind == "wordpiece" else "</s>"
    if pad:
        names["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def _trained(kind: str) -> Any:
    trainer: Any
    if kind == "wordpiece":
        inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=400, special_tokens=list(SPECIALS), show_progress=False
        )
    elif kind == "unigram":
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        inner.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=list(SPECIALS), unk_token="<unk>", show_progress=False
        )
    else:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    inner.train_from_iterator(CORPUS, trainer)
    return inner
