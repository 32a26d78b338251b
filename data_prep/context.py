"""Count the reports that are longer than CLIP's context, without torch."""

import gzip
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from data_prep.releases.rows import read_records

CONTEXT = 75  # CLIP's 77 tokens without the start and end tokens
MERGES = 48_894
PIECE = 4096
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def count_longer(path: Path) -> int:
    """Count the texts of the column `impression` that CLIP's context cuts off."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary, merges = _vocabulary()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    texts: Iterator[str] = (record["impression"] for _, record in read_records(path, ["impression"], "build it again"))
    longer = 0
    while piece := list(islice(texts, PIECE)):
        longer += sum(len(encoding) > CONTEXT for encoding in tokenizer.encode_batch(piece))
    return longer


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokens and merge rules, from the file that open_clip ships."""
    from tokenizers import pre_tokenizers

    package = find_spec("open_clip")  # only its location: importing it would import torch
    assert package is not None and package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")[1 : MERGES + 1]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    return {token: i for i, token in enumerate(tokens)}, merges
