"""Features for a folder of images are those of the images prepared one by one."""

import numpy as np
import pytest
import torch
from PIL import Image

from chexzero.data_process import preprocess
from chexzero.errors import UserError
from chexzero.folder import folder_features, images_in
from chexzero.images import prepare
from dinov3_adapter import build_vision_tower


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name, shape in (("b.png", (400, 300)), ("a/x.JPG", (90, 500, 3)), ("a/y.png", (64, 64))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_features_of_a_folder(folder):
    tower = build_vision_tower("dinov3_tiny", image_resolution=64)
    paths, features = folder_features(tower, folder, batch_size=2, device="cpu")
    assert paths == ["a/x.JPG", "a/y.png", "b.png"]
    assert features.shape == (3, tower.trunk.embed_dim)
    for path, feature in zip(paths, features, strict=True):
        pixels = np.asarray(preprocess(Image.open(folder / path)))
        with torch.no_grad():
            alone = tower(prepare(torch.from_numpy(pixels.copy())[None], 64))[0].numpy()
        assert np.allclose(feature, alone, atol=1e-4)


def test_image_that_cannot_be_decoded(folder):
    (folder / "b.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="b.png: the file is cut short"):
        folder_features(build_vision_tower("dinov3_tiny"), folder)


def test_folder_without_images(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        images_in(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        images_in(tmp_path / "nowhere")
