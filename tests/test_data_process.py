"""Prepared bytes and impressions equal upstream's; a failure is reported and never leaves a black row."""

import json
import subprocess
import sys

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_clip import GOLDEN, recorded

from chexzero.common.errors import UserError
from chexzero.data_process import (
    extract_impression,
    get_cxr_path_csv,
    get_cxr_paths_list,
    img_to_hdf5,
    preprocess,
    read_image,
    write_report_csv,
)
from data_prep.__main__ import main as data_prep
from tests.parity import inputs
from tests.parity.__main__ import image_hashes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, pixels in inputs.images().items():
        cv2.imwrite(str(folder / name), pixels)
    return folder


def test_bytes_are_upstreams_recorded(pictures, tmp_path):
    img_to_hdf5(sorted(map(str, pictures.iterdir())), tmp_path / "cxr.h5")
    with h5py.File(tmp_path / "cxr.h5") as file:
        images = file["cxr"]
        assert images.dtype == np.uint8 and images.chunks == (1, 320, 320)
        assert image_hashes(images[:]).tolist() == recorded()["preprocessing/sha256"].tolist()


def test_golden_bytes(shared, tmp_path):
    golden = np.load(shared / "goldens/preprocess.npz")
    paths = [shared / "goldens/images" / name for name in golden["names"]]
    img_to_hdf5(paths, tmp_path / "cxr.h5")
    with h5py.File(tmp_path / "cxr.h5") as file:
        np.testing.assert_array_equal(file["cxr"][:], golden["cxr"])


def test_a_grey_source_takes_one_channel_and_gives_the_same_bytes(pictures):
    grey = read_image(pictures / "grey.png")
    assert grey.mode == "L" and read_image(pictures / "colour.png").mode == "RGB"
    np.testing.assert_array_equal(preprocess(grey), preprocess(grey.convert("RGB")))


def test_grey_stored_in_three_channels_is_read_as_one(tmp_path):
    pixels = inputs.images()["grey.png"]
    cv2.imwrite(str(tmp_path / "three.png"), cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR))
    assert read_image(tmp_path / "three.png").mode == "L"


@pytest.mark.parametrize(
    "size, box",
    [
        ((320, 320), (0, 0, 320, 320)),
        ((640, 320), (0, 80, 320, 240)),
        ((1, 320), (159, 0, 160, 320)),
        ((3, 4), (40, 0, 280, 320)),
    ],
)
def test_the_image_is_centred_on_black(size, box):
    result = preprocess(Image.new("L", size, 200))
    assert result.mode == "L" and result.size == (320, 320) and result.getbbox() == box


def test_another_size_and_an_image_too_narrow_for_it():
    assert preprocess(Image.new("RGB", (900, 700)), 64).size == (64, 64)
    with pytest.raises(ValueError, match="1 x 320 pixels is too narrow for 64"):
        preprocess(Image.new("L", (1, 320)), 64)


def test_failures_are_all_named_and_nothing_is_written(pictures, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.new("L", (1, 5000)).save(tmp_path / "thread.png")
    paths = [
        pictures / "grey.png",
        tmp_path / "text.png",
        tmp_path / "absent.png",
        tmp_path / "empty.png",
        tmp_path / "thread.png",
    ]
    with pytest.raises(UserError, match="4 of 5 images failed.*text.png .*cannot be decoded.*absent.png"):
        img_to_hdf5(paths, tmp_path / "cxr.h5")
    assert not (tmp_path / "cxr.h5").exists()
    failed = (tmp_path / "cxr.h5.failed.txt").read_text()
    assert "thread.png (an image of 1 x 5000 pixels is too narrow" in failed and failed.count("\n") == 4
    with pytest.raises(UserError, match="no images"):
        img_to_hdf5([], tmp_path / "cxr.h5")


def test_impressions_are_upstreams():
    golden = json.loads((GOLDEN / "impressions.json").read_text())
    for name, report in golden["reports"].items():
        assert extract_impression(report) == golden["impressions"][name], name


def test_recorded_impressions(tmp_path):
    folder = tmp_path / "p10" / "p10000001"
    folder.mkdir(parents=True)
    for i, report in enumerate(inputs.reports()):
        (folder / f"s{i}.txt").write_text(report, encoding="utf-8")
    names = [name.removesuffix(".txt") for name in recorded()["impressions/filename"]]
    write_report_csv([f"files/p10/p10000001/{name}/x.jpg" for name in names], tmp_path, tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert list(table) == ["filename", "impression"]
    assert table["impression"].tolist() == recorded()["impressions/impression"].tolist()


def _mimic(folder, pictures):
    """Two studies, three images, two reports."""
    for place in ("p11/p11000002/s3/c.jpg", "p10/p10000001/s2/b.jpg", "p10/p10000001/s2/a.jpg"):
        path = folder / "files" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((pictures / "grey.jpg").read_bytes())
    for place, words in (("p11/p11000002/s3.txt", "three"), ("p10/p10000001/s2.txt", 'two, "quoted"')):
        path = folder / "reports" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"FINDINGS: x IMPRESSION: {words}")
    return folder


def test_mimic_command(pictures, tmp_path):
    _mimic(tmp_path, pictures)
    data_prep(
        [
            "mimic",
            "--chest_x_ray_path",
            f"{tmp_path}/files",
            "--radiology_reports_path",
            f"{tmp_path}/reports",
            "--csv_out_path",
            f"{tmp_path}/paths.csv",
            "--cxr_out_path",
            f"{tmp_path}/cxr.h5",
            "--mimic_impressions_path",
            f"{tmp_path}/impressions.csv",
        ]
    )
    names = [path.rsplit("/", 1)[1] for path in get_cxr_paths_list(tmp_path / "paths.csv")]
    assert names == ["a.jpg", "b.jpg", "c.jpg"]
    table = pd.read_csv(tmp_path / "impressions.csv")
    assert table.to_numpy().tolist() == [["s2.txt", 'two, "quoted"']] * 2 + [["s3.txt", "three"]]
    with h5py.File(tmp_path / "cxr.h5") as file:
        assert file["cxr"].shape == (3, 320, 320)


def test_mimic_without_a_report(pictures, tmp_path):
    _mimic(tmp_path, pictures)
    (tmp_path / "reports/p11/p11000002/s3.txt").unlink()
    with pytest.raises(UserError, match="s3.txt does not exist; it is the report of .*c.jpg"):
        data_prep(
            [
                "mimic",
                "--chest_x_ray_path",
                f"{tmp_path}/files",
                "--radiology_reports_path",
                f"{tmp_path}/reports",
                "--csv_out_path",
                f"{tmp_path}/paths.csv",
                "--cxr_out_path",
                f"{tmp_path}/cxr.h5",
                "--mimic_impressions_path",
                f"{tmp_path}/impressions.csv",
            ]
        )
    assert not (tmp_path / "impressions.csv").exists() and not (tmp_path / "cxr.h5").exists()


def test_chexpert_test_command(pictures, tmp_path, capsys):
    for place in (
        "patient2/study1/view1_frontal.jpg",
        "patient1/study1/view1_frontal.jpg",
        "patient1/study1/view2_lateral.jpg",
    ):
        path = tmp_path / "test" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((pictures / "grey.jpg").read_bytes())
    flags = [
        "chexpert-test",
        "--chest_x_ray_path",
        f"{tmp_path}/test",
        "--csv_out_path",
        f"{tmp_path}/paths.csv",
        "--cxr_out_path",
        f"{tmp_path}/test.h5",
    ]
    with pytest.raises(UserError, match="has 2 images with view1 in their path instead of 500"):
        data_prep(flags)
    data_prep([*flags, "--n_images", "2"])
    paths = get_cxr_paths_list(tmp_path / "paths.csv").tolist()
    assert [path.split("/")[-3] for path in paths] == ["patient1", "patient2"]
    assert "2 images in" in capsys.readouterr().out


def test_a_folder_without_images(tmp_path):
    with pytest.raises(UserError, match="holds no .jpg file"):
        get_cxr_path_csv(tmp_path / "paths.csv", tmp_path)
    pd.DataFrame({"File": ["a"]}).to_csv(tmp_path / "paths.csv", index=False)
    with pytest.raises(UserError, match="lacks the column Path"):
        get_cxr_paths_list(tmp_path / "paths.csv")


def test_preparation_needs_no_torch():
    code = "import sys, data_prep.mimic, data_prep.chexpert_test; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
