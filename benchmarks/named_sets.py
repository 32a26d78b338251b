"""Time and memory of a large evaluation set: `python -m benchmarks.named_sets`.

First the statistics alone (200 findings, 40,000 images), then a whole evaluation with a model of
CheXzero's size (ViT-B/32 at 224, random weights; 256 images), and the model's share of that time.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pandas as pd

from benchmarks.audit import machine
from benchmarks.memory import peak
from chexzero.evaluation.named_sets import NamedSet, Protocol, Summary, read_named_set, score_findings, summarise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40_000, metavar="N")
    parser.add_argument("--findings", type=int, default=200, metavar="N")
    parser.add_argument("--embedded", type=int, default=256, metavar="N", help="images that the model embeds")
    args = parser.parse_args()
    statistics(args)
    share_of_the_model(args.embedded, args.findings)


def statistics(args: argparse.Namespace) -> None:
    """Time and memory of AUROCs, intervals and means on drawn probabilities."""
    random = np.random.default_rng(0)
    shares = np.exp(random.uniform(np.log(2e-4), np.log(0.3), args.findings))
    truth = (random.random((args.images, args.findings)) < shares).astype(np.float64)
    truth[random.random(truth.shape) < 0.01] = np.nan
    probability = 0.5 + 0.01 * (np.nan_to_num(truth) + random.standard_normal(truth.shape))
    names = [f"finding {j}" for j in range(args.findings)]
    table = pd.DataFrame({"id": np.arange(args.images).astype(str)})
    protocol = Protocol("drawn", summaries=[Summary("more than 50", more_than=50), Summary("rarest", rarest=20)])
    data = NamedSet("drawn", Path("drawn.h5"), Path("drawn_labels.csv"), table, names, truth, protocol, "")
    begun, used = time.perf_counter(), time.process_time()
    scores = score_findings(truth, probability)
    summaries = summarise(data, scores)
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    memory = peak() / 1024
    print(f"{machine()}")
    print(
        f"{args.findings} findings x {args.images} images: {seconds:.1f} s ({used:.1f} s of CPU), {memory:.2f} GiB at most (data included)"
    )
    for one in summaries:
        print(f"{one.summary.title}: {len(one.used)} findings, {one.mean:.3f} ({one.lower:.3f} to {one.upper:.3f})")


def share_of_the_model(n_images: int, n_findings: int) -> None:
    """Score a drawn set from its files with every prompt wording, and print how the time divides."""
    import torch  # here, so that the statistics' memory excludes it

    from chexzero.evaluation.prompt_choice import WAYS, pairs
    from chexzero.model import CLIP
    from chexzero.zero_shot import Predictor

    random = np.random.default_rng(0)
    spent: Counter[str] = Counter()
    with TemporaryDirectory() as name:
        folder = Path(name)
        ids = [f"drawn/{i}" for i in range(n_images)]
        with h5py.File(folder / "drawn.h5", "w") as handle:
            handle.create_dataset("cxr", (n_images, 320, 320), np.uint8, chunks=(1, 320, 320))
            for i in range(n_images):
                handle["cxr"][i] = random.integers(0, 256, (320, 320))
            handle["id"] = ids
        truth = (random.random((n_images, n_findings)) < 0.1).astype(int)
        table = pd.DataFrame({"id": ids} | {f"finding {j}": truth[:, j] for j in range(n_findings)})
        table.to_csv(folder / "drawn_labels.csv", index=False)
        model = CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)
        torch.save(model.state_dict(), folder / "model.pt")
        begun = time.perf_counter()
        data = _timed(spent, "reading and checking the files", read_named_set)(folder, "drawn")
        predictor = Predictor(folder / "model.pt", folder / "cache")
        _timed(spent, "loading the model", lambda: predictor.model)()
        for part in ("encode_image", "encode_text"):
            setattr(predictor.model, part, _timed(spent, f"the model's {part}", getattr(predictor.model, part)))
        for way in WAYS.values():
            texts = pairs(data.protocol, data.findings, way)
            scored = predictor.predict(data.images, texts, images_sha256=data.images_sha256)
            _timed(
                spent, "areas, intervals, means", lambda scored=scored: summarise(data, score_findings(truth, scored))
            )()
        total = time.perf_counter() - begun
    spent["the rest (feeding the model, caches)"] = total - spent.total()
    print(f"{n_images} images, {n_findings} findings, {len(WAYS)} ways of asking, from files to figures: {total:.1f} s")
    for part, seconds in spent.most_common():
        print(f"  {part:40}{seconds:8.2f} s{seconds / total:8.1%}")


def _timed(spent: Counter[str], part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        found = function(*args, **kwargs)
        spent[part] += time.perf_counter() - begun
        return found

    return call


if __name__ == "__main__":
    main()
