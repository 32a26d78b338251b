"""Zero-shot evaluation: every image and every text is encoded once, whatever the number of labels and templates.

Upstream's functions with upstream's arguments and results; `run_zero_shot.py`, validation during training, the suites
and the library use them. A probability is exp(p) / (exp(p) + exp(n)) of the plain cosines p and n with a pair of
prompts.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from chexzero.clip import CONTEXT_LENGTH, tokenize, trim_padding
from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, read_json, read_table, safe_name, sha256_of, write_json
from chexzero.common.formats import check_images, check_rows, grey_images, open_images, read_labels
from chexzero.common.labels import LABELS, PAIR_TEMPLATE
from chexzero.eval import bootstrap, evaluate, sigmoid
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP, PRECISIONS, pick_device
from chexzero.models.checkpoints import load_model
from chexzero.train import ImageRows, check_context, image_transform

log = logging.getLogger(__name__)

Floats = NDArray[np.floating]
Result = pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]
#: The texts that name a finding, and those that deny it. The features of each side are averaged; without a denial the
#: probability is the logistic function of the cosine with the other side.
Pair = tuple[Sequence[str], Sequence[str]]

#: Part of a cache's key; raise it when the computation from image to probability changes.
CACHE_VERSION = 3

#: Features (of length 1, float32) that differ by less than this are equal up to rounding.
SAME_FEATURES = 1e-7


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

    The shapes in the file determine the model, so `pretrained` (upstream: ViT-B/32 or ViT-B/16) is ignored. Raises
    `UserError` naming the model in the file and the keys that differ.
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
    texts = [[template.format(name) for template in templates] for name in classnames]
    weights = mean_text_features(partial(embed_texts, model), texts)
    return torch.from_numpy(weights.T.copy()).to(_device(model))


def predict(
    loader: Iterable[Mapping[str, torch.Tensor]],
    model: CLIP,
    zeroshot_weights: torch.Tensor,
    softmax_eval: bool = True,
    verbose: int = 0,
) -> np.ndarray:
    """Scores (N, L), float32: the cosines, or with `softmax_eval=False` values in 0..1 relative to the other labels.

    loader: batches with prepared images (B, 3, R, R) under `img`. zeroshot_weights: (D, L). With
    `softmax_eval=False` each image's cosines are standardised over the labels (population standard deviation), then
    go through the logistic function. `verbose` shows progress.
    """
    features = _loader_features(model, loader, bool(verbose))
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
        raise UserError(f"alternative names are given for {', '.join(unknown)}, which are not labels; add them")
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
    return predict_pairs(model, _loader_features(model, loader), label_pairs(eval_labels, pair_template))


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
    """Evaluate each template: `(one result per template, the last template's predictions (N, L))`.

    cxr_templates: pairs, or with `softmax_eval=False` single templates. y_true: (N, len(cxr_labels)), 0 or 1. A
    result is `bootstrap`'s pair of frames, or `evaluate`'s frame with `use_bootstrap=False`.
    """
    check_context(model, context_length)
    names, index = process_alt_labels(alt_labels_dict, cxr_labels)
    eval_labels = list(cxr_labels) if names is None else names
    _check_templates(cxr_templates, softmax_eval)
    features = _loader_features(model, loader)
    if len(features) != len(y_true):
        raise UserError(f"there are {len(features)} images but {len(y_true)} rows of labels; give one row per image")
    results = []
    for template in cxr_templates:
        if softmax_eval:
            y_pred = predict_pairs(model, features, label_pairs(eval_labels, template))
        else:
            weights = zeroshot_classifier(eval_labels, [str(template)], model, context_length)
            y_pred = _scores(features, weights.cpu().numpy(), softmax_eval)
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
    """The model, on the GPU if there is one, and a loader of images prepared for its resolution, in file order."""
    model = load_clip(model_path=model_path, pretrained=pretrained, context_length=context_length).to(pick_device())
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

    With `cache_dir` each model's predictions are stored as `<save_name>_<file's stem>.npy` (`<stem>.npy` without a
    name) and read from there next time, unless the model, images, labels or prompts recorded beside them (`.json`)
    have changed. A file from upstream, which has no record, is used if its shape fits.
    """
    predictions = []
    for path in sorted(map(str, model_paths)):
        predictor = Predictor(path, cache_dir)
        name = None if cache_dir is None else Path(path).stem if save_name is None else f"{save_name}_{Path(path).stem}"
        predictions.append(predictor.predict(cxr_filepath, label_pairs(cxr_labels, cxr_pair_template), name=name))
    return predictions, ensemble(predictions)


def ensemble(predictions: Sequence[Floats]) -> Floats:
    """Upstream's ensemble: the mean of the members' probabilities."""
    if not predictions:
        raise UserError("no models were given to ensemble; name at least one checkpoint")
    return cast(Floats, np.mean(predictions, axis=0))


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
    check_images(cxr_filepath)
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


def embed_images(
    model: CLIP,
    images: Any,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = False,
    precision: str = "fp32",
) -> NDArray[np.float32]:
    """Encode images once: float32 (N, D), rows of length 1.

    images: an HDF5 dataset, an array, or anything with a length whose slices give (b, H, W), uint8 or float, 0..255.
    Only one batch (and the next, read ahead) is in memory. `device` None is the device the model is on;
    `precision` is one of `fp32, bf16, fp16`. The model's mode is restored afterwards.
    """
    device = torch.device(device) if device is not None else _device(model)
    model.to(device)
    pixels = (
        prepare(batch.to(device, non_blocking=True), model.image_resolution, model.normalisation)
        for batch in _read_ahead(images, batch_size)
    )
    return _encode_images(model, pixels, -(-len(images) // batch_size), precision, progress)


def embed_texts(model: CLIP, texts: Sequence[str], *, batch_size: int = 256) -> NDArray[np.float32]:
    """Encode texts: float32 (T, D), rows of length 1. A text longer than the model's context is cut."""
    features = []
    with _inference(model, "fp32"):
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            tokens = trim_padding(tokenize(batch, model.context_length, truncate=True))
            features.append(functional.normalize(model.encode_text(tokens.to(_device(model))).float(), dim=-1).cpu())
    return torch.cat(features).numpy() if features else np.zeros((0, _embed_dim(model)), np.float32)


def mean_text_features(embed: Callable[[list[str]], Floats], groups: Sequence[Sequence[str]]) -> Floats:
    """One feature per group of texts: (G, D), rows of length 1.

    Upstream's averaging: each text's feature has length 1 and the group's mean is normalised again; a group without
    texts gives 0. `embed` returns the features (T, D) of a list of texts and is called once, with each distinct text
    once.
    """
    texts = list(dict.fromkeys(chain.from_iterable(groups)))
    embedded = embed(texts)
    features = dict(zip(texts, embedded, strict=True))
    none = np.zeros((1, embedded.shape[1]), embedded.dtype)
    means = (np.mean([features[text] for text in group] or none, axis=0) for group in groups)
    return np.stack([mean / (np.linalg.norm(mean) or 1) for mean in means])


def label_pairs(labels: Sequence[str], template: Sequence[str] = PAIR_TEMPLATE) -> list[Pair]:
    """The pair of prompts of each label, for instance `(["Edema"], ["no Edema"])`."""
    return [([template[0].format(label)], [template[1].format(label)]) for label in labels]


def pair_probabilities(image_features: Floats, positive: Floats, negative: Floats) -> Floats:
    """Probability of each label from its pair of prompts: (N, D), (L, D), (L, D) -> (N, L) in 0..1.

    exp(p) / (exp(p) + exp(n)) of the plain cosines p and n, written as the logistic function of p - n. The
    cosines are not multiplied by the logit scale (upstream's choice), so values stay between 0.12 and 0.88. Computed
    in float64: an almost untrained model separates images by less than float32 can represent near 0.5.
    """
    features = np.asarray(image_features, np.float64)
    difference = features @ positive.T - features @ negative.T
    return cast(Floats, 1 / (1 + np.exp(-difference)))


def pair_features(embed: Callable[[list[str]], Floats], pairs: Sequence[Pair]) -> tuple[Floats, Floats]:
    """Features of both sides of each pair, (len(pairs), D) each; see `mean_text_features`."""
    features = mean_text_features(embed, [side for pair in pairs for side in pair])
    return np.ascontiguousarray(features[::2]), np.ascontiguousarray(features[1::2])


def predict_pairs(model: CLIP, image_features: Floats, pairs: Sequence[Pair]) -> Floats:
    """Probabilities (N, len(pairs)), float64, of images with the features (N, D) from each pair of prompts."""
    _warn_of_cut_prompts(model, pairs)
    return pair_probabilities(image_features, *pair_features(partial(embed_texts, model), pairs))


def predict_labels(
    model: CLIP, images: Any, labels: Sequence[str] = LABELS, template: tuple[str, str] = PAIR_TEMPLATE, **options: Any
) -> Floats:
    """Zero-shot probabilities (N, len(labels)) in 0..1; `options` are those of `embed_images`."""
    return predict_pairs(model, embed_images(model, images, **options), label_pairs(labels, template))


class Predictor:
    """Predict image files with a checkpoint, caching results by the content of everything they depend on.

    The model is loaded when a result is not in the cache. Without `cache_dir` no predictions are stored. `device` None
    means a GPU if there is one.
    """

    def __init__(
        self,
        model_path: str | os.PathLike,
        cache_dir: str | os.PathLike | None = None,
        *,
        device: str | None = None,
        batch_size: int = 64,
        precision: str = "fp32",
        progress: bool = False,
        pixel_range: str | None = None,
    ):
        self.checkpoint, self.pixel_range = Path(model_path), pixel_range
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.device, self.batch_size, self.precision, self.progress = device, batch_size, precision, progress
        self._texts: dict[str, Floats] = {}
        self._images: tuple[str, Floats] | None = None  # of the file embedded last

    @cached_property
    def sha256(self) -> str:
        """Digest of the checkpoint."""
        return sha256_of(self.checkpoint)

    @cached_property
    def model(self) -> CLIP:
        """The model, on the device."""
        return load_clip(model_path=self.checkpoint).to(pick_device(self.device))

    def forget_model(self) -> None:
        """Free the model's memory; the next use loads it again."""
        self.__dict__.pop("model", None)
        self._images = None

    def predict(
        self,
        cxr_filepath: str | os.PathLike,
        pairs: Sequence[Pair],
        *,
        name: str | None = None,
        images_sha256: str | None = None,
    ) -> Floats:
        """Probabilities (N, len(pairs)), float64, of every image of a file.

        Stored as `<name>.npy` (default: a digest of what they depend on), with a record of these dependencies beside it
        (`.json`). A file without a record, such as upstream's, is used if its shape fits. images_sha256: the images'
        hash, if it is known already.
        """
        if self.cache_dir is None:
            return self._compute(cxr_filepath, pairs, images_sha256)
        images_sha256 = images_sha256 or sha256_of(cxr_filepath)
        origin = {
            "version": CACHE_VERSION,
            "model": self.sha256,
            "images": images_sha256,
            "precision": self.precision,
            "pairs": [[list(side) for side in pair] for pair in pairs],
        }
        if self.pixel_range:
            origin["pixel_range"] = self.pixel_range
        digest = hashlib.sha256(json.dumps(origin).encode()).hexdigest()
        cache = self.cache_dir / f"{safe_name(name or digest, 'name of the cached predictions')}.npy"
        y_pred = _read_cache(cache, origin, (len(ImageRows(cxr_filepath)), len(pairs)))
        if y_pred is None:
            y_pred = self._compute(cxr_filepath, pairs, images_sha256)
            _write_cache(cache, origin, y_pred)
        return y_pred

    def text_features(self, texts: Sequence[str]) -> Floats:
        """Features (T, D) of `texts`; each distinct text is encoded once per checkpoint."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            self._texts.update(zip(new, embed_texts(self.model, new), strict=True))
        return np.stack([self._texts[text] for text in texts])

    def _compute(self, cxr_filepath: str | os.PathLike, pairs: Sequence[Pair], images_sha256: str | None) -> Floats:
        if self._images is None or images_sha256 is None or self._images[0] != images_sha256:
            with open_images(cxr_filepath) as handle:
                log.info("%s: %d images of %s", self.checkpoint, len(handle["cxr"]), cxr_filepath)
                features = embed_images(
                    self.model,
                    grey_images(handle, self.pixel_range),
                    batch_size=self.batch_size,
                    precision=self.precision,
                    progress=self.progress,
                )
            check_features(features, f"{self.checkpoint} on {cxr_filepath}")
            self._images = (images_sha256 or "", features)
        _warn_of_cut_prompts(self.model, pairs)
        return pair_probabilities(self._images[1], *pair_features(self.text_features, pairs))


def check_features(features: Floats, where: str) -> None:
    """Raise `UserError` if image features (N, D) are the same for every image; `where` names the model and images."""
    if len(features) > 1 and np.ptp(features, axis=0).max() < SAME_FEATURES:
        raise UserError(
            f"{where}: the features, and so the predictions, are the same for every image; use another checkpoint, or "
            f"check the images (all black, or all alike?)"
        )


def check_predictions(scores: Floats, where: str, names: Sequence[str] = LABELS) -> None:
    """Raise `UserError` if probabilities (N, K) are not finite, outside 0..1, or the same for every image."""
    if scores.ndim != 2 or scores.shape[1] != len(names):
        raise UserError(
            f"{where}: predictions of shape {scores.shape} do not have the {len(names)} columns wanted; predict again"
        )
    bad = np.argwhere(~((scores >= 0) & (scores <= 1)))
    if len(bad):
        i, j = bad[0]
        raise UserError(
            f"{where}, row {i + 1}, {names[j]}: the prediction {scores[i, j]} is outside 0..1 "
            f"({len(bad)} such cells); predict again with a sound checkpoint"
        )
    if len(scores) > 1:
        constant = [name for name, spread in zip(names, np.ptp(scores, axis=0), strict=True) if spread == 0]
        if constant:
            raise UserError(
                f"{where}: the prediction for {constant[0]} is the same for every image "
                f"({len(constant)} of {len(names)} predictions are constant); the checkpoint cannot tell "
                f"images apart, or the images are all alike"
            )


def _device(model: CLIP) -> torch.device:
    return next(model.parameters()).device


def _embed_dim(model: CLIP) -> int:
    return int(model.text_projection.shape[1])


@contextlib.contextmanager
def _inference(model: CLIP, precision: str) -> Iterator[None]:
    if precision not in PRECISIONS:
        raise UserError(f"the precision {precision!r} is not known; choose one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(_device(model).type, dtype, enabled=dtype is not None):
            yield
    finally:
        model.train(was_training)


def _encode_images(
    model: CLIP, batches: Iterable[torch.Tensor], n_batches: int | None, precision: str = "fp32", progress: bool = False
) -> NDArray[np.float32]:
    """Features (N, D) of batches of prepared images on the model's device."""
    shown = tqdm(batches, total=n_batches, unit="batch", disable=not progress, desc="images")
    with _inference(model, precision):
        features = [functional.normalize(model.encode_image(batch).float(), dim=-1).cpu() for batch in shown]
    return torch.cat(features).numpy() if features else np.zeros((0, _embed_dim(model)), np.float32)


def _loader_features(
    model: CLIP, loader: Iterable[Mapping[str, torch.Tensor]], progress: bool = False
) -> NDArray[np.float32]:
    features = _encode_images(model, (batch["img"].to(_device(model)) for batch in loader), None, progress=progress)
    if not len(features):
        raise UserError("the loader gave no images; name a file that has some")
    return features


def _read_ahead(images: Any, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the batches in order; a thread reads the next one while the model works on this one."""

    def read(start: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))

    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting: deque[Future[torch.Tensor]] = deque()
        for start in range(0, len(images), batch_size):
            waiting.append(reader.submit(read, start))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _warn_of_cut_prompts(model: CLIP, pairs: Sequence[Pair]) -> None:
    texts = list(dict.fromkeys(text for pair in pairs for side in pair for text in side))
    cut = tokenize(texts, model.context_length + 1, truncate=True)[:, -1].nonzero().flatten().tolist()
    if cut:
        log.warning(
            "%d prompts have more than %d tokens and are cut (upstream stops with an error); the first is %r",
            len(cut),
            model.context_length,
            texts[cut[0]][:60],
        )


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
    return np.asarray(sigmoid((cosines - cosines.mean(axis=1, keepdims=True)) / deviation))


def _check_templates(templates: Sequence[str | tuple[str, str]], softmax_eval: bool) -> None:
    if not templates:
        raise UserError("no template was given; name at least one")
    for template in templates:
        is_pair = not isinstance(template, str) and len(template) == 2
        if softmax_eval != is_pair:
            wanted = "a pair such as ('{}', 'no {}')" if softmax_eval else "one text such as '{}'"
            raise UserError(f"with softmax_eval={softmax_eval} a template is {wanted}, not {template!r}; change one")


def _read_cache(cache: Path, origin: dict[str, Any], shape: tuple[int, int]) -> Floats | None:
    """The cached probabilities, or None if there are none that can be used."""
    note = cache.with_suffix(".json")
    try:
        if not cache.exists() or (note.exists() and read_json(note) != origin):
            return None
        y_pred = np.load(cache, allow_pickle=False)
    except (UserError, ValueError, OSError, EOFError):
        log.warning("%s is damaged and is computed again", cache)
        return None
    return y_pred.astype(np.float64) if y_pred.shape == shape and np.issubdtype(y_pred.dtype, np.floating) else None


def _write_cache(cache: Path, origin: dict[str, Any], y_pred: Floats) -> None:
    cache.unlink(missing_ok=True)  # first, so that old predictions never lie beside the new record
    write_json(cache.with_suffix(".json"), origin)
    with atomic_path(cache) as temporary, open(temporary, "wb") as handle:
        np.save(handle, y_pred)
