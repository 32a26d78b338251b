"""Upstream's zero-shot functions. Images are encoded once whatever the number of labels, templates and names.

`run_zero_shot.py` is the evaluation command; these functions are for use from Python, with upstream's arguments and
results. Probabilities are exp(p) / (exp(p) + exp(n)) of the plain cosines with a pair of prompts.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from chexzero.clip import CONTEXT_LENGTH
from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, read_json, read_table, safe_name, write_json
from chexzero.common.formats import check_rows, read_labels
from chexzero.common.labels import LABELS
from chexzero.eval import bootstrap, evaluate, sigmoid
from chexzero.evaluation.inference import class_embeddings, pair_probabilities
from chexzero.evaluation.predictions import check_images
from chexzero.model import CLIP
from chexzero.models.checkpoints import load_model
from chexzero.train import ImageRows, best_device, check_context, image_transform

log = logging.getLogger(__name__)

PAIR_TEMPLATE = ("{}", "no {}")
Result = pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]


class CXRTestDataset(Dataset):
    """Radiographs of an HDF5 file: `{"img": float32 (3, H, W), 0..255}`, or what `transform` makes of that."""

    def __init__(self, img_path: str | os.PathLike, transform: Callable | None = None):
        self.images = ImageRows(img_path)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        image = self.images[range(len(self))[idx]]
        return {"img": self.transform(image) if self.transform else image}


def load_clip(model_path: str | os.PathLike, pretrained: bool = False, context_length: int = CONTEXT_LENGTH) -> CLIP:
    """Load a checkpoint strictly: float32, eval mode, on the CPU.

    The file says by its shapes which model it is, so `pretrained` (upstream: ViT-B/32 or ViT-B/16) does not matter.
    Raises `UserError` that says which model the file is and which keys differ.
    """
    model = load_model(model_path)
    check_context(model, context_length)
    return model


def zeroshot_classifier(
    classnames: Sequence[str], templates: Sequence[str], model: CLIP, context_length: int = CONTEXT_LENGTH
) -> torch.Tensor:
    """Weights of a zero-shot classifier: float32 (D, len(classnames)), columns of length 1, on the model's device.

    Each template's feature is normalised, then the templates' mean is normalised again.
    """
    check_context(model, context_length)
    weights = class_embeddings(model, classnames, templates)
    return torch.from_numpy(weights.T.copy()).to(_device(model))


def predict(
    loader: Iterable[Mapping[str, torch.Tensor]],
    model: CLIP,
    zeroshot_weights: torch.Tensor,
    softmax_eval: bool = True,
    verbose: int = 0,
) -> np.ndarray:
    """Scores (N, L), float32: the cosines, or with `softmax_eval=False` their standing among the labels, in 0..1.

    loader: batches with prepared images (B, 3, R, R) under `img`. zeroshot_weights: (D, L). With
    `softmax_eval=False` each image's cosines are standardised over the labels (population standard deviation), then
    go through the logistic function. `verbose` shows progress.
    """
    features = _image_features(model, loader, bool(verbose))
    return _scores(features, zeroshot_weights.float().cpu().numpy(), softmax_eval)


def run_single_prediction(
    cxr_labels: Sequence[str],
    template: str,
    model: CLIP,
    loader: Iterable,
    softmax_eval: bool = True,
    context_length: int = CONTEXT_LENGTH,
) -> np.ndarray:
    """`predict` with one template per label: (N, len(cxr_labels))."""
    weights = zeroshot_classifier(cxr_labels, [template], model, context_length)
    return predict(loader, model, weights, softmax_eval)


def process_alt_labels(
    alt_labels_dict: Mapping[str, Sequence[str]] | None, cxr_labels: Sequence[str]
) -> tuple[list[str], dict[str, int]] | tuple[None, None]:
    """Labels with their alternative names, and which column of the truth each belongs to.

    `{"Edema": ["fluid"]}` gives `(["Edema", "fluid"], {"Edema": i, "fluid": i})` with i the place of Edema in
    `cxr_labels`; labels without an entry are left out. None gives `(None, None)`.
    """
    if alt_labels_dict is None:
        return None, None
    unknown = [label for label in alt_labels_dict if label not in cxr_labels]
    if unknown:
        raise UserError(f"alternative names are given for {', '.join(unknown)}, which are no labels; add them")
    index = {
        name: list(cxr_labels).index(label) for label, names in alt_labels_dict.items() for name in (label, *names)
    }
    return list(index), index


def run_softmax_eval(
    model: CLIP,
    loader: Iterable,
    eval_labels: Sequence[str],
    pair_template: tuple[str, str],
    context_length: int = CONTEXT_LENGTH,
) -> np.ndarray:
    """Probabilities (N, len(eval_labels)) from a pair of prompts, e.g. `("{}", "no {}")`."""
    check_context(model, context_length)
    return _pair_scores(model, _image_features(model, loader), eval_labels, pair_template)


def run_experiment(
    model: CLIP,
    cxr_labels: Sequence[str],
    cxr_templates: Sequence[str | tuple[str, str]],
    loader: Iterable,
    y_true: np.ndarray,
    alt_labels_dict: Mapping[str, Sequence[str]] | None = None,
    softmax_eval: bool = True,
    context_length: int = CONTEXT_LENGTH,
    use_bootstrap: bool = True,
) -> tuple[list[Result], np.ndarray]:
    """Evaluate each template: `(one result a template, the last template's predictions (N, L))`.

    cxr_templates: pairs, or with `softmax_eval=False` single templates. y_true: (N, len(cxr_labels)), 0 or 1. A
    result is `bootstrap`'s pair of frames, or `evaluate`'s frame with `use_bootstrap=False`.
    """
    check_context(model, context_length)
    names, index = process_alt_labels(alt_labels_dict, cxr_labels)
    eval_labels = list(cxr_labels) if names is None else names
    _check_templates(cxr_templates, softmax_eval)
    features = _image_features(model, loader)
    if len(features) != len(y_true):
        raise UserError(f"there are {len(features)} images but {len(y_true)} rows of labels; give one row an image")
    results = []
    for template in cxr_templates:
        if softmax_eval:
            y_pred = _pair_scores(model, features, eval_labels, template)
        else:
            y_pred = _scores(features, class_embeddings(model, eval_labels, [template]).T, softmax_eval)
        score = bootstrap if use_bootstrap else evaluate
        results.append(score(y_pred, y_true, eval_labels, label_idx_map=index))
    return results, y_pred


def make_true_labels(
    cxr_true_labels_path: str | os.PathLike, cxr_labels: Sequence[str], cutlabels: bool = True
) -> np.ndarray:
    """Read labels from a CSV: float64 (N, L), each 0 or 1.

    With `cutlabels` the columns `cxr_labels`, by name and in their order; without, every column but the first in the
    file's order. Raises `UserError` for a missing column or another value.
    """
    if not cutlabels:
        cxr_labels = list(read_table(cxr_true_labels_path).columns[1:])
    return read_labels(cxr_true_labels_path, list(cxr_labels))[1]


def make(
    model_path: str | os.PathLike,
    cxr_filepath: str | os.PathLike,
    pretrained: bool = True,
    context_length: int = CONTEXT_LENGTH,
    batch_size: int = 64,
) -> tuple[CLIP, DataLoader]:
    """The model, on the GPU where there is one, and a loader of images prepared for its resolution, in file order."""
    model = load_clip(model_path=model_path, pretrained=pretrained, context_length=context_length).to(best_device())
    dataset = CXRTestDataset(cxr_filepath, transform=image_transform(model.image_resolution))
    return model, DataLoader(dataset, batch_size=batch_size, shuffle=False)


def ensemble_models(
    model_paths: Sequence[str | os.PathLike],
    cxr_filepath: str | os.PathLike,
    cxr_labels: Sequence[str],
    cxr_pair_template: tuple[str, str],
    cache_dir: str | os.PathLike | None = None,
    save_name: str | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Probabilities of each model, in the order of the sorted paths, and their mean: `(list of (N, L), (N, L))`.

    With `cache_dir` each model's predictions are kept as `<save_name>_<file's stem>.npy` (`<stem>.npy` without a
    name) and taken from there next time, unless the model, images, labels or prompts noted beside them
    (`.json`) have changed. A file of upstream's, which notes nothing, is taken when its shape fits.
    """
    predictions = []
    for path in sorted(map(str, model_paths)):
        if cache_dir is None:
            predictions.append(_predict_file(path, cxr_filepath, cxr_labels, cxr_pair_template))
            continue
        stem = Path(path).stem if save_name is None else f"{save_name}_{Path(path).stem}"
        cache = Path(cache_dir) / f"{safe_name(stem, 'name of the cached predictions')}.npy"
        origin = {
            "model": _stamp(path),
            "images": _stamp(cxr_filepath),
            "labels": list(cxr_labels),
            "template": list(cxr_pair_template),
        }
        y_pred = _read_cache(cache, origin, (len(ImageRows(cxr_filepath)), len(cxr_labels)))
        if y_pred is None:
            y_pred = _predict_file(path, cxr_filepath, cxr_labels, cxr_pair_template)
            _write_cache(cache, origin, y_pred)
        predictions.append(y_pred)
    if not predictions:
        raise UserError("no models were given to ensemble; name at least one checkpoint")
    return predictions, np.mean(predictions, axis=0)


def run_zero_shot(
    cxr_labels: Sequence[str],
    cxr_templates: Sequence[str | tuple[str, str]],
    model_path: str | os.PathLike,
    cxr_filepath: str | os.PathLike,
    final_label_path: str | os.PathLike,
    alt_labels_dict: Mapping[str, Sequence[str]] | None = None,
    softmax_eval: bool = True,
    context_length: int = CONTEXT_LENGTH,
    pretrained: bool = False,
    use_bootstrap: bool = True,
    cutlabels: bool = True,
) -> tuple[list[Result], np.ndarray]:
    """Load a model, predict `cxr_filepath` and score against the CSV `final_label_path`; see `run_experiment`."""
    y_true = make_true_labels(final_label_path, cxr_labels, cutlabels)
    check_rows(cxr_filepath, final_label_path, read_table(final_label_path))
    check_images(Path(cxr_filepath))
    model, loader = make(
        model_path=model_path, cxr_filepath=cxr_filepath, pretrained=pretrained, context_length=context_length
    )
    return run_experiment(
        model,
        cxr_labels,
        cxr_templates,
        loader,
        y_true,
        alt_labels_dict=alt_labels_dict,
        softmax_eval=softmax_eval,
        context_length=context_length,
        use_bootstrap=use_bootstrap,
    )


def run_cxr_zero_shot(
    model_path: str | os.PathLike,
    context_length: int = CONTEXT_LENGTH,
    pretrained: bool = False,
    cxr_filepath: str | os.PathLike = "data/test.h5",
    final_label_path: str | os.PathLike = "data/test_labels.csv",
    cxr_labels: Sequence[str] = LABELS,
) -> tuple[Sequence[str], list[Result]]:
    """The 14 labels with `("{}", "no {}")`, without bootstrap: `(labels, [evaluate's frame])`.

    The two files, fixed in upstream, default to what `data_prep` writes.
    """
    results, _ = run_zero_shot(
        cxr_labels,
        [PAIR_TEMPLATE],
        model_path,
        cxr_filepath=cxr_filepath,
        final_label_path=final_label_path,
        softmax_eval=True,
        context_length=context_length,
        pretrained=pretrained,
        use_bootstrap=False,
        cutlabels=True,
    )
    return cxr_labels, results


def _device(model: CLIP) -> torch.device:
    return next(model.parameters()).device


@torch.inference_mode()
def _image_features(model: CLIP, loader: Iterable[Mapping[str, torch.Tensor]], progress: bool = False) -> np.ndarray:
    was_training = model.training
    model.eval()
    features = [
        functional.normalize(model.encode_image(batch["img"].to(_device(model))).float(), dim=-1).cpu()
        for batch in tqdm(loader, unit="batch", disable=not progress)
    ]
    model.train(was_training)
    if not features:
        raise UserError("the loader gave no images; name a file that has some")
    return torch.cat(features).numpy()


def _scores(features: np.ndarray, weights: np.ndarray, softmax_eval: bool) -> np.ndarray:
    cosines = features @ weights
    if softmax_eval:
        return cosines
    deviation = cosines.std(axis=1, keepdims=True)
    if not deviation.all():
        raise UserError(
            "the cosines of an image are equal for all labels, so they cannot be standardised; give at "
            "least two different labels"
        )
    return sigmoid((cosines - cosines.mean(axis=1, keepdims=True)) / deviation)


def _pair_scores(model: CLIP, features: np.ndarray, labels: Sequence[str], template: tuple[str, str]) -> np.ndarray:
    positive, negative = (class_embeddings(model, labels, [one]) for one in template)
    return pair_probabilities(features, positive, negative)


def _check_templates(templates: Sequence[str | tuple[str, str]], softmax_eval: bool) -> None:
    if not templates:
        raise UserError("no template was given; name at least one")
    for template in templates:
        is_pair = not isinstance(template, str) and len(template) == 2
        if softmax_eval != is_pair:
            wanted = "a pair such as ('{}', 'no {}')" if softmax_eval else "one text such as '{}'"
            raise UserError(f"with softmax_eval={softmax_eval} a template is {wanted}, not {template!r}; change one")


def _predict_file(
    model_path: str, cxr_filepath: str | os.PathLike, labels: Sequence[str], template: tuple[str, str]
) -> np.ndarray:
    log.info("predicting %s with %s", cxr_filepath, model_path)
    model, loader = make(model_path, cxr_filepath)
    return run_softmax_eval(model, loader, labels, template)


def _stamp(path: str | os.PathLike) -> list:
    """Path, size and time of a file: enough to see that it is another one."""
    path = Path(path)
    stat = path.stat() if path.exists() else None
    return [str(path.resolve()), stat and stat.st_size, stat and stat.st_mtime_ns]


def _read_cache(cache: Path, origin: dict, shape: tuple[int, int]) -> np.ndarray | None:
    note = cache.with_suffix(".json")
    if not cache.exists() or (note.exists() and read_json(note) != origin):
        return None
    try:
        y_pred = np.load(cache, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{cache} is not a whole .npy file ({error}); delete it") from error
    return y_pred if y_pred.shape == shape else None


def _write_cache(cache: Path, origin: dict, y_pred: np.ndarray) -> None:
    cache.unlink(missing_ok=True)  # first, so that no old predictions ever lie beside the new note
    write_json(cache.with_suffix(".json"), origin)
    with atomic_path(cache) as temporary, open(temporary, "wb") as handle:
        np.save(handle, y_pred)
