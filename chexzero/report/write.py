"""Write sections to `report.html` (one file, no network) and `report.md`, and each table to CSV and LaTeX.

Every string that comes from a file passes through an escaping template; nothing in a section is markup.
"""

import base64
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from chexzero.common.files import UnixLines, no_formula, write_text
from chexzero.common.markup import escape_markdown, without_folders
from chexzero.report.sections import Figure, Section, Table

NOT_DEFINED = "n/a"


@dataclass(frozen=True)
class Report:
    """A report before it is written. `banner` is shown above the title, `facts` below the summary."""

    title: str
    summary: list[str]
    banner: list[str]
    facts: Mapping[str, str]
    sections: Sequence[Section]


def cell_text(value: Any) -> str:
    """A table cell: numbers with three decimals, whole numbers as they are, undefined as `n/a`."""
    if value is None or (isinstance(value, float) and value != value):
        return NOT_DEFINED
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"
    return str(value)


def number_columns(table: Table) -> list[bool]:
    """Whether each column holds only numbers and intervals (right-aligned then); `n/a` and blanks are ignored."""
    columns = [[row[i] for row in table.rows if row[i] not in (None, "")] for i in range(len(table.columns))]
    return [bool(cells) and all(map(_is_number, cells)) for cells in columns]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or bool(
        re.fullmatch(r"(< )?[-+]?[\d.]+((–| to )[-+]?[\d.]+)?( \(few\)| labels)?", str(value))
    )


def markdown_text(value: Any) -> str:
    """Escape text for Markdown: one line, no markup, no HTML, no new table cell."""
    return escape_markdown(cell_text(value))


def latex_text(value: Any) -> str:
    """Escape text for LaTeX."""
    special = {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "−": "$-$",
        "“": "``",
        "”": "''",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
    return "".join(special.get(character, character) for character in " ".join(cell_text(value).split()))


def data_uri(figure: Figure) -> str:
    """The PNG as a data URI, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(figure.path.read_bytes()).decode("ascii")


def shareable(report: Report) -> Report:
    """Return the report with folder names of this machine removed."""
    sections = [
        replace(
            section,
            title=without_folders(section.title),
            text=without_folders(section.text),
            metrics=without_folders(section.metrics),
            tables=[
                replace(table, caption=without_folders(table.caption), rows=without_folders(table.rows))
                for table in section.tables
            ],
        )
        for section in report.sections
    ]
    texts = {name: without_folders(getattr(report, name)) for name in ("title", "summary", "banner", "facts")}
    return replace(report, sections=sections, **texts)


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `tables/*.{csv,tex}` into `folder`; returns the HTML's path."""
    loader = jinja2.PackageLoader("chexzero.report")
    page = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters |= {"cell": cell_text, "data_uri": data_uri, "number_columns": number_columns}
    plain = jinja2.Environment(
        loader=loader, autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # Markdown: every text goes through the filter `md`
    plain.filters |= {"md": markdown_text, "path_in": lambda figure: figure.path.relative_to(folder).as_posix()}
    write_text(folder / "report.md", plain.get_template("report.md").render(report=report))
    write_text(folder / "report.html", page.get_template("report.html").render(report=report))
    for section in report.sections:
        for number, table in enumerate(section.tables, 1):
            name = section.key if len(section.tables) == 1 else f"{section.key}_{number}"
            write_text(folder / "tables" / f"{name}.csv", as_csv(table))
            write_text(folder / "tables" / f"{name}.tex", as_latex(table))
    return folder / "report.html"


def as_csv(table: Table) -> str:
    """The table as CSV at full precision; undefined cells are empty."""
    text = io.StringIO()
    writer = csv.writer(UnixLines(text))
    writer.writerow(map(no_formula, table.columns))
    writer.writerows([["" if cell is None else no_formula(cell) for cell in row] for row in table.rows])
    return text.getvalue()


def frame_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV in the format of `as_csv`, without its index."""
    return as_csv(Table("", list(frame.columns), frame.to_numpy(object).tolist()))


def as_latex(table: Table) -> str:
    """The table as a LaTeX `tabular` in booktabs style."""
    align = "".join("r" if numbers else "l" for numbers in number_columns(table))
    styler = pd.DataFrame(table.rows, columns=table.columns, dtype=object).style.hide(axis="index")
    tabular = (
        styler.format(latex_text).format_index(latex_text, axis="columns").to_latex(column_format=align, hrules=True)
    )
    return f"% {' '.join(table.caption.split())}\n{tabular}"
