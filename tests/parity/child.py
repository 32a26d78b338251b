"""Run the compared functions of one implementation and write their results; a script, one process per implementation.

    python child.py ours|upstream FOLDER [CHECKOUT]

Upstream's modules have names such as `eval` and `model` and expect libraries of 2021, so it runs in a separate process,
in which `bend` adapts today's libraries. Both sides call the same functions with the same arguments.
"""

import argparse
import functools
import io
import json
import sys
import traceback
import types
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The adaptations in upstream's process, printed by the comparison.
BENT = [
    "PIL.Image.ANTIALIAS (removed in Pillow 10) is Image.LANCZOS, the same filter under its new name",
    "torchvision's Resize gets antialias=False, as torchvision 0.11 treated tensors; today's default is True",
    "tqdm.notebook is the plain tqdm, because there is no notebook",
    ".cuda() does nothing: GPUs are hidden from both sides, and everything is computed in float32 on the CPU",
    "zero_shot.load_clip gives the small model that is compared, loaded strictly by upstream's CLIP, in float32",
    "a package that upstream imports and that is not installed is replaced by an empty one",
]


def bend() -> None:
    """Let upstream's modules run with today's libraries."""
    import PIL.Image
    import torch
    import torchvision.transforms
    import tqdm
    import tqdm.notebook

    if not hasattr(PIL.Image, "ANTIALIAS"):
        PIL.Image.ANTIALIAS = PIL.Image.Resampling.LANCZOS
    torchvision.transforms.Resize = functools.partial(torchvision.transforms.Resize, antialias=False)
    tqdm.notebook.tqdm = functools.partial(tqdm.tqdm, disable=True)
    torch.nn.Module.cuda = lambda self, *_, **__: self
    torch.Tensor.cuda = lambda self, *_, **__: self
    sys.meta_path.append(_EmptyPackages())


class _EmptyPackages:
    """The last import finder: gives an empty module, whose every attribute is None, for a package not installed."""

    def find_spec(self, name: str, path: object, target: object = None) -> object:
        from importlib.machinery import ModuleSpec

        importer = sys._getframe(1)
        while importer and ("importlib" in importer.f_code.co_filename or importer.f_globals is globals()):
            importer = importer.f_back
        is_upstreams = importer is not None and importer.f_globals.get("__file__", "").startswith(self.checkout)
        return ModuleSpec(name, self, is_package=True) if is_upstreams else None

    checkout = "\0"

    def create_module(self, spec: object) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = lambda attribute: None
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def import_side(side: str, checkout: str | None) -> types.SimpleNamespace:
    """Import the modules of one implementation under upstream's names."""
    import importlib

    names = ["model", "clip", "simple_tokenizer", "train", "zero_shot", "eval", "metrics", "data_process"]
    if side == "upstream":
        _EmptyPackages.checkout = checkout
        bend()
        sys.path = [checkout, *sys.path, str(ROOT)]
        modules = {name: importlib.import_module(name) for name in [*names, "run_train"]}
        for module in modules.values():
            if not module.__file__.startswith(checkout):
                raise ImportError(f"{module.__name__} was imported from {module.__file__}, not from the checkout")
    else:
        sys.path.insert(0, str(ROOT))
        modules = {name: importlib.import_module(f"chexzero.{name}") for name in names}
        modules["run_train"] = importlib.import_module("run_train")
    return types.SimpleNamespace(side=side, **modules)


def preprocessing(code: types.SimpleNamespace, folder: Path) -> dict:
    import h5py

    paths = sorted(str(path) for path in (folder / "images").iterdir())
    output = folder / f"{code.side}_cxr.h5"
    code.data_process.img_to_hdf5(paths, str(output))
    with h5py.File(output) as file:
        return {"cxr": file["cxr"][:].astype("float32")}


def tokens(code: types.SimpleNamespace, folder: Path) -> dict:
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    model = types.SimpleNamespace(context_length=77)
    return {"tokens": code.train.preprocess_text(texts, model).numpy()}


def impressions(code: types.SimpleNamespace, folder: Path) -> dict:
    import numpy as np
    import pandas as pd

    reports = sorted((folder / "reports").rglob("*.txt"))
    output = folder / f"{code.side}_impressions.csv"
    code.data_process.write_report_csv(
        [f"x/p10/p10000001/{path.stem}/1.jpg" for path in reports], f"{folder}/reports/", str(output)
    )
    table = pd.read_csv(output, keep_default_na=False)
    return {column: np.array(table[column], dtype=str) for column in ("filename", "impression")}


def small_model(code: types.SimpleNamespace, folder: Path):
    """The generated float16 weights in this side's CLIP, loaded strictly, computing in float32."""
    import numpy as np
    import torch

    from tests.parity.inputs import SMALL_MODEL

    with np.load(folder / "weights.npz") as weights:
        state = {key: torch.from_numpy(weights[key]).half() for key in weights}
    model = code.model.CLIP(**SMALL_MODEL)
    model.load_state_dict(state, strict=True)
    return model.float().eval()


def _batch(code: types.SimpleNamespace, folder: Path) -> tuple:
    """All pairs, in file order, through this side's own loader."""
    import torch

    loader, _ = code.train.load_data(
        str(folder / "cxr.h5"), str(folder / "impressions.csv"), batch_size=8, column="impression", pretrained=True
    )
    pairs = [loader.dataset[i] for i in range(len(loader.dataset))]
    return torch.stack([pair["img"] for pair in pairs]), [pair["txt"] for pair in pairs]


def logits(code: types.SimpleNamespace, folder: Path) -> dict:
    import torch

    model = small_model(code, folder)
    images, texts = _batch(code, folder)
    with torch.no_grad():
        per_image, per_text = model(images, code.train.preprocess_text(texts, model))
    return {"images": images.numpy(), "per_image": per_image.numpy(), "per_text": per_text.numpy()}


def checkpoint(code: types.SimpleNamespace, folder: Path) -> dict:
    """Read a file that our `save` wrote: with upstream's CLIP on its side, with ours on ours."""
    import torch

    path = folder / "ours_checkpoint.pt"
    if code.side == "ours":
        code.run_train.save(small_model(code, folder), str(path))
        model = code.zero_shot.load_clip(str(path))
    else:
        from tests.parity.inputs import SMALL_MODEL

        model = code.model.CLIP(**SMALL_MODEL)
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
        model.eval()
    images, texts = _batch(code, folder)
    with torch.no_grad():
        return {"logits": model(images, code.train.preprocess_text(texts, model))[0].numpy()}


def new_model(code: types.SimpleNamespace, folder: Path) -> dict:
    """Keys and shapes of the published architectures at full size."""
    import numpy as np
    import torch

    sizes = {
        "vit_b_32": (512, 224, 12, 768, 32),
        "vit_b_16": (768, 320, 12, 768, 16),
        "rn50": (1024, 224, (3, 4, 6, 3), 64, None),
    }
    found = {}
    for name, vision in sizes.items():
        with torch.device("meta"):
            state = code.model.CLIP(*vision, 77, 49408, 512, 8, 12).state_dict()
        found[name] = np.array(sorted(f"{key} {tuple(value.shape)}" for key, value in state.items()), dtype=str)
    return found


def _zero_shot_parts(code: types.SimpleNamespace, folder: Path) -> tuple:
    code.zero_shot.load_clip = lambda *_, **__: small_model(code, folder)
    return code.zero_shot.make(model_path="small.pt", cxr_filepath=str(folder / "cxr.h5"))


def zero_shot(code: types.SimpleNamespace, folder: Path) -> dict:
    import numpy as np

    from chexzero.common.labels import LABELS
    from tests.parity.inputs import ALTERNATIVES, TEMPLATES

    model, loader = _zero_shot_parts(code, folder)
    weights = code.zero_shot.zeroshot_classifier(LABELS, list(TEMPLATES), model)
    single = code.zero_shot.run_single_prediction(LABELS, "{}", model, loader, softmax_eval=False)
    names, index = code.zero_shot.process_alt_labels(ALTERNATIVES, LABELS)
    y_true = np.tile(np.eye(2, dtype=int).repeat(7, axis=1), (4, 1))  # both classes in every column
    results, alternatives = code.zero_shot.run_experiment(
        model, LABELS, [("{}", "no {}")], loader, y_true, alt_labels_dict=ALTERNATIVES, use_bootstrap=False
    )
    return {
        "pair": code.zero_shot.run_softmax_eval(model, loader, LABELS, ("{}", "no {}")),
        "single": single,
        "classifier": np.asarray(weights),
        "cosines": code.zero_shot.predict(loader, model, weights),
        "alternatives": alternatives,
        "areas": results[0].to_numpy(),
        "names": np.array(names, dtype=str),
        "index": np.array([index[name] for name in names]),
    }


def training(code: types.SimpleNamespace, folder: Path) -> dict:
    import numpy as np
    import torch

    from tests.parity.inputs import RATES, STEPS

    images, texts = _batch(code, folder)
    found = {}
    for name, rate in RATES.items():
        model = small_model(code, folder).train()
        optimizer = (
            torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
            if name == "sgd"
            else torch.optim.AdamW(model.parameters(), lr=rate)
        )
        criterion, device = torch.nn.CrossEntropyLoss(), torch.device("cpu")
        batch = code.train.preprocess_text(texts, model)
        found[name] = np.array(
            [
                float(code.run_train.train_batch(images, batch, model, device, criterion, optimizer))
                for _ in range(STEPS)
            ]
        )
    return found


def areas(code: types.SimpleNamespace, folder: Path) -> dict:
    import numpy as np

    from chexzero.common.labels import LABELS

    with np.load(folder / "evaluation.npz") as arrays:
        y_true, y_pred = arrays["y_true"], arrays["y_pred"]
    samples, intervals = code.eval.bootstrap(y_pred, y_true, LABELS, n_samples=200)
    curves = [np.concatenate(code.eval.plot_roc(y_pred[:, i], y_true[:, i], "ROC")[:2]) for i in range(len(LABELS))]
    points = [
        code.eval.choose_operating_point(*code.eval.plot_roc(y_pred[:, i], y_true[:, i], "ROC")[:3])
        for i in range(len(LABELS))
    ]
    return {
        "areas": code.eval.evaluate(y_pred, y_true, LABELS).to_numpy(),
        "samples": samples.to_numpy(),
        "intervals": intervals.to_numpy(),
        "curves": np.concatenate(curves),
        "points": np.array(points),
    }


def thresholds(code: types.SimpleNamespace, folder: Path) -> dict:
    import numpy as np
    from sklearn.metrics import f1_score

    from chexzero.common.labels import LABELS

    with np.load(folder / "evaluation.npz") as arrays:
        y_true, y_pred = arrays["y_true"], arrays["y_pred"]
    mcc = code.metrics.get_best_p_vals(y_pred, y_true, LABELS)
    f1 = code.metrics.get_best_p_vals(y_pred, y_true, LABELS, metric_func=f1_score)
    return {"mcc": np.array([mcc[label] for label in LABELS]), "f1": np.array([f1[label] for label in LABELS])}


def _outcome(call: Callable, *, name: bool = False) -> str:
    """Return `works`, or `stops`, or with `name` the name of the error's class."""
    try:
        call()
    except Exception as error:
        return type(error).__name__ if name else "stops"
    return "works"


def differences(code: types.SimpleNamespace, folder: Path) -> dict:
    """One word per input of docs/UPSTREAM.md's list of different behaviour: how this side handles it."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    from chexzero.common.labels import LABELS
    from tests.parity.inputs import ALTERNATIVES

    model, loader = _zero_shot_parts(code, folder)
    with np.load(folder / "evaluation.npz") as arrays:
        y_true, y_pred = arrays["y_true"], arrays["y_pred"]
    rows = len(loader.dataset)
    truth = np.array([np.roll(np.arange(rows) < rows // 2, j) for j in range(len(LABELS))]).T.astype(int)
    results, scores = code.zero_shot.run_experiment(
        model, LABELS, [("{}", "no {}")], loader, truth, alt_labels_dict=ALTERNATIVES, use_bootstrap=False
    )
    names, index = code.zero_shot.process_alt_labels(ALTERNATIVES, LABELS)
    got, scores = results[0].to_numpy().ravel(), np.asarray(scores)
    of_own = [roc_auc_score(truth[:, index[name]], scores[:, i]) for i, name in enumerate(names)]

    (folder / "latin1").mkdir(exist_ok=True)
    report = folder / "latin1" / "p10" / "p10000001" / "s1.txt"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_bytes("IMPRESSION: Caf\u00e9 au lait.".encode("latin1"))
    write = functools.partial(
        code.data_process.write_report_csv,
        ["x/p10/p10000001/s1/1.jpg"],
        f"{folder}/latin1/",
        str(folder / "latin1.csv"),
    )
    more = np.column_stack([y_pred, y_pred[:, :1]])
    return {
        "long_prompt": _outcome(lambda: code.zero_shot.zeroshot_classifier(LABELS[:2], ["{} " + "heart " * 99], model)),
        "alternatives": "own label" if np.allclose(got, of_own) else "in order",
        "latin1_report": _outcome(write, name=True),
        "extra_columns": _outcome(lambda: code.metrics.get_best_p_vals(more, y_true, LABELS)),
        "missing_table": _outcome(
            lambda: code.train.load_data(str(folder / "cxr.h5"), str(folder / "nowhere.csv"), column="impression"),
            name=True,
        ),
    }


CHECKS: dict[str, Callable] = {
    "preprocessing": preprocessing,
    "tokens": tokens,
    "impressions": impressions,
    "new_model": new_model,
    "logits": logits,
    "checkpoint": checkpoint,
    "training": training,
    "zero_shot": zero_shot,
    "areas": areas,
    "thresholds": thresholds,
    "differences": differences,
}


def run(side: str, folder: Path, checkout: str | None = None) -> tuple[dict, dict[str, str]]:
    """Run every check of one side: `{"check/array": values}`, and `{check: error}` for those that failed."""
    import numpy as np
    import torch

    torch.set_num_threads(1)  # so that sums have one order
    code = import_side(side, checkout)
    results, errors = {}, {}
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        try:
            with redirect_stdout(io.StringIO()):
                found = check(code, folder)
            results |= {f"{name}/{key}": np.asarray(value) for key, value in found.items()}
        except Exception:  # one check that cannot run must not hide the others
            errors[name] = traceback.format_exc(limit=-2)
    return results, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["ours", "upstream"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkout", nargs="?")
    args = parser.parse_args()
    results, errors = run(args.side, args.folder.resolve(), args.checkout)

    import numpy as np

    np.savez(args.folder / f"{args.side}.npz", **results)
    (args.folder / f"{args.side}_errors.json").write_text(json.dumps(errors), encoding="utf-8")


if __name__ == "__main__":
    main()
