"""`python -m data_prep <step>`: the table of steps; a step's module is imported only when it is chosen."""

import chexzero.common.interrupts  # noqa: F401  (the imports below take seconds)

import argparse
import importlib
import sys
from pathlib import Path

import shtab

from chexzero.common.errors import EXIT_CODES, run_command
from chexzero.common.settings import complete_paths

#: step -> (module with `add_arguments(parser)` and `run(args)`, what it does)
STEPS = {
    "build": ("data_prep.build", "make the training, validation and test sets from the releases"),
    "evaluation-set": ("data_prep.evaluation_set", "make an evaluation set from a dataset, by its name"),
    "finish": ("data_prep.finish", "check and join what the jobs of a SLURM array prepared"),
    "download": ("data_prep.download", "fetch a dataset that needs no agreement"),
    "audit": ("data_prep.overlap.audit", "look for patients, reports and images that are in two sets"),
    "demo": ("data_prep.demo.corpus", "draw a small corpus in the releases' layouts"),
    "mimic": ("data_prep.mimic", "make CheXzero's own training set from MIMIC-CXR"),
    "chexpert-test": ("data_prep.chexpert_test", "make CheXzero's own test set file from CheXpert"),
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def main(argv: list[str] | None = None) -> int | None:
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else None
    if name not in STEPS:
        return _overview().parse_args(argv).step
    module_name, purpose = STEPS[name]
    module = importlib.import_module(module_name)
    parser = argparse.ArgumentParser(
        prog=f"{_program()} {name}", description=purpose, epilog=EXIT_CODES, formatter_class=_Help
    )
    module.add_arguments(parser)
    return module.run(parser.parse_args(argv[1:]))


def _program() -> str:
    """How this command was called: by its installed name, or as a module."""
    name = Path(sys.argv[0]).name
    return name if name == "chexzero-data" else "python -m data_prep"


def _overview() -> argparse.ArgumentParser:
    """All steps with their flags: for the list of steps, for a step that is misspelt, and for shell completion."""
    parser = argparse.ArgumentParser(
        prog=_program(), description="Prepare the data. `<step> --help` shows a step's flags.", epilog=EXIT_CODES
    )
    shtab.add_argument_to(parser, "--print-completion", help="print a completion script for a shell, and exit")
    steps = parser.add_subparsers(title="steps", dest="step", metavar="step", required=True)
    for name, (module_name, purpose) in STEPS.items():
        step = steps.add_parser(name, help=purpose)
        importlib.import_module(module_name).add_arguments(step)
        complete_paths(step)
    return parser


def cli() -> None:
    """The installed command."""
    run_command(main)


if __name__ == "__main__":
    cli()
