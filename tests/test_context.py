"""The count of reports that are longer than the context, against the tokenizer that training uses."""

import csv

from hypothesis import given, settings
from hypothesis import strategies as st

from chexzero.simple_tokenizer import SimpleTokenizer
from data_prep.context import CONTEXT, MERGES, _vocabulary, count_longer

TOKENIZER = SimpleTokenizer()
WORDS = [
    "pneumothorax",
    "No",
    "5.5",
    "cm",
    "don't",
    "Ü",
    "café",
    "x" * 30,
    "___",
    "1.",
    "心",
    "effusion,",
    "\u00b5",
    "(left)",
]


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(WORDS), max_size=90).map(" ".join), min_size=1, max_size=20))
def test_it_counts_what_the_tokenizer_counts(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "impressions.csv"
    with open(path, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["impression"], *([text or " "] for text in texts)])
    assert count_longer(path) == sum(len(TOKENIZER.encode(text)) > CONTEXT for text in texts)


def test_75_tokens_still_fit(tmp_path):
    path = tmp_path / "impressions.csv"
    path.write_text("".join(f"{text}\n" for text in ("impression", "x " * 75, "x " * 76, "x")))
    assert count_longer(path) == 1


def test_the_vocabulary_is_the_tokenizers():
    vocabulary, merges = _vocabulary()
    assert vocabulary == {token: i for token, i in TOKENIZER.encoder.items() if i < 512 + MERGES}
    assert len(merges) == MERGES == len(TOKENIZER.encoder) - 512 - 2  # one token begins and one ends a text
