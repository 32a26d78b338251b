"""The text of a report that an epoch trains on (`--text_section`, `--text_sentences`), and how much of it is cut.

The choice depends only on the seed, the epoch and the row, as in `augment`. No word is changed.
"""

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexzero.simple_tokenizer import default_tokenizer
from chexzero.train import CXRDataset

log = logging.getLogger(__name__)

#: `--text_section` -> the texts (of impression and findings) that make up the report in an epoch.
SECTIONS: dict[str, Callable[[Sequence[str], int], list[str]]] = {
    "impression": lambda texts, epoch: [texts[0]],
    "findings": lambda texts, epoch: [texts[1]],
    "both": lambda texts, epoch: list(
        dict.fromkeys((texts[1], texts[0]))
    ),  # a report without sections is in both columns
    "alternate": lambda texts, epoch: [texts[epoch % 2] or texts[1 - epoch % 2]],
}
#: `--text_sentences` -> function that selects or reorders the sentences of a report.
SENTENCES: dict[str, Callable[[list[str], np.random.Generator], Sequence[str]]] = {
    "all": lambda sentences, draw: sentences,
    "shuffle": lambda sentences, draw: _some(sentences, len(sentences), draw),
    "sample": lambda sentences, draw: _some(sentences, int(draw.integers(1, len(sentences) + 1)), draw),
    "one": lambda sentences, draw: _some(sentences, 1, draw),
}
#: Break between two sentences: white space after `.`, `!` or `?` (not after a list's `1.`), or an empty line.
_END = re.compile(r"(?<=[^\s\d][.!?])\s+|\n\s*\n")
#: Number of reports tokenised before a run to count cut tokens: all of a release would take minutes.
COUNTED = 2000


def dataset_options(section: str, sentences: str, seed: int) -> dict[str, Any]:
    """Return the arguments of `chexzero.train.load_data`: the columns to read, and how to vary their texts."""
    if (section, sentences) == ("impression", "all"):
        return {"column": "impression"}
    columns = ["impression"] if section == "impression" else ["impression", "findings"]
    vary = partial(report, section=section, sentences=sentences, seed=seed)
    return {"column": "findings" if section == "findings" else "impression", "columns": columns, "vary": vary}


def report(texts: Sequence[str], row: int, epoch: int, *, section: str, sentences: str, seed: int) -> str:
    """Return the text that a row trains with in an epoch; one space if it has none, as upstream's empty reports.

    texts: impression and findings (or the impression alone).
    """
    parts = [part for text in SECTIONS[section](texts, epoch) for part in _END.split(text.strip()) if part]
    if not parts:
        return " "
    return " ".join(SENTENCES[sentences](parts, np.random.default_rng([seed, epoch, row])))


def _some(sentences: list[str], count: int, draw: np.random.Generator) -> list[str]:
    return [sentences[place] for place in draw.permutation(len(sentences))[:count]]


def cut_texts(dataset: CXRDataset, rows: NDArray, seed: int) -> dict[str, Any]:
    """Count and log how much of the reports exceeds the context, over all reports or `COUNTED` drawn ones."""
    drawn = np.random.default_rng(seed).permutation(rows)[:COUNTED]
    vary = dataset.vary
    texts = [vary(dataset.sections[row], row, 0) if vary else dataset.texts[row] for row in drawn]
    tokens = np.array([len(default_tokenizer().encode(text)) + 2 for text in texts])  # plus start and end
    context = dataset.context_length
    found = {
        "context_length": context,
        "reports_counted": len(texts),
        "reports_cut": int((tokens > context).sum()),
        "tokens": int(tokens.sum()),
        "tokens_cut": int((tokens - context).clip(0).sum()),
    }
    log.info(
        "%d of %d reports%s are longer than --context_length %d and are cut: %.1f %% of all tokens",
        found["reports_cut"],
        len(texts),
        f", drawn of {len(rows)}," if len(rows) > len(texts) else "",
        context,
        100 * found["tokens_cut"] / max(1, found["tokens"]),
    )
    return found
