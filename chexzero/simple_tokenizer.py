"""CLIP's byte-pair tokenizer under upstream's name: open_clip's, with OpenAI's spelling of the two special tokens."""

import functools
import os

import regex
from open_clip.tokenizer import SimpleTokenizer as _OpenClipTokenizer
from open_clip.tokenizer import default_bpe

START = "<|startoftext|>"
END = "<|endoftext|>"


class SimpleTokenizer(_OpenClipTokenizer):
    """Text <-> token ids, with a vocabulary of 49,408.

    `encoder` maps token -> id and has the special tokens `<|startoftext|>` (49406) and `<|endoftext|>` (49407);
    `encode(text)` gives the ids of a text without them; `decode(ids)` gives the text back (lower case, white space
    collapsed). `bpe_path` is a gzip of merge rules; open_clip ships OpenAI's.
    """

    def __init__(self, bpe_path: str | os.PathLike = default_bpe()):  # noqa: B008 (upstream's signature; a constant)
        super().__init__(str(bpe_path))
        for own, openai in zip(list(self.encoder)[-2:], (START, END), strict=True):
            self.encoder[openai] = self.encoder.pop(own)
        self.decoder = {index: token for token, index in self.encoder.items()}
        self.cache = {START: START, END: END}
        self.pat = regex.compile(
            r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
            regex.IGNORECASE,
        )


@functools.cache
def default_tokenizer() -> SimpleTokenizer:
    """The process's shared tokenizer; building one takes about a tenth of a second."""
    return SimpleTokenizer()
