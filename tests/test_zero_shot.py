"""Upstream's zero-shot functions: same results, one pass over the images, one clear error for each wrong input."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from small_clip import GOLDEN, recorded, state_dict

from chexzero import zero_shot
from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS
from tests.parity.inputs import ALTERNATIVES, TEMPLATES, radiographs

PAIR = ("{}", "no {}")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """small.pt, cxr.h5, labels.csv (columns in another order) and the labels they hold."""
    folder = tmp_path_factory.mktemp("zero_shot")
    torch.save(state_dict(torch.float16), folder / "small.pt")
    with h5py.File(folder / "cxr.h5", "w") as file:
        file["cxr"] = radiographs().astype(np.float32)
    y_true = np.tile(np.eye(2, dtype=int).repeat(7, axis=1), (4, 1))
    table = pd.DataFrame(y_true, columns=LABELS)[LABELS[::-1]].assign(Study=range(8))
    table.to_csv(folder / "labels.csv", index=False)
    return folder, y_true


@pytest.fixture(scope="module")
def parts(files):
    return zero_shot.make(files[0] / "small.pt", files[0] / "cxr.h5", batch_size=3)


def test_recorded_results(parts, files):
    model, loader = parts
    theirs = recorded()
    weights = zero_shot.zeroshot_classifier(LABELS, TEMPLATES, model)
    assert weights.shape == (32, 14)
    np.testing.assert_allclose(weights, theirs["zero_shot/classifier"], atol=1e-6)
    np.testing.assert_allclose(zero_shot.predict(loader, model, weights), theirs["zero_shot/cosines"], atol=1e-6)
    pair = zero_shot.run_softmax_eval(model, loader, LABELS, PAIR)
    np.testing.assert_allclose(pair, theirs["zero_shot/pair"], atol=1e-6)
    single = zero_shot.run_single_prediction(LABELS, "{}", model, loader, softmax_eval=False)
    np.testing.assert_allclose(single, theirs["zero_shot/single"], atol=1e-6)
    results, y_pred = zero_shot.run_experiment(
        model, LABELS, [PAIR], loader, files[1], alt_labels_dict=ALTERNATIVES, use_bootstrap=False
    )
    np.testing.assert_allclose(y_pred, theirs["zero_shot/alternatives"], atol=1e-6)
    np.testing.assert_allclose(results[0], theirs["zero_shot/areas"], atol=1e-9)


def test_golden_results(shared, tmp_path):
    with h5py.File(tmp_path / "cxr.h5", "w") as file:
        file["cxr"] = np.load(shared / "goldens/cxr320.npz")["cxr"]
    model, loader = zero_shot.make(shared / "goldens/small_clip.pt", tmp_path / "cxr.h5")
    golden = np.load(GOLDEN / "zero_shot.npz")
    np.testing.assert_allclose(zero_shot.run_softmax_eval(model, loader, LABELS, PAIR), golden["y_pred"], atol=1e-6)
    single = zero_shot.run_single_prediction(LABELS, "{}", model, loader, softmax_eval=False)
    np.testing.assert_allclose(single, golden["y_single"], atol=1e-6)


def test_images_are_encoded_once_for_all_templates(parts, files):
    model, loader = parts
    counted = []
    hook = model.visual.register_forward_hook(lambda module, inputs, output: counted.append(len(output)))
    other = ("{} is seen", "no {} is seen")
    results, y_pred = zero_shot.run_experiment(model, LABELS, [PAIR, other], loader, files[1])
    hook.remove()
    assert counted == [3, 3, 2] and len(results) == 2
    samples, intervals = results[0]
    assert samples.shape == (1000, 14) and list(intervals.index) == ["mean", "lower", "upper"]
    np.testing.assert_array_equal(y_pred, zero_shot.run_softmax_eval(model, loader, LABELS, other))


def test_single_templates(parts, files):
    results, y_pred = zero_shot.run_experiment(
        *parts[:1], LABELS, ["{}", "a {}"], parts[1], files[1], softmax_eval=False, use_bootstrap=False
    )
    assert len(results) == 2 and results[0].shape == (1, 14)
    expected = zero_shot.run_single_prediction(LABELS, "a {}", *parts, softmax_eval=False)
    np.testing.assert_allclose(y_pred, expected, atol=1e-6)


def test_run_zero_shot_and_run_cxr_zero_shot(files):
    folder, y_true = files
    results, y_pred = zero_shot.run_zero_shot(
        LABELS, [PAIR], folder / "small.pt", folder / "cxr.h5", folder / "labels.csv", use_bootstrap=False
    )
    np.testing.assert_allclose(y_pred, recorded()["zero_shot/pair"], atol=1e-6)
    labels, again = zero_shot.run_cxr_zero_shot(
        folder / "small.pt", cxr_filepath=folder / "cxr.h5", final_label_path=folder / "labels.csv"
    )
    assert labels == LABELS
    pd.testing.assert_frame_equal(again[0], results[0])


def test_true_labels_go_by_name(files):
    folder, y_true = files
    np.testing.assert_array_equal(zero_shot.make_true_labels(folder / "labels.csv", LABELS[3:9]), y_true[:, 3:9])
    pd.DataFrame({"Study": ["a"], "B": [1], "A": [0]}).to_csv(folder / "all.csv", index=False)
    assert zero_shot.make_true_labels(folder / "all.csv", ["A"], cutlabels=False).tolist() == [[1.0, 0.0]]


def test_process_alt_labels():
    names, index = zero_shot.process_alt_labels({"A": ["x", "y"], "C": ["z"]}, ["A", "B", "C"])
    assert names == ["A", "x", "y", "C", "z"] and index == {"A": 0, "x": 0, "y": 0, "C": 2, "z": 2}
    assert zero_shot.process_alt_labels(None, ["A"]) == (None, None)
    with pytest.raises(UserError, match="given for D"):
        zero_shot.process_alt_labels({"D": ["x"]}, ["A"])


def test_ensemble_and_its_cache(files, tmp_path, monkeypatch):
    folder, _ = files
    other = {key: value * 1.1 for key, value in state_dict().items()}
    torch.save(other, tmp_path / "a.pt")
    torch.save(state_dict(), tmp_path / "b.pt")
    paths, cache = [tmp_path / "b.pt", tmp_path / "a.pt"], tmp_path / "cache"
    single, mean = zero_shot.ensemble_models(paths, folder / "cxr.h5", LABELS, PAIR, cache_dir=cache, save_name="run")
    assert sorted(path.name for path in cache.glob("*.npy")) == ["run_a.npy", "run_b.npy"]
    np.testing.assert_allclose(single[1], recorded()["zero_shot/pair"], atol=1e-6)  # the paths are sorted
    np.testing.assert_allclose(mean, (single[0] + single[1]) / 2, atol=1e-7)

    loaded = []
    load = zero_shot.load_clip
    monkeypatch.setattr(zero_shot, "load_clip", lambda **options: loaded.append(options) or load(**options))
    again, _ = zero_shot.ensemble_models(paths, folder / "cxr.h5", LABELS, PAIR, cache_dir=cache, save_name="run")
    assert not loaded
    np.testing.assert_array_equal(again, single)
    torch.save(other, tmp_path / "b.pt")  # another model under the same name
    changed, _ = zero_shot.ensemble_models(paths, folder / "cxr.h5", LABELS, PAIR, cache_dir=cache, save_name="run")
    assert len(loaded) == 1
    np.testing.assert_array_equal(changed[1], changed[0])
    zero_shot.ensemble_models(paths, folder / "cxr.h5", LABELS, ("{}", "not {}"), cache_dir=cache, save_name="run")
    assert len(loaded) == 3


def test_a_cache_of_upstreams_is_taken_when_its_shape_fits(files, tmp_path):
    folder, _ = files
    np.save(tmp_path / "small.npy", np.full((8, 14), 0.25, np.float32))
    given = [folder / "small.pt"], folder / "cxr.h5"
    single, _ = zero_shot.ensemble_models(*given, LABELS, PAIR, cache_dir=tmp_path)
    assert (single[0] == 0.25).all()
    single, _ = zero_shot.ensemble_models(*given, LABELS[:3], PAIR, cache_dir=tmp_path)
    assert single[0].shape == (8, 3) and (single[0] != 0.25).all()


def _run(folder, tmp_path, labels=LABELS, table=None, images=None, template=PAIR, model="small.pt", **options):
    """Run `run_zero_shot` with one argument changed."""
    if table is not None:
        table.to_csv(tmp_path / "labels.csv", index=False)
    if images is not None:
        with h5py.File(tmp_path / "cxr.h5", "w") as file:
            file[images[0]] = images[1]
    label_path = tmp_path / "labels.csv" if table is not None else folder / "labels.csv"
    image_path = tmp_path / "cxr.h5" if images is not None else folder / "cxr.h5"
    return zero_shot.run_zero_shot(labels, [template], folder / model, image_path, label_path, **options)


TABLE = pd.DataFrame(np.tile([[0], [1]], (4, 14)), columns=LABELS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"table": TABLE.drop(columns="Edema")}, "labels.csv lacks the column Edema"),
        ({"table": TABLE.iloc[:5]}, "has 8 images but .* has 5 rows"),
        ({"table": TABLE.assign(Edema=2)}, "row 1, column Edema: '2' is not 0 or 1"),
        ({"table": TABLE.assign(Edema=-1)}, "'-1' is not 0 or 1"),
        ({"table": TABLE.assign(Edema=[np.nan, *TABLE["Edema"][1:]])}, "nan is not 0 or 1"),
        ({"images": ("images", radiographs())}, "has no dataset `cxr`"),
        ({"images": ("cxr", radiographs()[0])}, "images of shape"),
        (
            {"images": ("cxr", radiographs() * np.arange(8)[:, None, None].clip(max=1).astype(np.uint8))},
            "one grey value",
        ),
        ({"template": "{}"}, "with softmax_eval=True a template is a pair"),
        ({"template": PAIR, "softmax_eval": False}, "with softmax_eval=False a template is one text"),
        ({"context_length": 50}, "context length 50 was asked for, but this model has 77"),
        ({"model": "labels.csv"}, "labels.csv cannot be read as a checkpoint"),
        ({"model": "absent.pt"}, "absent.pt does not exist"),
    ],
)
def test_wrong_input(files, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        _run(files[0], tmp_path, **change)


def test_wrong_arguments_of_the_parts(parts, files):
    model, loader = parts
    with pytest.raises(UserError, match="8 images but 3 rows"):
        zero_shot.run_experiment(model, LABELS, [PAIR], loader, files[1][:3])
    with pytest.raises(UserError, match="no template"):
        zero_shot.run_experiment(model, LABELS, [], loader, files[1])
    with pytest.raises(UserError, match="gave no images"):
        zero_shot.predict([], model, torch.zeros(32, 2))
    with pytest.raises(UserError, match="at least two different labels"):
        zero_shot.run_single_prediction(["Edema"], "{}", model, loader, softmax_eval=False)
    with pytest.raises(UserError, match="no models"):
        zero_shot.ensemble_models([], files[0] / "cxr.h5", LABELS, PAIR)
