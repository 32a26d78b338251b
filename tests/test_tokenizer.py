"""Tokens equal upstream's; special tokens have OpenAI's spelling."""

import json

import numpy as np
from small_clip import GOLDEN, recorded

from chexzero.clip import tokenize
from chexzero.simple_tokenizer import SimpleTokenizer, default_tokenizer
from tests.parity import inputs


def test_golden_tokens():
    golden = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))
    assert len(golden["texts"]) == 34
    np.testing.assert_array_equal(tokenize(golden["texts"], truncate=True), golden["tokens"])


def test_recorded_tokens():
    np.testing.assert_array_equal(tokenize(inputs.texts(), truncate=True), recorded()["tokens/tokens"])


def test_special_tokens_and_round_trip():
    tokenizer = SimpleTokenizer()
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == 49408
    assert tokenizer.encoder["<|startoftext|>"] == 49406 and tokenizer.encoder["<|endoftext|>"] == 49407
    # Upstream's result: only OpenAI's spelling is a special token.
    assert tokenizer.encode("a <|endoftext|> b") == [320, 49407, 321]
    assert tokenizer.encode("<end_of_text>") == [283, 806, 318, 539, 318, 4160, 285]
    assert tokenizer.decode(tokenizer.encode("Hello  World!")) == "hello world ! "
    assert default_tokenizer() is default_tokenizer()
