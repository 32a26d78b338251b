"""Features of a folder of images equal those of the images prepared one by one."""

import errno
import gzip
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from chexzero.common.errors import UserError
from chexzero.data_process import preprocess
from chexzero.folder import folder_features, images_result, predict_folder
from chexzero.imaging.decode import read_file
from chexzero.imaging.image_files import ImageFiles, find_images, images_in, reason
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP
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


def dicom(pixels: np.ndarray, photometric: str, path, compress: bool = False) -> None:
    """A 12-bit radiograph as one DICOM file."""
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    file = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns, file.SamplesPerPixel, file.PixelRepresentation = *pixels.shape, 1, 0
    file.PhotometricInterpretation, file.BitsAllocated, file.BitsStored, file.HighBit = photometric, 16, 12, 11
    file.PixelData = pixels.astype("<u2").tobytes()
    if compress:
        file.compress(pydicom.uid.RLELossless)
    file.save_as(path, enforce_file_format=True)


def test_dicom_files(tmp_path):
    """Inverted and compressed files give the same features; unreadable ones are left out with a reason."""
    pixels = np.random.default_rng(0).integers(0, 4096, (200, 150))
    pixels[0, :2] = 0, 4095
    dicom(pixels, "MONOCHROME2", tmp_path / "a.dcm")
    dicom(4095 - pixels, "MONOCHROME1", tmp_path / "b.dcm")
    dicom(pixels, "MONOCHROME2", tmp_path / "c.dcm", compress=True)
    one, two, three = (read_file(tmp_path / f"{name}.dcm").astype(int) for name in "abc")
    assert abs(one - two).max() <= 1 and np.array_equal(one, three)  # rounding of the inverted values
    whole = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "half.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half.dcm: the DICOM file cannot be decoded \(.*less than expected"):
        ImageFiles([tmp_path / "half.dcm"])[:1]


def test_what_cannot_be_read_is_left_out(folder, caplog):
    header = bytearray((folder / "b.png").read_bytes())
    header[16:24] = struct.pack(">II", 60_000, 60_000)  # more pixels than OpenCV accepts
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    (folder / "bomb.png").write_bytes(header)
    model = CLIP(32, 64, 1, 64, 16, 77, 49408, 64, 1, 1).eval()
    assert list(predict_folder(model, folder, ["edema"])["image"]) == ["a/x.JPG", "a/y.png", "b.png"]
    assert "bomb.png is left out: OpenCV refuses the file" in caplog.text


@pytest.mark.parametrize("labels", [[], [""], ["edema", " "], ["edema", "edema "]])
def test_labels_that_are_none_are_refused(folder, labels):
    with pytest.raises(UserError, match="none blank and none twice"):
        predict_folder(CLIP(32, 64, 1, 64, 16, 77, 49408, 64, 1, 1).eval(), folder, labels)


def test_folder_without_images(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        images_in(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        images_in(tmp_path / "nowhere")


def test_everything_in_a_folder_is_read_or_listed(folder):
    """Files are recognised by content under any name; skipped ones are listed with their reason."""
    whole = (folder / "b.png").read_bytes()
    pixels = np.random.default_rng(1).integers(0, 4096, (60, 50))
    for name in ("scan.dicom", "IM0001", "1.2.840.10008"):
        dicom(pixels, "MONOCHROME2", folder / name)
    for name in ("c.jfif", "\u80f8\u90e8.png", "no_ending"):
        (folder / name).write_bytes(whole)
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as handle:  # a name in Latin-1
        handle.write(whole)
    Image.open(folder / "b.png").save(folder / "d.tif")
    Image.open(folder / "b.png").save(folder / "d.bmp")
    (folder / "._b.png").write_bytes(b"\0\5\x16\7")
    (folder / "e.dcm.gz").write_bytes(gzip.compress((folder / "IM0001").read_bytes()))
    (folder / "f.gz").write_bytes(gzip.compress(whole))  # by content, not by name
    (folder / "g.tar.gz").write_bytes(gzip.compress(bytes(600)))
    (folder / "h.dcm.gz").write_bytes(gzip.compress((folder / "IM0001").read_bytes())[:-9])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    outside = folder.parent / f"{folder.name}_outside"
    outside.mkdir()
    (outside / "1.png").write_bytes(whole)
    (folder / "linked").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "half.png").write_bytes(whole[:1000])
    os.mkfifo(folder / "pipe.png")
    model = CLIP(32, 64, 1, 64, 16, 77, 49408, 64, 1, 1).eval()
    table = predict_folder(model, folder, ["edema"])
    read = {
        *("a/x.JPG", "a/y.png", "b.png", "scan.dicom", "IM0001", "1.2.840.10008", "c.jfif", "\u80f8\u90e8.png"),
        *("no_ending", "caf\\xe9.png", "d.tif", "d.bmp", "linked/1.png"),
        *("e.dcm.gz", "f.gz"),
    }
    assert set(table["image"]) == read and len(table) == len(read)
    same = table.set_index("image")["edema"]
    assert same[["c.jfif", "no_ending", "d.tif", "d.bmp", "linked/1.png", "caf\\xe9.png"]].eq(same["b.png"]).all()
    np.testing.assert_allclose(same["f.gz"], same["b.png"], atol=1e-6)
    np.testing.assert_allclose(same[["scan.dicom", "IM0001", "e.dcm.gz"]], same["1.2.840.10008"], atol=1e-6)
    reasons = dict(table.attrs["left_out"])
    assert reasons["g.tar.gz"] == "packed with gzip; unpack it" and reasons["h.dcm.gz"] == "the gzip file is cut short"
    assert reasons["gone.png"] == "a broken link"
    assert reasons["half.png"].startswith("the file is cut short") and reasons["pipe.png"] == "not a plain file"
    assert reasons["loop"].startswith("a link to a folder that") and "macOS" in reasons["._b.png"]
    assert reasons["notes.txt"].startswith("its content is not PNG") and len(reasons) == 8
    assert len(find_images(folder).images) == len(read) + 2


def test_weights_that_are_no_numbers_give_no_probabilities(folder):
    model = CLIP(32, 64, 1, 64, 16, 77, 49408, 64, 1, 1).eval()
    with torch.no_grad():
        model.visual.proj[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        predict_folder(model, folder, ["edema"])


def test_folders_of_one_name_get_results_of_their_own(tmp_path):
    names = []
    for place in ("one/scans", "two/scans", "\u4e00/\u80f8", "\u4e8c/\u809d"):
        (tmp_path / place).mkdir(parents=True)
        path = images_result(tmp_path / "results", tmp_path / place)
        path.write_text("x")
        assert images_result(tmp_path / "results", tmp_path / place) == path  # predicted again: replaced
        names.append(path.name)
    assert len(set(names)) == 4 and names[0] == "images_scans.csv" and names[2] == "images_\u80f8.csv"


def test_what_the_system_refuses_is_listed_in_its_words(folder, monkeypatch):
    """A link to itself, and a folder that may not be read."""
    (folder / "ring.png").symlink_to(folder / "ring.png")
    scan = os.scandir

    def refusing(path):
        if os.path.basename(path) == "a":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find_images(folder)
    assert [path.name for path in found.images] == ["b.png"]
    reasons = {path.name: why for path, why in found.passed_over}
    assert reasons["ring.png"] == os.strerror(errno.ELOOP) and reasons["a"] == os.strerror(errno.EACCES)


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(errno.EIO, "no luck"), "no luck"), (ValueError("odd"), "odd"), (MemoryError(), "MemoryError")],
)
def test_a_reason_is_never_empty(error, words):
    assert reason(error) == words
