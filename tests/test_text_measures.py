"""Measures of answers equal the programs that publish them, on any two texts."""

from __future__ import annotations

import re
import string
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from trainer.eval_tables.text import TextEvalTable
from trainer.scoring.answer_figures import compare_answers, paired_gain
from trainer.scoring.measures.all_measures import MAKERS, figures_of_measure, make_measures
from trainer.scoring.measures.corpus import bleu_tokenizer
from trainer.scoring.measures.measure import Measure
from trainer.scoring.measures.rouge_l import subsequence_length
from trainer.scoring.measures.words import CHARACTERS_MAX, words_and_characters

PAIRS = [
    ("The cat sat on the mat.", "A cat sat on a mat"),
    ("", "Nothing was written."),
    ("Something was written.", "Something was written."),
    ("?!... --- ,,,", "?!"),
    ("An answer\nof two\tlines", "of two lines an answer"),
    ("Straße und Fluß, naïve café", "Strasse und Fluss, naive cafe"),
    ("今天天气很好", "今天的天气好"),
    ("สวัสดีครับ", "สวัสดีค่ะ"),
    ("नमस्ते दुनिया", "नमस्ते सारी दुनिया"),
    ("👍🏽 yes 👨‍👩‍👧", "yes 👍"),
    ("word " * 300, "word other " * 150),
    ("e\u0301te\u0301 \x00 \ufeff", "été"),
    ("42", "forty-two"),
]
"""Answers beside the right ones: empty, of marks alone, long, and in several scripts."""
ANSWERS, RIGHT = (list(side) for side in zip(*PAIRS, strict=True))
ASCII = [pair for pair in PAIRS if "".join(pair).isascii()]
texts = st.text(max_size=60) | st.text("ab c.,'-1é中ท", max_size=40)


def measure(name: str, **fields: object) -> Measure:
    """A measure as a table `eval` with these fields makes it."""
    return make_measures(TextEvalTable.model_validate({"measures": [name], **fields}), RIGHT)[name]


def figure(name: str, pairs: list[tuple[str, str]]) -> float:
    """The figure of a measure over some answers."""
    compared = compare_answers({name: measure(name)}, pairs)
    return compared.figures(resamples=1000)[name]["value"]


def test_chrf_of_a_corpus_equals_sacrebleus() -> None:
    """From sums over rows comes what `corpus_score` gives for the texts, and its signature."""
    public = CHRF()

    assert figure("chrf", PAIRS) == pytest.approx(
        public.corpus_score(ANSWERS, [RIGHT]).score, abs=1e-9
    )
    assert measure("chrf").about["signature"] == str(public.get_signature())


def test_chrf_of_a_corpus_is_not_the_mean_of_its_rows() -> None:
    """Long answers weigh more in the headline; the scores of rows are sacrebleu's of a sentence."""
    rows = [measure("chrf").compare(*pair).score for pair in PAIRS]

    assert rows == pytest.approx(
        [CHRF().sentence_score(answer, [right]).score / 100 for answer, right in PAIRS], abs=1e-9
    )
    assert abs(100 * sum(rows) / len(rows) - figure("chrf", PAIRS)) > 1


@pytest.mark.parametrize(
    ("pairs", "tokenizer"),
    [
        ([*ASCII, ("the cat sat on the mat today", "the cat sat on the mat")], "13a"),
        ([("今天天气很好啊", "今天天气很好"), ("我们走吧", "我们回家吧")], "zh"),
        ([("สวัสดีครับผม", "สวัสดีค่ะผม")], "char"),
        ([("きょうは天気がいい", "きょうの天気はいい")], "char"),
    ],
)
def test_bleu_of_a_corpus_equals_sacrebleus(pairs: list[tuple[str, str]], tokenizer: str) -> None:
    """The right answers' script selects the tokenizer, and the signature names it."""
    answers, right = (list(side) for side in zip(*pairs, strict=True))
    public = BLEU(tokenize=tokenizer)
    made = make_measures(TextEvalTable(measures=["bleu"]), right)
    found = compare_answers(made, pairs).figures(resamples=1000)["bleu"]["value"]

    assert bleu_tokenizer(right) == tokenizer
    assert found == pytest.approx(public.corpus_score(answers, [right]).score, abs=1e-9)
    assert made["bleu"].about["signature"] == str(public.get_signature())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_corpus_figures_equal_sacrebleus_on_any_texts(pairs: list[tuple[str, str]]) -> None:
    """Sums that are added up here give what the library makes of the texts."""
    answers, right = ([*side] for side in zip(*pairs, strict=True))
    rows = compare_answers({name: measure(name) for name in ("chrf", "bleu")}, pairs)
    sums = {
        name: np.sum([one[name].statistics for one in rows.scores], axis=0)
        for name in ("chrf", "bleu")
    }
    values = {name: figures_of_measure(name)[name].value(one) for name, one in sums.items()}
    tokenizer = bleu_tokenizer(RIGHT)

    assert values["chrf"] == pytest.approx(CHRF().corpus_score(answers, [right]).score, abs=1e-9)
    assert values["bleu"] == pytest.approx(
        BLEU(tokenize=tokenizer).corpus_score(answers, [right]).score, abs=1e-9
    )


@pytest.mark.parametrize(("answer", "right"), ASCII)
def test_rouge_l_equals_rouge_scores(answer: str, right: str) -> None:
    """In ASCII our ROUGE-L is the package's, without a stemmer."""
    public = RougeScorer(["rougeL"], use_stemmer=False)

    assert measure("rouge_l").compare(answer, right).score == pytest.approx(
        public.score(right, answer)["rougeL"].fmeasure, abs=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(st.text("abc A.1\n-", max_size=50), st.text("abc A.1\n-", max_size=50))
def test_rouge_l_equals_rouge_scores_on_any_ascii(answer: str, right: str) -> None:
    """Whatever the words, the longest common subsequence is as long as the package's."""
    public = RougeScorer(["rougeL"], use_stemmer=False).score(right, answer)["rougeL"].fmeasure

    assert measure("rouge_l").compare(answer, right).score == pytest.approx(public, abs=1e-12)


@pytest.mark.parametrize("text", ["今天天气很好", "สวัสดีครับ", "नमस्ते दुनिया", "Straße", "ខ្មែរ"])
def test_equal_texts_are_right_in_every_script(text: str) -> None:
    """The package gives 0 for equal texts in Chinese; ours gives 1, and notes its own tokens."""
    for name in ("rouge_l", "tokens_f1"):
        assert measure(name).compare(text, text).score == 1.0
    assert "own_tokens" in measure("rouge_l").compare(text, text).notes
    assert measure("rouge_l").compare("今天好", "明天好").score == pytest.approx(2 / 3)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), max_size=20), st.lists(st.sampled_from("abcd"), max_size=20)
)
def test_the_longest_subsequence_is_that_of_the_table(one: list[str], other: list[str]) -> None:
    """The bits give the length that the usual table of dynamic programming gives."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for a, left in enumerate(one):
        for b, right in enumerate(other):
            table[a + 1][b + 1] = (
                table[a][b] + 1 if left == right else max(table[a][b + 1], table[a + 1][b])
            )

    assert subsequence_length(one, other) == table[-1][-1]


def squad_f1(answer: str, right: str) -> float:
    """F1 as SQuAD 2.0's evaluation defines it, in other words than the code's."""
    sides = []
    for text in (answer, right):
        kept = "".join(one for one in text.lower() if one not in set(string.punctuation))
        sides.append(re.sub(r"\b(?:a|an|the)\b", " ", kept).split())
    if not sides[0] or not sides[1]:
        return float(sides[0] == sides[1])
    same = sum((Counter(sides[0]) & Counter(sides[1])).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(sides[0]), same / len(sides[1])
    return 2 * precision * recall / (precision + recall)


@settings(max_examples=200, deadline=None)
@given(st.text("aAnthe .,'-1éß“", max_size=40), st.text("aAnthe .,'-1éß“", max_size=40))
def test_tokens_f1_follows_squads_rules(answer: str, right: str) -> None:
    """Case, articles and ASCII punctuation do not count; curly quotes do, as in the script."""
    assert measure("tokens_f1").compare(answer, right).score == pytest.approx(
        squad_f1(answer, right), abs=1e-12
    )


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("The Eiffel Tower", "eiffel tower!", 1.0),
        ("", "", 1.0),
        ("", "tower", 0.0),
        ("the", "a", 1.0),
        ("3.5", "35", 1.0),
        ("blue sky", "blue sea", 0.5),
        ("“blue”", "blue", 0.0),
        ("我喜欢猫", "我喜欢狗", 0.75),
    ],
)
def test_tokens_f1_on_published_oddities(answer: str, right: str, score: float) -> None:
    """What SQuAD's rules make of numbers and empty answers; Chinese is compared by characters."""
    assert measure("tokens_f1").compare(answer, right).score == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "right", "plain", "folded"),
    [
        (" Yes.\n", "Yes.", 1, 1),
        ("two   words", "two\nwords", 1, 1),
        ("e\u0301", "é", 1, 1),
        ("YES", "yes", 0, 1),
        ("Straße", "STRASSE", 0, 1),
        ("yes!", "yes", 0, 0),
        ("", " \n", 1, 1),
        ("ﬁne", "fine", 0, 1),
    ],
)
def test_exact_ignores_space_and_ways_of_writing(
    answer: str, right: str, plain: float, folded: float
) -> None:
    """Equal in Unicode's form C, apart from space, and with `ignore_case` apart from capitals."""
    assert measure("exact").compare(answer, right).score == plain
    assert measure("exact", ignore_case=True).compare(answer, right).score == folded


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("It was Paris, of course.", "Paris", 1),
        ("a Parisian", "Paris", 0),
        ("concatenate", "cat", 0),
        ("cats and a cat", "cat", 1),
        ("aaa aa", "aa", 1),
        ("costs $5.", "$5", 1),
        ("costs $55", "$5", 0),
        ("答案是北京。", "北京", 1),
        ("cafe\u0301 au lait", "café", 1),
        ("हिन्दी", "हिन", 0),
        ("two\nwords here", "two words", 1),
        ("", "x", 0),
    ],
)
def test_contains_finds_whole_words(answer: str, right: str, score: float) -> None:
    """The right answer may stand anywhere, but not within another word."""
    assert measure("contains").compare(answer, right).score == score


def test_words_keep_their_marks() -> None:
    """Hindi stays whole, Thai and Chinese come by characters, marks and spaces are no tokens."""
    assert words_and_characters("नमस्ते, दुनिया!") == ["नमस्ते", "दुनिया"]
    assert words_and_characters("我 like猫。OK") == ["我", "like", "猫", "ok"]
    assert words_and_characters(" \u200b…") == []


HOSTILE = [
    "\u0301\u0315" * 50_000,
    "[" * 200_000,
    "9" * 200_000,
    "a" * 200_000,
    "a b " * 50_000,
    "\x00\ud800\u202e" * 1000,
    '{"a":' * 5_000,
    "1e999999999 " * 100,
    "1,1," * 40_000,
    "-" * 100_000 + "1/0",
]


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_answer_breaks_or_stalls_a_measure(name: str) -> None:
    """Texts made to be slow are scored within seconds on a busy computer, each from 0 to 1."""
    made, begun = measure(name), time.process_time()
    right = '{"a": 1}'
    scores = [made.compare(text, right).score for text in HOSTILE]
    scores += [made.compare(text, text).score for text in HOSTILE[:2]]

    assert time.process_time() - begun < 30
    assert all(0 <= one <= 1 for one in scores)


@pytest.mark.parametrize("name", ["chrf", "rouge_l", "tokens_f1", "contains", "number"])
def test_what_is_cut_is_noted(name: str) -> None:
    """An answer of which only the beginning is compared has the note `cut`."""
    long = "word " * CHARACTERS_MAX

    assert "cut" in measure(name).compare(long, "word").notes
    assert "cut" not in measure(name).compare("word", "word").notes


@settings(max_examples=50, deadline=None)
@given(texts, texts)
def test_every_pair_of_texts_has_a_score(answer: str, right: str) -> None:
    """Every measure gives a number from 0 to 1 for any answer, and 1 for equal texts with words."""
    for name in MAKERS:
        assert 0 <= measure(name).compare(answer, right).score <= 1
    if any(one.isalnum() for one in right):
        for name in ("exact", "contains", "rouge_l"):
            assert measure(name).compare(right, right).score == 1


def test_shares_have_wilsons_interval_and_means_a_resampled_one() -> None:
    """0 of 22 right is [0, 0.149], not [0, 0]; the mean of a measure is resampled."""
    compared = compare_answers(
        {name: measure(name) for name in ("exact", "tokens_f1")}, [("no", "yes")] * 22
    )
    figures = compared.figures(resamples=1000)

    assert (figures["exact"]["low"], round(figures["exact"]["high"], 3)) == (0.0, 0.149)
    assert figures["tokens_f1"]["high"] == 0.0


def test_answers_of_one_document_are_drawn_together() -> None:
    """Ten conversations of four equal answers are as uncertain as ten answers, not as forty."""
    alone = [("a", "a")] * 5 + [("b", "a")] * 5
    together = [pair for pair in alone for _ in range(4)]
    numbers = [at // 4 for at in range(40)]
    made = {"exact": measure("exact"), "chrf": measure("chrf")}
    single = compare_answers(made, alone).figures(resamples=1000)
    grouped = compare_answers(made, together, numbers).figures(resamples=1000)
    loose = compare_answers(made, together).figures(resamples=1000)

    assert grouped["chrf"] == single["chrf"]
    assert loose["chrf"]["high"] - loose["chrf"]["low"] < 0.7 * (
        single["chrf"]["high"] - single["chrf"]["low"]
    )
    assert grouped["exact"]["value"] == 0.5
    assert grouped["exact"]["high"] - grouped["exact"]["low"] > 0.5


def test_a_gain_is_paired() -> None:
    """Where every row gains the same the interval is that gain, however the rows differ."""
    rule = figures_of_measure("tokens_f1")["tokens_f1"]
    before = np.array([[0.1 * at, 1.0] for at in range(8)])
    after = before + np.array([0.25, 0.0])
    found = paired_gain(rule, before, after)

    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)
