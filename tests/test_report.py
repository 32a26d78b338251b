"""The report: content from files stays text, the page needs no network, undefined is n/a."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from chexzero.report.charts import save
from chexzero.report.sections import Section, Table
from chexzero.report.write import Report, as_csv, as_latex, cell_text, markdown_text, number_columns, write_report

EVIL = "<script>alert('x')</script>"


class Tags(HTMLParser):
    """Collects tags, link targets and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.targets, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def report(tmp_path) -> Report:
    canvas = Canvas()
    canvas.subplots().plot([0, 1], [0, 1])
    figure = save(canvas, tmp_path / "figures", "line", f"A line {EVIL}")
    table = Table(
        f"Caption {EVIL}",
        ["Patient", f"AUROC | {EVIL}", "Note"],
        [[EVIL, 0.7501, "a|b"], ["patient_1", None, "*bold* [x](http://x)"]],
    )
    section = Section("evil", f"Title {EVIL}", [f"Text {EVIL} & more"], [table], [figure])
    return Report(f"Name {EVIL}", [f"Summary {EVIL}"], [f"Banner {EVIL}"], {f"Fact {EVIL}": EVIL}, [section])


def test_html_shows_markup_from_files_as_text_and_loads_nothing(tmp_path, report):
    page = write_report(report, tmp_path).read_text()
    found = Tags(page)
    assert "script" not in found.tags
    # page title, banner, heading, summary, fact (2), contents, section (2), table (3), figure
    assert found.text.count(EVIL) == 13
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in found.targets)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"http://x", "", page))
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page and "@media print" in page
    assert ">n/a</td>" in page and ">0.750</td>" in page


def test_markdown_shows_markup_from_files_as_text(tmp_path, report):
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "<script" not in text and "(http://x)" in text and r"\[x\]" in text and r"a\|b" in text
    assert "![A line" in text and "](figures/line.png)" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert markdown_text("a\nb\r\n# c") == r"a b \# c"


def test_tables_as_csv_and_latex(tmp_path, report):
    write_report(report, tmp_path)
    with open(tmp_path / "tables" / "evil.csv", newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[1] == [EVIL, "0.7501", "a|b"] and rows[2][1] == ""
    table = Table(
        "A & B", ["Label", "AUROC", "95 % interval"], [["Lung_Lesion $x$ 5 %", 0.5, "0.400–0.600"], ["b", None, None]]
    )
    latex = as_latex(table)
    assert r"Lung\_Lesion \$x\$ 5 \% & 0.500 & 0.400--0.600 \\" in latex and r"b & n/a & n/a \\" in latex
    assert r"\begin{tabular}{lrr}" in latex
    assert as_csv(table).splitlines()[0] == "Label,AUROC,95 % interval"


def test_cells():
    assert [cell_text(value) for value in (None, float("nan"), 0.12345, 3, "x", 1e-5, 0.0, True)] == [
        "n/a",
        "n/a",
        "0.123",
        "3",
        "x",
        "1.0e-05",
        "0.000",
        "True",
    ]
    table = Table("", list("abcde"), [[1, "0.1–0.2", "x", None, "+0.1 to +0.2"], [None, None, 2, "", "< 0.001"]])
    assert number_columns(table) == [True, True, False, False, True]


def test_figures_have_equal_bytes_for_equal_input(tmp_path):
    for folder in ("a", "b"):
        canvas = Canvas()
        canvas.subplots().plot(np.arange(4))
        save(canvas, tmp_path / folder, "line", "")
    for kind in ("png", "pdf"):
        assert Path(tmp_path / "a" / f"line.{kind}").read_bytes() == Path(tmp_path / "b" / f"line.{kind}").read_bytes()
