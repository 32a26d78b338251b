"""Upstream's functions against ours: kept, changed, left out or new, and why: the source of `docs/UPSTREAM.md`."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Upstream's file -> our module; None if the file has no counterpart.
MODULES = {
    "run_train.py": "run_train",
    "train.py": "chexzero.train",
    "zero_shot.py": "chexzero.zero_shot",
    "eval.py": "chexzero.eval",
    "metrics.py": "chexzero.metrics",
    "data_process.py": "chexzero.data_process",
    "model.py": "chexzero.model",
    "clip.py": "chexzero.clip",
    "simple_tokenizer.py": "chexzero.simple_tokenizer",
    "run_preprocess.py": None,
    "preprocess_padchest.py": "chexzero.preprocess_padchest",
}

_TOWERS = "open_clip's towers, with the same keys and logits"
_TOKENIZER = "open_clip's tokenizer, which gives the same tokens"
_PADCHEST = "`python -m data_prep evaluation-set padchest` does the steps one after the other, with paths as arguments"

#: (upstream's file, name) -> why a function is changed or left out.
REASONS = {
    ("run_train.py", "parse_args"): "`argv` can be given, and settings also come from `--config`",
    ("run_train.py", "train_log"): "`progress` is the rest of the printed line",
    ("train.py", "CXRDataset"): "the training command cuts its tokens at `context_length`",
    ("train.py", "load_data"): "`plan` gives the training command's batches, which `num_workers` processes read",
    ("train.py", "load_clip"): "`vision` and further options choose other towers",
    ("model.py", "CLIP"): "`visual` replaces OpenAI's image tower, for instance with DINOv3; `logit_bias` is SigLIP's",
    ("clip.py", "tokenize"): "`truncate`, as in OpenAI's later CLIP; without it a long text still raises",
    ("eval.py", "compute_mean"): "the five labels, fixed in upstream, are a default",
    ("metrics.py", "compute_f1"): "the number of resamples, fixed in upstream, is a default",
    ("metrics.py", "compute_mcc"): "the number of resamples, fixed in upstream, is a default",
    ("zero_shot.py", "make"): "images are encoded in batches; upstream's loader yields one at a time",
    ("zero_shot.py", "run_cxr_zero_shot"): "the files and labels, fixed in upstream, are defaults",
    ("data_process.py", "load_data"): "reads a CSV with pandas; `get_cxr_paths_list` returns its column",
    ("data_process.py", "get_files"): "`get_cxr_path_csv` lists the same files",
    ("data_process.py", "section_start"): "one function, `extract_impression`, finds the section",
    ("data_process.py", "section_end"): "one function, `extract_impression`, finds the section",
    ("data_process.py", "getIndexOfLast"): "one function, `extract_impression`, finds the section",
    ("eval.py", "accuracy"): "top-k accuracy has no meaning for 14 labels that are independent",
    ("metrics.py", "evaluate_model"): "`zero_shot.run_zero_shot` does the same with every file as an argument",
    ("metrics.py", "compute_f1_mcc"): "`run_zero_shot.py` applies thresholds from the validation set to the test set",
    ("zero_shot.py", "validation_zero_shot"): "stops with a NameError in upstream",
    ("model.py", "convert_weights"): "models stay float32; autocast lowers the precision on request",
    ("model.py", "CLIP.initialize_parameters"): "done when a tower is built, with the same distributions",
    ("model.py", "CLIP.build_attention_mask"): "part of open_clip's text tower",
    **{
        ("model.py", name): _TOWERS
        for name in (
            "Bottleneck",
            "AttentionPool2d",
            "ModifiedResNet",
            "LayerNorm",
            "QuickGELU",
            "ResidualAttentionBlock",
            "Transformer",
            "VisualTransformer",
        )
    },
    **{
        ("simple_tokenizer.py", name): _TOKENIZER
        for name in ("default_bpe", "bytes_to_unicode", "get_pairs", "basic_clean", "whitespace_clean")
    },
    ("run_preprocess.py", "parse_args"): "`python -m data_prep mimic` and `chexpert-test` have its flags",
    ("preprocess_padchest.py", "preprocess_data"): _PADCHEST,
    ("preprocess_padchest.py", "write_h5"): "`img_to_h5` writes to the given path",
}

#: Functions with the same name and other behaviour: (where, upstream, here and why).
BEHAVIOUR = [
    (
        "preprocess_padchest.extract_filenames",
        "The first and last two lines of the listing are dropped.",
        "Lines that name a file (size, date, time, name) are used, wherever they are.",
    ),
    (
        "preprocess_padchest.img_to_h5",
        "The number of images is fixed; float32.",
        "All readable images; uint8. A warning names each unreadable file.",
    ),
    (
        "data_process.img_to_hdf5",
        "An image that fails is caught and its row stays black.",
        "The failures are listed and nothing is written: a black test set gives an AUROC of 0.5 for every label.",
    ),
    (
        "data_process.img_to_hdf5",
        "float32, one block.",
        "uint8, one chunk per image: the values are whole numbers 0..255, so nothing is lost at a quarter of the size.",
    ),
    (
        "data_process.get_cxr_path_csv",
        "Paths in the order of the file system.",
        "Paths are sorted, so that two machines write the same rows.",
    ),
    (
        "data_process.preprocess",
        "A grey source is read in colour, resized in three channels and converted.",
        "One channel is resized: the same bytes for a third of the work.",
    ),
    (
        "model.build_model",
        "The weights become float16.",
        "The weights become float32; the commands' `--precision` lowers the precision by autocast where that is safe.",
    ),
    (
        "clip.load",
        "`jit=True` runs the code of the archive.",
        "Only tensors are read, with either value of `jit`: no code from a weight file is run.",
    ),
    (
        "clip.load",
        "The returned transform is for photographs.",
        "The same; use `chexzero.imaging.normalise.prepare` for radiographs.",
    ),
    (
        "clip.tokenize",
        "A text that is too long raises RuntimeError.",
        "It raises an error that names the row, both a UserError and a RuntimeError.",
    ),
    (
        "train.load_clip, zero_shot.load_clip",
        "`pretrained` says which architecture the file must have.",
        "The shapes in the file determine it; the error for a file that does not fit names the file and the keys "
        "that differ.",
    ),
    (
        "train.CXRDataset",
        "Rows are paired by position even if their numbers differ; a text that reads NA, None or null becomes a space.",
        "Rows must match the images, by id if both have ids; only an empty cell is a missing text.",
    ),
    ("train.train_main", "Stops with a NameError before the first step.", "Trains with SGD and writes the state dict."),
    (
        "run_train.py --seed",
        "Parsed and not used.",
        "The random seed for weights and batch order: the same seed gives the same numbers.",
    ),
    (
        "run_train.py --txt_filepath",
        "Default data/mimic_impressions.csv.",
        "Default data/impressions.csv, which `data_prep` writes; upstream's file is used if only it exists.",
    ),
    (
        "run_preprocess.py",
        "Folders of one cluster are the defaults; chexpert-test writes to data/cxr.h5 like mimic.",
        "The folders must be named; chexpert-test writes to data/test_cxr.h5, so that it overwrites no training set.",
    ),
    (
        "zero_shot.predict and all that use it",
        "Every image is encoded once per prompt, one at a time, on a GPU.",
        "Every image is encoded once, in batches, on any device; the predictions do not depend on it.",
    ),
    (
        "zero_shot.run_zero_shot",
        "Black images are evaluated.",
        "Images of one grey value are refused, and so are labels whose rows do not match the images.",
    ),
    (
        "zero_shot.ensemble_models",
        "Cached predictions are always used, even if another model made them.",
        "A file beside the cache records the model, images, labels and prompts; if one of them changed, predictions "
        "are recomputed.",
    ),
    (
        "eval.evaluate",
        "Columns of labels and predictions are paired by position, extra ones ignored.",
        "One column per label on both sides, or `label_idx_map`; labels must be 0 or 1 and predictions finite.",
    ),
    (
        "eval.compute_cis",
        "Undefined resamples (one class only) count, so the upper end can be NaN; with fewer than 40 resamples the "
        "lower end is the largest value.",
        "Undefined resamples are left out; with fewer than 40 the lower end is the smallest value.",
    ),
    (
        "metrics.f1_mcc_bootstrap",
        "Resamples are not seeded, so intervals differ from run to run.",
        "Resample i has the seed i, as in `eval.bootstrap`.",
    ),
    (
        "metrics.compute_f1, metrics.compute_mcc",
        "The row `mean` is the average of the resamples; without all five competition labels: KeyError.",
        "The row `mean` is the value on the set itself, which the paper reports (the radiologists' MCC is 0.530, the "
        "average of its resamples 0.528); `Mean` is over those of the five labels that are present.",
    ),
    (
        "zero_shot.zeroshot_classifier and all prompts",
        "A prompt of more than 77 tokens stops with an error.",
        "It is cut to 77 tokens, and a warning names the first such prompt.",
    ),
    (
        "zero_shot.run_experiment",
        "With `use_bootstrap=False`, alternative names are scored against the label columns in order.",
        "Each name is scored against its own label's column, with and without the bootstrap.",
    ),
    (
        "data_process.write_report_csv",
        "A report that is not UTF-8 stops with UnicodeDecodeError.",
        "Bytes that are not UTF-8 become the replacement character.",
    ),
    (
        "metrics.get_best_p_vals",
        "Extra columns of predictions or labels are ignored.",
        "One column per label on both sides, as in `eval.evaluate`; else an error says how many there are.",
    ),
    (
        "errors of all functions",
        "KeyError, IndexError, FileNotFoundError and others, raised wherever the mistake has its effect.",
        "`common.errors.UserError`, a ValueError, whose one sentence names the file, the row and the remedy; "
        "`clip.ClipError` is also a RuntimeError.",
    ),
]


@dataclass
class Difference:
    """One function: `status` is kept, changed, left out or new; signatures are text, "" where there is none."""

    file: str
    name: str
    status: str
    upstream: str = ""
    ours: str = ""
    reason: str = ""


Signature = list[list]  # [argument] or [argument, default], the default a literal or {"code": text}


def upstream_signatures(checkout: Path) -> dict[str, dict[str, Signature]]:
    """Public functions, classes and methods of upstream's files, read from their text; nothing is run."""
    return {file: dict(_definitions(ast.parse((checkout / file).read_text(encoding="utf-8")).body)) for file in MODULES}


def _definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Signature]]:
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, _arguments(node, is_method=bool(prefix))
        elif isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            start = [_arguments(item, is_method=True) for item in methods if item.name == "__init__"]
            yield node.name, start[0] if start else []
            if node.name in ("CLIP", "SimpleTokenizer"):  # the classes whose methods are an interface
                yield from _definitions(node.body, f"{node.name}.")


def _arguments(node: ast.FunctionDef, is_method: bool) -> Signature:
    names = [argument.arg for argument in node.args.args]
    required = len(names) - len(node.args.defaults)
    listed = [
        [name] if i < required else [name, _literal(node.args.defaults[i - required])] for i, name in enumerate(names)
    ]
    return listed[1:] if is_method else listed


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return {"code": ast.unparse(node)}


def our_signature(module: Any, name: str) -> Signature | None:
    """Return the signature of `name` (or `Class.method`) if it is defined in our own code, else None."""
    found = module
    origin = getattr(getattr(module, name.split(".")[0], None), "__module__", None) or ""
    if origin != module.__name__ and not origin.startswith("chexzero."):
        return None
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, property):
        return []
    if found is None:
        return None
    parameters = [
        one
        for one in inspect.signature(found).parameters.values()
        if one.name != "self" and one.kind is not one.VAR_KEYWORD
    ]
    return [[one.name] if one.default is one.empty else [one.name, one.default] for one in parameters]


def compare(upstream: dict[str, dict[str, Signature]]) -> list[Difference]:
    """Compare every public function of upstream's modules, then list our new ones, module by module."""
    found = []
    for file, module_name in MODULES.items():
        module = importlib.import_module(module_name) if module_name else None
        for name, theirs in upstream[file].items():
            ours = our_signature(module, name) if module else None
            status = "left out" if ours is None else "kept" if _same(theirs, ours) else "changed"
            found.append(
                Difference(
                    file,
                    name,
                    status,
                    text(theirs),
                    "" if ours is None else text(ours),
                    "" if status == "kept" else REASONS.get((file, name), ""),
                )
            )
        found.extend(_new(file, module, upstream[file]) if module else [])
    return found


def _new(file: str, module: Any, upstream: dict[str, Signature]) -> Iterator[Difference]:
    for name, value in vars(module).items():
        is_own = callable(value) and getattr(value, "__module__", None) == module.__name__ and inspect.getdoc(value)
        if is_own and not name.startswith("_") and name not in upstream:
            yield Difference(file, name, "new", reason=inspect.getdoc(value).splitlines()[0])


def _same(theirs: Signature, ours: Signature) -> bool:
    """Whether names, order and defaults are equal; for a default that upstream computes, ours only has to exist."""
    if [one[0] for one in theirs] != [one[0] for one in ours]:
        return False
    return all(
        len(a) == len(b) and (len(a) == 1 or isinstance(a[1], dict) and "code" in a[1] or a[1] == b[1])
        for a, b in zip(theirs, ours, strict=True)
    )


def text(signature: Signature) -> str:
    """Return a signature as source text."""
    return "(" + ", ".join(one[0] if len(one) == 1 else f"{one[0]}={_default(one[1])}" for one in signature) + ")"


def _default(value: Any) -> str:
    if isinstance(value, dict) and "code" in value:
        return value["code"]
    return getattr(value, "__name__", None) or repr(value)


def unexplained(differences: list[Difference]) -> list[Difference]:
    """Changes and omissions for which no reason is recorded."""
    return [one for one in differences if one.status in ("changed", "left out") and not one.reason]


def markdown(differences: list[Difference]) -> str:
    """The text of `docs/UPSTREAM.md`."""
    kept = {
        file: [f"`{one.name}`" for one in differences if one.file == file and one.status == "kept"] for file in MODULES
    }
    lines = [
        "# What differs from CheXzero",
        "",
        "Written by `python -m tests.parity CHECKOUT --docs docs/UPSTREAM.md`; a test checks that it "
        "is up to date. The same command runs both implementations on the same inputs and prints the largest "
        "difference of each result.",
        "",
        "## Kept: same names, arguments, order and defaults",
        "",
        "| upstream | here | functions |",
        "|---|---|---|",
        *(f"| `{file}` | `{MODULES[file]}` | {', '.join(names)} |" for file, names in kept.items() if names),
        "",
        "## Changed signatures",
        "",
        "| function | upstream | here | why |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{one.file}` `{one.name}` | `{one.upstream}` | `{one.ours}` | {one.reason} |"
        for one in differences
        if one.status == "changed"
    ]
    lines += ["", "## Left out", "", "| function | why |", "|---|---|"]
    lines += [f"| `{one.file}` `{one.name}` | {one.reason} |" for one in differences if one.status == "left out"]
    lines += ["", "## Same name, different behaviour", "", "| where | upstream | here, and why |", "|---|---|---|"]
    lines += [f"| `{where}` | {theirs} | {ours} |" for where, theirs, ours in BEHAVIOUR]
    return "\n".join(lines) + "\n"
