"""The evaluation's report: sections, charts, HTML and Markdown."""
