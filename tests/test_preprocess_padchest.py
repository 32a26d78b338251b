"""Upstream's PadChest functions on artificial tables with the encoding pitfalls of the real one."""

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexzero import preprocess_padchest as padchest
from chexzero.common.errors import UserError
from chexzero.data_process import preprocess, read_image

LISTING = """Archive:  2.zip
  Length      Date    Time    Name
---------  ---------- -----   ----
  8901234  2018-07-03 10:11   1_a.png
  8901234  07-03-2018 10:11   a folder/2 b.png
---------                     -------
 17802468                     2 files
"""

TABLE = pd.DataFrame(
    {
        "ImageID": ["1.png", "2.png", "3.png", "4.png", "5.png"],
        "Labels": [
            "['cardiomegaly', ' Pleural Effusion ', 'cardiomegaly']",
            "['pericardial effusion', '']",
            np.nan,
            "['broken",
            "['']",
        ],
    }
)


def test_names_of_a_listing(tmp_path):
    path = tmp_path / "2.zip.unzip-l.txt"
    path.write_text(LISTING)
    assert padchest.extract_filenames(path) == ["1_a.png", "a folder/2 b.png"]
    path.write_text("nothing here\n")
    with pytest.raises(UserError, match="lists no file"):
        padchest.extract_filenames(path)


def test_labels_are_whole_names_and_broken_cells_are_no_labels(caplog):
    labels = padchest.get_unique_labels(TABLE)
    assert labels == ["cardiomegaly", "pericardial effusion", "pleural effusion"]
    hot = padchest.create_multi_hot_labels(TABLE, labels)
    assert "2 of 5 rows" in caplog.text
    assert hot.to_numpy().tolist() == [["1.png", 1, 0, 1], ["2.png", 0, 1, 0], ["5.png", 0, 0, 0]]
    assert padchest.read_list("__import__('os').system('true')") is None


def test_images_in_order_and_those_that_cannot_be_read(tmp_path, caplog):
    random = np.random.default_rng(0)
    for name in ("b", "a", "c"):
        Image.fromarray(random.integers(0, 255, (50, 40), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG no image")
    paths = padchest.get_paths(tmp_path)
    assert [path[-5:] for path in paths] == ["a.png", "b.png", "c.png"]
    stored = padchest.img_to_h5(paths, tmp_path / "out.h5", resolution=64)
    assert stored == [paths[0], paths[2]] and "b.png is left out" in caplog.text
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["cxr"].shape == (2, 64, 64)
        np.testing.assert_array_equal(file["cxr"][1], np.asarray(preprocess(read_image(paths[2]), 64)))
    with pytest.raises(UserError, match="none of 1 images"):
        padchest.img_to_h5(paths[1:2], tmp_path / "none.h5")
    assert not (tmp_path / "none.h5").exists()
    hot = padchest.create_multi_hot_labels(TABLE, ["cardiomegaly"])
    assert padchest.order_labels(hot, ["/x/5.png", "/x/1.png"])["ImageID"].tolist() == ["5.png", "1.png"]
    with pytest.raises(UserError, match=r"the first is 9\.png"):
        padchest.order_labels(hot, ["9.png"])
