"""One pass over the images gives upstream's predictions for any batch size and number of labels."""

import h5py
import numpy as np
import pytest
import torch
from small_clip import recorded, state_dict

from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS
from chexzero.model import CLIP, build_model
from chexzero.zero_shot import (
    _warn_of_cut_prompts,
    embed_images,
    embed_texts,
    pair_probabilities,
    predict_labels,
    zeroshot_classifier,
)
from tests.parity.inputs import TEMPLATES, radiographs


@pytest.fixture(scope="module")
def model():
    return build_model(state_dict())


def test_predictions_are_upstreams(model):
    np.testing.assert_allclose(predict_labels(model, radiographs()), recorded()["zero_shot/pair"], atol=1e-6)
    classifier = zeroshot_classifier(LABELS, TEMPLATES, model).numpy()
    np.testing.assert_allclose(classifier, recorded()["zero_shot/classifier"], atol=1e-6)
    np.testing.assert_allclose(
        embed_images(model, radiographs()) @ classifier, recorded()["zero_shot/cosines"], atol=1e-6
    )


def test_golden_predictions(shared):
    model = build_model(torch.load(shared / "goldens/small_clip.pt", weights_only=True))
    images = np.load(shared / "goldens/cxr320.npz")["cxr"]
    golden = np.load(shared / "goldens/zero_shot.npz")
    np.testing.assert_allclose(predict_labels(model, images, batch_size=3), golden["y_pred"], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_batches_dtypes_and_files_do_not_matter(model, tmp_path, batch_size):
    expected = embed_images(model, radiographs())
    assert expected.shape == (8, 32) and expected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    with h5py.File(tmp_path / "cxr.h5", "w") as file:
        dataset = file.create_dataset("cxr", data=radiographs().astype(np.float32))
        np.testing.assert_allclose(embed_images(model, dataset, batch_size=batch_size), expected, atol=1e-6)


def test_every_image_is_encoded_once_for_all_labels():
    counted, model = [], build_model(state_dict())
    model.visual.register_forward_hook(lambda module, inputs, output: counted.append(len(output)))
    predict_labels(model, radiographs(), LABELS, batch_size=3)
    assert counted == [3, 3, 2]


def test_the_models_mode_is_restored(model):
    model.train()
    embed_images(model, radiographs()[:1])
    assert model.training
    model.eval()


def test_lower_precision_is_close(model):
    exact, rough = (embed_images(model, radiographs(), precision=one) for one in ("fp32", "bf16"))
    assert 1e-6 < np.abs(exact - rough).max() < 0.02
    with pytest.raises(UserError, match="'int8' is not known; choose one of fp32, bf16, fp16"):
        embed_images(model, radiographs(), precision="int8")


def test_nothing_to_embed(model):
    assert embed_images(model, radiographs()[:0]).shape == (0, 32)
    assert embed_texts(model, []).shape == (0, 32)


def test_texts_in_batches_and_cut_to_the_context(model):
    texts = ["edema", "no acute process " * 60, "", "x"]
    np.testing.assert_allclose(embed_texts(model, texts, batch_size=1), embed_texts(model, texts), atol=1e-6)


def test_an_image_that_cannot_be_read_stops_the_pass(model):
    class Broken:
        def __len__(self):
            return 4

        def __getitem__(self, rows):
            raise OSError("bad chunk")

    with pytest.raises(OSError, match="bad chunk"):
        embed_images(model, Broken())


def test_pair_probabilities_by_hand():
    image = np.array([[1.0, 0.0]], np.float32)
    positive, negative = np.array([[0.6, 0.8]], np.float32), np.array([[0.0, 1.0]], np.float32)
    expected = np.exp(0.6) / (np.exp(0.6) + np.exp(0.0))
    np.testing.assert_allclose(pair_probabilities(image, positive, negative), [[expected]], rtol=1e-6)


@pytest.mark.parametrize("words, cut", [(18, 0), (19, 1), (20, 2)])
def test_prompts_are_cut_where_they_have_more_tokens_than_the_context(words, cut, caplog):
    """Two of 20 tokens mark the start and the end of the text."""
    small = CLIP(16, 32, 1, 64, 16, 20, 49408, 64, 1, 1)
    _warn_of_cut_prompts(small, [(["mass"], ["x " * words]), (["x " * (words - 1)], ["x " * words])])
    assert (f"{cut} prompts have more than 20 tokens and are cut" in caplog.text) is (cut > 0)
    assert ("the first is 'x x" in caplog.text) is (cut > 0)
