"""The report text that an image trains with: which sections, what counts as no report, and what cleaning removes."""

import re

from data_prep.releases.rows import Row

#: Texts that mean there is no text: `None.`, `nan`, `N/A`, `___`, `[]`, or punctuation alone.
NO_TEXT = re.compile(r"[\W_]*(none|nan|n/?a|null|nil|not available|no impression)?[\W_]*", re.IGNORECASE)

#: What `clean_report` removes: de-identification marks, the number in front of a sentence, signatures and similar.
MARKS = re.compile(r"_{2,}|\[\*\*.*?\*\*\]|\bX{3,}\b(?:-\w+)?")
NUMBERING = re.compile(r"(?:(?<=^)|(?<=[.:;]\s))\(?\d{1,2}[.)]\s+(?=\D)")
SIGNATURES = re.compile(
    r"\s*(?:I have personally reviewed|electronically signed|signed by|dictated by|attending radiologist"
    r"|\"Physician to Physician Radiology Consult Line).*$",
    re.IGNORECASE,
)


def choose_report(row: Row, section: str, clean: bool = False) -> str:
    """The text to train with, words joined by single spaces as upstream's reports are; "" if there is none."""
    chosen = {
        "impression": (row.impression,),
        "findings": (row.findings,),
        "both": dict.fromkeys((row.findings, row.impression)),  # a report without sections is in both
    }[section]
    texts = (" ".join(text.replace("\0", " ").split()) for text in chosen if not NO_TEXT.fullmatch(text))
    report = " ".join(texts)
    return clean_report(report) if clean else report


def clean_report(text: str) -> str:
    """The text without de-identification marks, the numbering of its sentences, and signatures."""
    text = SIGNATURES.sub("", NUMBERING.sub("", MARKS.sub(" ", text)))
    text = re.sub(r"\s+([.,;:])", r"\1", " ".join(text.split()))
    return "" if NO_TEXT.fullmatch(text) else text
