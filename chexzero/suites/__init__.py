"""Evaluation beyond the 14 labels. A suite is a module with two functions, and mostly a description file beside it:

`add_arguments(parser)` adds its flags (those of all suites are added, whichever run), and
`run(context) -> chexzero.report.sections.Section` evaluates. Importing a suite imports no torch.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from chexzero.report.sections import Section
from chexzero.suites.context import EvaluationContext, file_flag

__all__ = ["SUITES", "EvaluationContext", "Suite", "add_arguments"]


@dataclass(frozen=True)
class Suite:
    """A suite by the name of its module, which is imported on first use."""

    module: str

    @property
    def run(self) -> Callable[[EvaluationContext], Section]:
        return import_module(f"chexzero.suites.{self.module}").run

    @property
    def add_arguments(self) -> Callable[[argparse.ArgumentParser], None]:
        return import_module(f"chexzero.suites.{self.module}").add_arguments


#: Values of `run_zero_shot.py --suite` besides `chexpert`.
SUITES: Mapping[str, Suite] = {
    "cxr-lt": Suite("cxr_lt"),
    "chexbench": Suite("chexbench"),
    "subgroups": Suite("subgroups"),
    "retrieval": Suite("retrieval"),
    "probe": Suite("probe"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every suite to `parser`, one group per suite."""
    file_flag(
        parser.add_argument_group("suites chexbench and retrieval"),
        "report_texts",
        "reports of the images: a CSV with id,impression, or CheXpert-Plus's own table (default: the one that the data "
        "were built from)",
    )
    for suite in SUITES.values():
        suite.add_arguments(parser)
