"""The content of the report: sections of plain text, tables and figures.

The report escapes every string; nothing in here is markup.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Table:
    """A table; a cell is a string, a number, or None (shown as `n/a`)."""

    caption: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass
class Figure:
    """A PNG written under the results folder, and its caption (also the alternative text)."""

    path: Path
    caption: str


@dataclass
class Section:
    """One part of the report. `metrics` is written to `metrics.json` under `key`."""

    key: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
