"""`python -m data_prep <step>`: the table of steps; a step's module is imported only when it is chosen."""

import argparse
import importlib
import sys

from chexzero.errors import run_command

#: step -> (module with `add_arguments(parser)` and `run(args)`, what it does)
STEPS = {
    "build": ("data_prep.build", "make the training, validation and test sets from the releases"),
    "finish": ("data_prep.finish", "check and join what the jobs of a SLURM array prepared"),
    "audit": ("data_prep.audit", "look for patients, reports and images that are in two sets"),
    "demo": ("data_prep.demo", "draw a small corpus in the releases' layouts"),
    "mimic": ("data_prep.mimic", "CheXzero's own training set, from MIMIC-CXR"),
    "chexpert-test": ("data_prep.chexpert_test", "CheXzero's own test set file"),
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def main(argv: list[str] | None = None) -> int | None:
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else None
    if name not in STEPS:
        return _overview().parse_args(argv).step
    module_name, purpose = STEPS[name]
    module = importlib.import_module(module_name)
    parser = argparse.ArgumentParser(prog=f"python -m data_prep {name}", description=purpose,
                                     formatter_class=_Help)
    module.add_arguments(parser)
    return module.run(parser.parse_args(argv[1:]))


def _overview() -> argparse.ArgumentParser:
    steps = "\n".join(f"  {name:14} {purpose}" for name, (_, purpose) in STEPS.items())
    parser = argparse.ArgumentParser(prog="python -m data_prep", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=f"Prepare the data.\n\nsteps:\n{steps}",
                                     epilog="python -m data_prep <step> --help shows a step's flags")
    parser.add_argument("step", choices=list(STEPS), metavar="step")
    return parser


def cli() -> None:
    """The installed command."""
    run_command(main)


if __name__ == "__main__":
    cli()
