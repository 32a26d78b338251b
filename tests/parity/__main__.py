"""`python -m tests.parity CHECKOUT`: list every difference from upstream, given a checkout of its repository.

Lists upstream's functions as kept, changed, left out or new, with reasons; then runs both implementations on the same
generated inputs in separate processes and prints one table. Exit code 1 if a verdict is bad.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chexzero.common.errors import UserError, run_command
from chexzero.common.files import atomic_path, write_text
from tests.parity import child, inputs, interface

#: Array of `child` -> its description, and the largest difference allowed (0: equal; relative for losses).
LIMITS = {
    "preprocessing/cxr": ("prepared images, grey levels", 0),
    "tokens/tokens": ("tokens of 120 texts", 0),
    "impressions/filename": ("names of 300 reports", 0),
    "impressions/impression": ("impressions of 300 reports", 0),
    "new_model/vit_b_32": ("ViT-B/32: keys and shapes", 0),
    "new_model/vit_b_16": ("ViT-B/16 at 320: keys and shapes", 0),
    "new_model/rn50": ("ResNet-50: keys and shapes", 0),
    "logits/images": ("normalised, resized images", 1e-5),
    "logits/per_image": ("logits per image", 1e-5),
    "logits/per_text": ("logits per text", 1e-5),
    "checkpoint/logits": ("our saved file in upstream's model: logits", 1e-5),
    "training/sgd": ("six losses of SGD, relative", 1e-5),
    "training/adam": ("six losses of AdamW, relative", 1e-5),
    "zero_shot/pair": ("zero-shot probabilities", 1e-6),
    "zero_shot/single": ("single-prompt scores", 1e-6),
    "zero_shot/classifier": ("classifier of three templates", 1e-6),
    "zero_shot/cosines": ("cosines with it", 1e-6),
    "zero_shot/alternatives": ("probabilities of alternative names", 1e-6),
    "zero_shot/areas": ("AUROC of alternative names", 1e-9),
    "zero_shot/names": ("alternative names in order", 0),
    "zero_shot/index": ("alternative names' columns", 0),
    "areas/areas": ("AUROC of 14 labels", 1e-9),
    "areas/samples": ("AUROC in 200 resamples", 1e-9),
    "areas/intervals": ("95 % intervals, to 4 places", 1e-9),
    "areas/curves": ("ROC curves", 1e-9),
    "areas/points": ("operating points", 1e-9),
    "thresholds/mcc": ("thresholds of best MCC", 1e-12),
    "thresholds/f1": ("thresholds of best F1", 1e-12),
}

#: Array of `child.differences` -> its description, and how ours and upstream's handle it by docs/UPSTREAM.md.
DIFFERENT = {
    "differences/long_prompt": ("a prompt of more than 77 tokens", "works", "stops"),
    "differences/alternatives": ("alternative names without the bootstrap", "own label", "in order"),
    "differences/latin1_report": ("a report that is not UTF-8", "works", "UnicodeDecodeError"),
    "differences/extra_columns": ("get_best_p_vals with an extra column", "stops", "works"),
    "differences/missing_table": ("the error for a table that is missing", "UserError", "FileNotFoundError"),
}


@dataclass
class Verdict:
    """One row of the table."""

    check: str
    difference: str
    good: bool


def compare_results(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], errors: Mapping[str, Mapping[str, str]]
) -> list[Verdict]:
    """Return a verdict per array of `LIMITS`. errors: side -> check -> traceback, of checks that could not run."""
    verdicts = []
    for key, (what, limit) in LIMITS.items():
        failed = [side for side in errors if key.split("/")[0] in errors[side]]
        if failed:
            verdicts.append(Verdict(what, f"could not run ({', '.join(failed)})", False))
        elif key not in ours or key not in theirs:
            verdicts.append(Verdict(what, "missing", False))
        else:
            size = difference(ours[key], theirs[key], relative=key.startswith("training/"))
            verdicts.append(Verdict(what, f"{size:.3g}", bool(size <= limit)))
    return verdicts


def compare_differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> list[Verdict]:
    """Return a verdict per listed difference: whether each side handles the input as docs/UPSTREAM.md says."""
    verdicts = []
    for key, (what, here, there) in DIFFERENT.items():
        found = str(ours.get(key, "could not run")), str(theirs.get(key, "could not run"))
        verdicts.append(Verdict(what, f"here {found[0]}, there {found[1]}", found == (here, there)))
    return verdicts


def difference(ours: np.ndarray, theirs: np.ndarray, relative: bool = False) -> float:
    """Largest difference of numbers, or number of different texts; infinite for unequal shapes or a NaN on one side."""
    if ours.shape != theirs.shape:
        return float("inf")
    if ours.dtype.kind == "U" or theirs.dtype.kind == "U":
        return float((ours != theirs).sum())
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        return float("inf")
    gap = np.abs(ours - theirs) / (np.abs(theirs) if relative else 1)
    return float(np.nanmax(gap, initial=0))


def run_both(checkout: Path, folder: Path) -> tuple[dict, dict, dict]:
    """Write the inputs and run both sides in separate processes; return `(ours, upstream's, errors)`."""
    inputs.write(folder)
    results, errors = {}, {}
    for side in ("ours", "upstream"):  # in this order: upstream reads the checkpoint that ours writes
        _run_child(side, folder, checkout)
        with np.load(folder / f"{side}.npz", allow_pickle=False) as arrays:
            results[side] = dict(arrays)
        errors[side] = json.loads((folder / f"{side}_errors.json").read_text(encoding="utf-8"))
    return results["ours"], results["upstream"], errors


def _run_child(side: str, folder: Path, checkout: Path) -> None:
    command = [sys.executable, "-W", "ignore", child.__file__, side, str(folder), str(checkout)]
    environment = {
        **os.environ,
        "MPLBACKEND": "agg",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        code = f"upstream's code in {checkout}" if side == "upstream" else "this repository's code"
        raise UserError(f"{code} cannot be run: {reason[0]}; check that it is whole")


def record(theirs: Mapping[str, np.ndarray], path: Path) -> None:
    """Keep upstream's results for the tests: all but the large arrays, of which images become hashes."""
    kept = {key: value for key, value in theirs.items() if key in LIMITS and value.size < 100_000}
    kept["preprocessing/sha256"] = image_hashes(theirs["preprocessing/cxr"])
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, **kept)


def image_hashes(images: np.ndarray) -> np.ndarray:
    """SHA-256 of each image's bytes as uint8."""
    import hashlib

    return np.array([hashlib.sha256(image.astype(np.uint8).tobytes()).hexdigest() for image in images])


def show_interface(differences: list[interface.Difference]) -> None:
    for file, module in interface.MODULES.items():
        print(f"\n{file} -> {module or 'no module of its own'}")
        kept = [one.name for one in differences if one.file == file and one.status == "kept"]
        if kept:
            print(f"  kept      {', '.join(kept)}")
        for one in differences:
            if one.file != file or one.status == "kept":
                continue
            print(f"  {one.status:9} {one.name}: {one.reason or 'NO REASON RECORDED'}")
            if one.status == "changed":
                print(f"            upstream {one.upstream}\n            here     {one.ours}")


def show_table(verdicts: list[Verdict]) -> None:
    width = max(len(one.check) for one in verdicts)
    middle = max(len("largest difference"), *(len(one.difference) for one in verdicts))
    print(f"\n{'check':{width}}  {'largest difference':{middle}}  verdict\n{'-' * (width + middle + 11)}")
    for one in verdicts:
        print(f"{one.check:{width}}  {one.difference:{middle}}  {'good' if one.good else 'BAD'}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity",
        description=__doc__.splitlines()[0],
        epilog="exit codes: 0 all verdicts good; 1 one is bad; 2 a wrong input, explained in one sentence; 130 Ctrl-C",
    )
    parser.add_argument("checkout", type=Path, help="folder of upstream's repository")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="also write the list of differences as Markdown")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FOLDER",
        help="also write upstream's results and signatures, which the tests compare with",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    checkout = args.checkout.resolve()
    missing = [file for file in interface.MODULES if not (checkout / file).is_file()]
    if missing:
        raise UserError(f"{checkout} lacks {', '.join(missing)}; name the folder of a CheXzero checkout")
    with ThreadPoolExecutor(1) as background, tempfile.TemporaryDirectory(prefix="compare_upstream_") as folder:
        running = background.submit(run_both, checkout, Path(folder))
        signatures = interface.upstream_signatures(checkout)
        differences = interface.compare(signatures)
        show_interface(differences)
        print("\nRunning both on the same generated inputs. In upstream's process, for today's libraries:")
        for line in child.BENT:
            print(f"  - {line}")
        ours, theirs, errors = running.result()
    for side in errors:
        for check, trace in errors[side].items():
            print(f"\n{side}, {check}:\n{trace}", file=sys.stderr)
    unexplained = interface.unexplained(differences)
    verdicts = [
        *compare_results(ours, theirs, errors),
        *compare_differences(ours, theirs),
        Verdict("differences without a reason", str(len(unexplained)), not unexplained),
    ]
    show_table(verdicts)
    if args.docs:
        write_text(args.docs, interface.markdown(differences))
    if args.record:
        record(theirs, args.record / "upstream.npz")
        write_text(args.record / "upstream_signatures.json", json.dumps(signatures, indent=1) + "\n")
    n_bad = sum(not one.good for one in verdicts)
    print(f"\n{len(verdicts)} checks, {n_bad} bad")
    return 1 if n_bad else 0


if __name__ == "__main__":
    run_command(main)
