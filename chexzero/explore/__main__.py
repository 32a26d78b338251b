"""A page to try a model on one image: `python -m chexzero.explore --run checkpoints/<name>`."""

import chexzero.common.interrupts  # noqa: F401  (first: the other imports take seconds)

import argparse
from pathlib import Path

from chexzero.common.errors import EXIT_CODES, UserError, run_command
from chexzero.explore.app import HOST, create_app, load_explorer, make_server


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chexzero.explore", description=(__doc__ or "").partition("\n")[0], epilog=EXIT_CODES
    )
    what = parser.add_argument_group("what to show")
    what.add_argument(
        "--run", type=Path, required=True, metavar="DIR", help="folder that run_train.py wrote: checkpoints/<name>"
    )
    what.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint other than the selected one")
    what.add_argument(
        "--reports",
        type=Path,
        metavar="FILE",
        help="CSV with a column `impression`, in which the nearest reports are found (default: the training "
        "reports if the corpus is drawn, else none)",
    )
    what.add_argument(
        "--max_reports",
        type=int,
        default=2000,
        metavar="N",
        help="compare with at most N reports (default: %(default)s)",
    )
    what.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder in which run_zero_shot.py wrote <run>/, for percentiles and thresholds (default: %(default)s)",
    )
    where = parser.add_argument_group("where to serve it")
    where.add_argument(
        "--port", type=int, default=8000, help="port on 127.0.0.1; 0 picks a free one (default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    explorer = load_explorer(args.run, args.checkpoint, args.reports, args.max_reports, args.results)
    try:
        server = make_server(create_app(explorer), args.port)
    except (OSError, ValueError) as error:
        raise UserError(f"port {args.port} cannot be used; choose another with --port") from error
    print(f"http://{HOST}:{server.effective_port}/ shows {args.run.name}; Ctrl-C ends it", flush=True)
    server.run()


if __name__ == "__main__":
    run_command(main)
