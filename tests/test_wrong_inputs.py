"""Inputs that were once misread or ended in a traceback: each is read correctly or refused in one sentence."""

import fcntl
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from chexzero.common.errors import UserError
from chexzero.common.files import read_json, read_table, read_yaml, safe_name
from chexzero.common.formats import check_images, image_ids, open_images
from chexzero.common.settings import parse_with_config
from data_prep.steps.sets import new_images


def images_file(path: Path, images: np.ndarray, ids=None, **options) -> Path:
    with h5py.File(path, "w") as handle:
        handle.create_dataset("cxr", data=images, **options)
        if ids is not None:
            handle["id"] = ids
    return path


def some(n=6, size=80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size)).astype(np.uint8)


@pytest.mark.parametrize("most", [None, 4])
@pytest.mark.parametrize(
    "make, words",
    [
        (lambda x: x / 255, "values are .* to 1, but 0 to 255 are needed"),
        (lambda x: x / 127.5 - 1, "values are -1 to"),
        (lambda x: (x - 101.48761) / 83.43944, "values are -1.2"),
        (lambda x: x * 16.0, "to 4080, but"),
        (lambda x: np.where(x == 0, np.nan, x), "not finite"),
    ],
    ids=["0..1", "-1..1", "z-scored", "12 bits", "NaN"],
)
def test_float_images_of_another_range(tmp_path, make, words, most):
    images_file(tmp_path / "a.h5", make(some().astype(np.float32)).astype(np.float32))
    with pytest.raises(UserError, match=words):
        check_images(tmp_path / "a.h5", most)
    images_file(tmp_path / "b.h5", some().astype(np.float32))  # upstream's own
    check_images(tmp_path / "b.h5", most)


def test_near_black_and_constant_images(tmp_path, caplog):
    check_images(images_file(tmp_path / "a.h5", some() // 64))
    assert "nearly black" in caplog.text
    images = some()
    images[3] = 0
    images_file(tmp_path / "b.h5", images, [f"case{i}".encode() for i in range(6)])
    with pytest.raises(UserError, match="1 of 6 images are of one grey value .*case3"):
        check_images(tmp_path / "b.h5")
    check_images(tmp_path / "b.h5", 6)
    assert "1 of 6 images checked" in caplog.text


def test_flipped_bytes_in_an_image_file_are_noticed(tmp_path):
    images = some(4, 320)
    with new_images(tmp_path / "a.h5", [b"a", b"b", b"c", b"d"], {}) as handle:
        dataset = handle["cxr"] if isinstance(handle, h5py.File) else handle
        dataset[:] = images
    whole = (tmp_path / "a.h5").read_bytes()
    rng = np.random.default_rng(1)
    for row in range(4):
        at = whole.find(images[row].tobytes()) + int(rng.integers(320 * 320))
        (tmp_path / "b.h5").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            check_images(tmp_path / "b.h5")
    check_images(tmp_path / "a.h5")


def test_a_locked_image_file_is_not_to_be_made_again(tmp_path):
    images_file(tmp_path / "a.h5", some())
    with open(tmp_path / "a.h5", "r+b") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="locked by another program") as error:
            open_images(tmp_path / "a.h5")
    assert "make it again" not in str(error.value)


def test_ids_of_other_kinds(tmp_path):
    with pytest.raises(UserError, match="not one text per image"):
        open_images(images_file(tmp_path / "a.h5", some(3), np.arange(3)))
    latin = np.array(["caf\xe9".encode("latin-1"), b"b", b"c"])
    with (
        open_images(images_file(tmp_path / "b.h5", some(3), latin)) as handle,
        pytest.raises(UserError, match="not UTF-8"),
    ):
        image_ids(handle)
    with pytest.raises(UserError, match="not one text per image"):
        open_images(images_file(tmp_path / "c.h5", some(3), np.arange(2)))


def test_images_that_lie_in_another_file(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(range(256)) * 25)
    images_file(tmp_path / "other.h5", some(1))
    with h5py.File(tmp_path / "external.h5", "w") as handle:
        handle.create_dataset("cxr", (1, 80, 80), np.uint8, external=[(str(tmp_path / "secret"), 0, 6400)])
    with h5py.File(tmp_path / "link.h5", "w") as handle:
        handle["cxr"] = h5py.ExternalLink("other.h5", "cxr")
    with h5py.File(tmp_path / "virtual.h5", "w") as handle:
        layout = h5py.VirtualLayout((1, 80, 80), np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "cxr", (1, 80, 80))
        handle.create_virtual_dataset("cxr", layout)
    for name in ("external.h5", "link.h5", "virtual.h5"):
        with pytest.raises(UserError, match="in another file, which is not read"):
            open_images(tmp_path / name)


def test_tables(tmp_path, shared):
    (tmp_path / "a.csv").write_text("id,Edema,Edema\nx,0,1\n")
    with pytest.raises(UserError, match="has the column Edema 2 times"):
        read_table(tmp_path / "a.csv", ["Edema"])
    with pytest.raises(UserError, match="Edema 2 times"):
        read_table(shared / "cases/labels_edema_twice.csv", ["Edema"])
    (tmp_path / "b.csv").write_text("id,Edema\nx,0\n", encoding="utf-16")
    with pytest.raises(UserError, match="is UTF-16; convert it.*utf-16"):
        read_table(tmp_path / "b.csv")
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="c.json"):
        read_json(tmp_path / "c.json")


def _settings(tmp_path, text, argv=()):
    import argparse

    (tmp_path / "a.yaml").write_text(text)
    parser = argparse.ArgumentParser()
    parser.add_argument("--save_dir", default="checkpoints", metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch_size", type=int, default=64)
    return parse_with_config(parser, ["--config", str(tmp_path / "a.yaml"), *argv])


@pytest.mark.parametrize(
    "text, words",
    [
        ("lr: 1e-3\nlr: 1e-4\n", "'lr' occurs twice"),
        ("save_dir: ~\n", "save_dir has no value"),
        ("save_dir:\n", "save_dir has no value"),
        ("lr: .inf\n", "lr is inf"),
        ("batch_size: 2024-01-01\n", "batch_size"),
        ("lr: {a: 1}\n", "must be one value"),
        ("a: [", "not valid YAML"),
        ("- 1\n- 2\n", "one `flag: value` per line"),
    ],
)
def test_settings_files(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        _settings(tmp_path, text)


def test_paths_under_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = _settings(tmp_path, "save_dir: '~/runs'\n", ["--out=~/x"])
    assert found.save_dir == str(tmp_path / "runs") and found.out == tmp_path / "x"


def test_yaml_is_read_as_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("a: {b: [1, 2]}\nc: x\n")
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load((tmp_path / "a.yaml").read_text())
    (tmp_path / "a.yaml").write_bytes(b"a: caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_yaml(tmp_path / "a.yaml")


def test_names_of_folders():
    for name in ("epoch=3-step=100", "demo (copy)", "\u80f8\u90e8", "pt-imp", "v1.0+a"):
        assert safe_name(name) == name
    for name in ("", ".", "..", ".x", "a/b", "a\\b", "-x", "a b", "a\nb", "a\0", "\u80f8" * 100, "~"):
        with pytest.raises(UserError):
            safe_name(name)
