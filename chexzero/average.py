"""Average the weights of checkpoints of one model: `python -m chexzero.average A.pt B.pt --out soup.pt`.

    python -m chexzero.average --run checkpoints/pt-imp --top 5 --out soup.pt    # the five best by validation
    python -m chexzero.average PRETRAINED.pt TUNED.pt --weights 0.5 0.5 --out wise.pt

Equal weights give a soup (Wortsman et al. 2022); a pretrained model and its fine-tuned version, weighted 1 - a and a,
give WiSE-FT (Wortsman et al. 2022). The result is a bare state dict that every command accepts as --checkpoint.
`<name>.json` beside it lists the checkpoints, their hashes and their weights.
"""

import chexzero.common.interrupts  # noqa: F401  (first: the other imports take seconds)

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from chexzero.common.errors import EXIT_CODES, UserError, run_command
from chexzero.common.files import atomic_path, sha256_of, write_json
from chexzero.model import build_model, compare_keys
from chexzero.models.checkpoints import describe, read_state_dict
from chexzero.runs.run_folder import read_run

State = Mapping[str, torch.Tensor]
#: A batch normalisation's counter of batches, which is not a model setting; the mean keeps the first checkpoint's.
COUNTER = ".num_batches_tracked"


def average(paths: Sequence[str | os.PathLike], weights: Sequence[float] | None = None) -> dict[str, torch.Tensor]:
    """Return the weighted mean of the state dicts of some checkpoints, one of them in memory at a time.

    weights: one number in 0..1 per checkpoint, summing to 1 (default: equal). Sums are computed in float64 and stored
    in each tensor's own type. Raises `UserError` if the files are not checkpoints of one model, if a value is not
    finite, or if whole numbers (the image resolution of a DINOv3 tower) differ.
    """
    weights = check_weights(paths, weights)
    first = read_state_dict(paths[0])
    total = {name: weights[0] * tensor.double() for name, tensor in first.items()}
    for path, weight in zip(paths[1:], weights[1:], strict=True):
        state = read_state_dict(path)
        _check_same_model(first, state, paths[0], path)
        for name, tensor in state.items():
            total[name].add_(tensor.double(), alpha=weight)
    for name, tensor in total.items():
        if not tensor.isfinite().all():
            raise UserError(f"{name} of the mean is not finite; leave out the checkpoint whose training failed")
    mean = {
        name: (tensor.to(first[name].dtype) if _is_real(first[name]) else first[name]) for name, tensor in total.items()
    }
    build_model(mean)
    return mean


def check_weights(paths: Sequence[str | os.PathLike], weights: Sequence[float] | None) -> list[float]:
    """Return the given weights, or equal ones; raise `UserError` for weights that do not define a mean."""
    if len(paths) < 2:
        raise UserError("a mean needs two checkpoints or more; name them, or a run with --run DIR --top K")
    if weights is None:
        return [1 / len(paths)] * len(paths)
    if len(weights) != len(paths):
        raise UserError(f"--weights has {len(weights)} numbers for {len(paths)} checkpoints; give one for each")
    if not all(0 <= weight <= 1 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
        raise UserError(f"--weights {' '.join(map(str, weights))} must lie in 0..1 and sum to 1; correct them")
    return list(weights)


def _check_same_model(one: State, other: State, one_path: str | os.PathLike, other_path: str | os.PathLike) -> None:
    differences = compare_keys(one, other)
    if not differences:
        settings = [name for name in one if not (_is_real(one[name]) or name.endswith(COUNTER))]
        uneven = [name for name in settings if not torch.equal(one[name], other[name])]
        differences = "".join(
            f"has {name} {other[name].tolist()} instead of {one[name].tolist()}" for name in uneven[:1]
        )
    if differences:
        raise UserError(
            f"{other_path} ({describe(other)}) is not the same model as {one_path} ({describe(one)}): it {differences}"
            f"; average checkpoints of one model only"
        )


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chexzero.average",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="FILE", help="checkpoints of one model")
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="average this run's best checkpoints, by validation, instead"
    )
    parser.add_argument("--top", type=int, metavar="K", help="number of best checkpoints")
    parser.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="weight of each checkpoint, sum 1 (default: equal)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="new checkpoint to write (.pt)")
    return parser.parse_args(argv)


def chosen(args: argparse.Namespace) -> list[Path]:
    """Return the named checkpoints, or the run's K best by its selection metric."""
    if bool(args.checkpoints) == bool(args.run) or bool(args.run) != (args.top is not None):
        raise UserError("name either checkpoints, or a run and the number of its best with --run DIR --top K")
    if not args.run:
        return args.checkpoints
    run = read_run(args.run)
    return [run.checkpoint_of(step) for step in run.best_steps(args.top)]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    paths, record = chosen(args), args.out.with_suffix(".json")
    if args.out.suffix != ".pt":
        raise UserError(f"--out {args.out} must end with .pt; rename it")
    for path in (args.out, record):
        if path.exists():
            raise UserError(f"{path} exists already; choose another name with --out")
    mean, weights = average(paths, args.weights), check_weights(paths, args.weights)
    with atomic_path(args.out) as temporary:
        torch.save(mean, temporary)
    parts = [
        {"checkpoint": str(path), "weight": weight, "sha256": sha256_of(path)}
        for path, weight in zip(paths, weights, strict=True)
    ]
    write_json(record, {"sha256": sha256_of(args.out), "mean_of": parts})
    terms = (f"{weight:g} x {path}" for path, weight in zip(paths, weights, strict=True))
    print(f"wrote {args.out}, the mean of {', '.join(terms)}")
    print(f"evaluate it with: python run_zero_shot.py --checkpoint {args.out}")


if __name__ == "__main__":
    run_command(main)
