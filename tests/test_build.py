"""The build: upstream's bytes, complete files or none, the same bytes after any number of stops."""

import csv
import fcntl
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from release_corpus import QUICK_AUDIT, Corpus, copy_releases, picture, save, write_releases

from chexzero.common.errors import UserError
from chexzero.common.formats import check_rows, image_ids, open_images, read_labels
from chexzero.common.labels import LABELS
from chexzero.data_process import preprocess
from chexzero.imaging.decode import UnreadableImage, decode, prepare_image, prepare_pixels
from data_prep.__main__ import main
from data_prep.steps import blocks, work

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = {
    "cxr.h5",
    "impressions.csv",
    "valid.h5",
    "valid_labels.csv",
    "test.h5",
    "test_labels.csv",
    "build.json",
    "left_out.csv",
    "overlap_report.json",
    "overlap_report.md",
    "overlap_report.html",
    "overlap_report.key",
}


@pytest.fixture(scope="session")
def releases(tmp_path_factory) -> Corpus:
    return write_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="session")
def built(releases, tmp_path_factory) -> Path:
    """An undisturbed build; read-only."""
    out = tmp_path_factory.mktemp("built") / "data"
    releases.build(out)
    return out


@pytest.fixture
def corpus(releases, tmp_path) -> Corpus:
    """A copy that a test may change."""
    return copy_releases(releases, tmp_path / "releases")


def command(corpus: Corpus, out: Path, *more: str) -> list[str]:
    flags = corpus.flags("--out", str(out), "--workers", "1", *QUICK_AUDIT, *more)
    return [sys.executable, "-m", "data_prep", "build", *flags]


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a build, manifests included, except the audit's key, which differs per folder."""
    files = [*out.rglob("*"), *(out.parent / "splits").glob("*")]
    kept = [path for path in files if path.is_file() and path.suffix != ".key"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def upstream_bytes(data: bytes) -> np.ndarray:
    """Upstream's preprocessing of a file, step by step: colour, RGB, resize three channels, convert."""
    colour = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(preprocess(Image.fromarray(cv2.cvtColor(colour, cv2.COLOR_BGR2RGB))))


# --- one image -------------------------------------------------------------------------------------------------


def test_golden_bytes(shared):
    golden = np.load(shared / "goldens" / "preprocess.npz")
    for name, expected in zip(golden["names"], golden["cxr"], strict=True):
        got = prepare_image(str(shared / "goldens" / "images"), str(name), "high_byte").pixels
        assert np.array_equal(got, expected), name
        if "16" not in name:
            assert np.array_equal(prepare_image(str(shared / "goldens" / "images"), str(name)).pixels, expected), name


KINDS = {
    "grey": lambda rgb: rgb[..., 0],
    "colour": lambda rgb: rgb,
    "grey in three channels": lambda rgb: rgb[..., [1, 1, 1]],
    "alpha": lambda rgb: np.dstack([rgb, rgb[..., 0]]),
    "16-bit": lambda rgb: rgb[..., 0].astype(np.uint16) * 251 + 7,
    "16-bit colour": lambda rgb: rgb.astype(np.uint16) * 250,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_bytes_are_upstreams(kind, ending):
    rng = np.random.default_rng(3)
    for height, width in [(400, 333), (321, 320), (97, 640), (5, 9), (320, 320)]:
        rgb = np.dstack([picture(rng, height, width) for _ in range(3)])
        image = KINDS[kind](rgb)
        if ending == ".jpg" and (image.dtype != np.uint8 or image.shape[-1] == 4):
            pytest.skip("JPEG has neither alpha nor 16 bits")
        data = cv2.imencode(ending, image)[1].tobytes()
        assert np.array_equal(prepare_pixels(decode(data), "high_byte"), upstream_bytes(data)), (height, width)
        if image.dtype == np.uint8:
            assert np.array_equal(prepare_pixels(decode(data), "stretch"), upstream_bytes(data))


def test_16_bit_images_read_right_in_any_range():
    grey = np.asarray(picture(np.random.default_rng(0), 200, 200))
    grey = cv2.normalize(grey, None, 0, 255, cv2.NORM_MINMAX)
    wanted = prepare_pixels(grey).astype(int)
    for scale, offset in [(257, 0), (16, 0), (16, 900), (3, 20000)]:
        image = grey.astype(np.uint16) * scale + offset
        assert np.abs(prepare_pixels(image) - wanted).max() <= 1
    assert prepare_pixels(grey.astype(np.uint16) * 16, "high_byte").max() < 32, "as upstream reads it: nearly black"
    with pytest.raises(UnreadableImage, match="constant"):
        prepare_pixels((grey // 2).astype(np.uint16), "high_byte")


def test_what_cannot_be_used(tmp_path):
    rng = np.random.default_rng(1)
    save(tmp_path / "root" / "good.png", picture(rng))
    save(tmp_path / "outside.png", picture(rng))
    root = tmp_path / "root"
    png, jpg = ((cv2.imencode(ending, picture(rng, 300, 300))[1].tobytes()) for ending in (".png", ".jpg"))
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0x40
    broken = {
        "empty": b"",
        "text": b"not an image",
        "cut.png": png[: len(png) // 2],
        "tail.png": png[:-1],
        "cut.jpg": jpg[: len(jpg) // 2],
        "tail.jpg": jpg[:-2],
        "flipped.png": bytes(flipped),
        "header.png": png[:40],
        "marker.jpg": b"\xff\xd8\xff\xd9",
        "black.png": cv2.imencode(".png", np.zeros((50, 40), np.uint8))[1].tobytes(),
        "white16.png": cv2.imencode(".png", np.full((50, 40), 65535, np.uint16))[1].tobytes(),
        "thin.png": cv2.imencode(".png", picture(rng, 1000, 2))[1].tobytes(),
    }
    for name, data in broken.items():
        (root / name).write_bytes(data)
    (root / "folder.png").mkdir()
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    reasons = {}
    outside = ["link.png", "../outside.png", str(tmp_path / "outside.png")]
    for name in [*broken, *outside, "folder.png", "loop.png", "none.png"]:
        with pytest.raises(UnreadableImage) as caught:
            prepare_image(str(root), name)
        reasons[name] = str(caught.value)
        assert "\n" not in reasons[name]
    assert "empty" in reasons["empty"] and "constant" in reasons["black.png"] and "constant" in reasons["white16.png"]
    assert all("leads out" in reasons[name] for name in outside)
    assert prepare_image(str(root), "good.png").bits == 8
    with pytest.raises(UnreadableImage, match="constant"):
        prepare_pixels(np.full((10, 400), 200, np.uint8))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_file_is_an_image_or_a_reason(data):
    ending = data.draw(st.sampled_from([".png", ".jpg"]))
    whole = cv2.imencode(ending, picture(np.random.default_rng(data.draw(st.integers(0, 9))), 40, 30))[1].tobytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for at in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=4)) if damaged else ():
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        pixels = prepare_pixels(decode(bytes(damaged)))
    except (UnreadableImage, ValueError, cv2.error):
        return
    assert pixels.shape == (320, 320) and pixels.dtype == np.uint8 and pixels.max() > pixels.min()


def test_an_image_of_a_hundred_megapixels_is_refused(corpus, tmp_path):
    cv2.imwrite(str(corpus.plus / "PNG/valid/patient64542/study1/view1_frontal.png"), np.eye(9000, dtype=np.uint8))
    with pytest.raises(UserError, match="1 of 4 valid images cannot be used.*MAX_IMAGE_PIXELS"):
        corpus.build(tmp_path / "data")


# --- a whole build ---------------------------------------------------------------------------------------------


def test_the_files_agree_with_each_other_and_with_the_releases(releases, built):
    assert {path.name for path in built.iterdir()} == FILES
    impressions = pd.read_csv(built / "impressions.csv", dtype=str)
    assert list(impressions)[:2] == ["filename", "impression"] and len(impressions) == 24
    assert impressions["impression"].isna().sum() == 1
    check_rows(built / "cxr.h5", built / "impressions.csv", impressions)
    for name in ("valid", "test"):
        table, values = read_labels(built / f"{name}_labels.csv")
        check_rows(built / f"{name}.h5", built / f"{name}_labels.csv", table)
        assert list(table)[4:] == LABELS and values.shape == (len(table), 14)
    with open_images(built / "cxr.h5") as handle:
        images = handle["cxr"]
        assert images.dtype == np.uint8 and images.chunks == (1, 320, 320) and images.compression is None
        assert json.loads(handle.attrs["build"])["settings"]["depth16"] == "stretch"
        for i, row in impressions.iterrows():
            folder = releases.plus / "PNG" if row["source"] == "chexpert_plus" else releases.rex / "deid_png"
            if row["source"] == "chexpert_plus":
                assert np.array_equal(images[i], upstream_bytes((folder / row["filename"]).read_bytes())), row["id"]
            assert images[i].max() > 150, "12-bit pictures are not dark"
    with h5py.File(built / "test.h5") as handle:
        assert image_ids(handle)[0] == "chexpert/test/patient64741/study1/view2_frontal"


def test_the_record_and_the_manifests(built):
    record = json.loads((built / "build.json").read_text())
    train = record["counts"]["train"]
    assert sum(part["images"] for part in train.values()) == 24 and train["rexgradient/train"]["sixteen_bit"] == 6
    assert train["chexpert_plus/train"] | {"views": 0, "left_out": 0} == {
        "in_tables": 14,
        "images": 14,
        "studies": 14,
        "patients": 7,
        "views": 0,
        "sixteen_bit": 0,
        "empty_reports": 1,
        "left_out": 0,
    }
    assert record["drawn"] is False and record["left_out"] == {"not the study's first frontal view": 2}
    for name, file in record["files"].items():
        assert hashlib.sha256((built / name).read_bytes()).hexdigest() == file["sha256"]
    assert record["files"]["cxr.h5"]["rows"] == 24 and record["settings"]["section"] == "impression"
    splits = built.parent / "splits"
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in splits.iterdir()} == (
        record["manifests"]
    ) and len(record["manifests"]) == 3
    manifest = pd.read_csv(splits / "train.csv", dtype=str)
    assert list(manifest["id"]) == list(pd.read_csv(built / "impressions.csv")["id"])
    with h5py.File(built / "cxr.h5") as handle:
        assert hashlib.sha256(handle["cxr"][5]).hexdigest() == manifest["pixel_sha256"][5]
    assert "mpression" not in (splits / "train.csv").read_text() + (built / "build.json").read_text().replace(
        '"section": "impression"', ""
    ).replace("impressions.csv", "")


def test_workers_and_shards_do_not_change_a_byte(releases, built, tmp_path):
    releases.build(tmp_path / "a" / "data", "--workers", "2")
    assert hashes(tmp_path / "a" / "data") == hashes(built)
    out = tmp_path / "b" / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "SIZE", 5)  # forkserver's workers use the block size of their task
        releases.build(out, "--shard", "2/3")
        with pytest.raises(UserError, match="6 of 7 blocks .* not prepared yet"):
            main(["finish", "--out", str(out)])
        releases.build(out, "--shard", "1/3")
        releases.build(out, "--shard", "0/3")
        assert not (out / "build.json").exists()
        main(["finish", "--out", str(out), "--workers", "1"])
    assert hashes(out) == hashes(built)
    main(["finish", "--out", str(out)])
    with pytest.raises(UserError, match="holds no build to finish"):
        main(["finish", "--out", str(tmp_path)])


def test_a_build_inside_the_data_root_is_resumed(corpus, built):
    """The work folder has its own train/, valid/ and test/, which must not be taken for a release's images."""
    out = corpus.root / "data"
    flags = ["build", "--data_root", str(corpus.root), "--out", str(out), "--workers", "1", *QUICK_AUDIT]
    main([*flags, "--shard", "1/1"])
    main(flags)
    assert hashes(out)["cxr.h5"] == hashes(built)["cxr.h5"]


def test_a_finished_build_is_left_alone(releases, built, tmp_path, capsys):
    shutil.copytree(built.parent, tmp_path / "copy")
    out = tmp_path / "copy" / "data"
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    releases.build(out)
    assert "already holds this build" in capsys.readouterr().out
    with pytest.raises(UserError, match="other settings .*depth16: stretch, now high_byte"):
        releases.build(out, "--depth16", "high_byte")
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with open(out / "cxr.h5", "ab") as handle:
        handle.write(b"x")
    with pytest.raises(UserError, match="cxr.h5 does not match .*build.json"):
        releases.build(out)
    (out / "build.json").write_text('{"settings": 3}')
    with pytest.raises(UserError, match="not the record of a build"):
        releases.build(out)
    releases.build(out, "--overwrite")
    assert hashes(out) == hashes(built)


def test_files_of_others_are_not_replaced(releases, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cxr.h5").write_text("ten years of work")
    with pytest.raises(UserError, match="cxr.h5 already exists"):
        releases.build(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cxr.h5"]
    (tmp_path / "mine" / "work" / "train").mkdir(parents=True)
    for command in (
        releases.build,
        lambda out: releases.build(out, "--overwrite"),
        lambda out: main(["finish", "--out", str(out)]),
    ):
        with pytest.raises(UserError, match="work already exists and belongs to no build"):
            command(tmp_path / "mine")
    assert (tmp_path / "mine" / "work" / "train").is_dir()


def test_overlaps_are_dropped_kept_or_stop_the_build(corpus, tmp_path):
    shutil.copy(
        corpus.chexpert / "test/patient64742/study1/view1_frontal.jpg",
        corpus.plus / "PNG/train/patient00001/study1/view1_frontal.jpg",
    )
    (corpus.plus / "PNG/train/patient00001/study1/view1_frontal.png").unlink()
    (corpus.plus / "PNG/train/patient00003/study2/view1_frontal.png").unlink()
    (corpus.plus / "PNG/train/patient00003/study2/view1_frontal.png").symlink_to(__file__)
    with pytest.raises(UserError, match="overlap_report.html"):
        corpus.build(tmp_path / "data", "--on_overlap", "stop", "--max_failures", "0.1")
    assert (tmp_path / "data" / "overlap_report.html").is_file() and not (tmp_path / "data" / "cxr.h5").exists()
    corpus.build(tmp_path / "data", "--max_failures", "0.1")
    names = list(pd.read_csv(tmp_path / "data" / "impressions.csv")["id"])
    left_out = pd.read_csv(tmp_path / "data" / "left_out.csv")
    dropped = left_out[left_out["reason"].str.contains("overlap with")]["id"]
    whole_patient = {f"chexpert_plus/train/patient00001/study{i}/view1_frontal" for i in (1, 2)}
    assert set(dropped) == whole_patient
    assert len(names) == 21 and not set(names) & set(dropped)
    record = json.loads((tmp_path / "data" / "build.json").read_text())
    assert sum(n for reason, n in record["left_out"].items() if "overlap" in reason) == 2 and record["overlap"]
    assert "patient0" not in json.dumps(record["left_out"]), "counts go into logs; ids do not"
    assert record["left_out"]["the path leads out of its root"] == 1
    corpus.build(tmp_path / "kept" / "data", "--on_overlap", "keep", "--max_failures", "0.1")
    assert len(pd.read_csv(tmp_path / "kept" / "data" / "impressions.csv")) == 23


# --- failures --------------------------------------------------------------------------------------------------


def test_unreadable_images_stop_the_build_and_are_listed(corpus, built, tmp_path):
    path = corpus.plus / "PNG/train/patient00002/study1/view1_frontal.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    out = tmp_path / "out" / "data"
    with pytest.raises(
        UserError,
        match=r"1 of 24 train images cannot be used, more than --max_failures "
        "0.001.*patient00002",
    ):
        corpus.build(out)
    listed = pd.read_csv(out / "left_out.csv").set_index("id")["reason"]
    assert "cut short" in listed["chexpert_plus/train/patient00002/study1/view1_frontal"]
    assert {p.name for p in out.iterdir()} == {"left_out.csv", "work", ".lock"}
    corpus.build(out, "--max_failures", "0.1")
    assert len(pd.read_csv(out / "impressions.csv")) == 23
    assert json.loads((out / "build.json").read_text())["counts"]["train"]["chexpert_plus/train"]["left_out"] == {
        "the file is cut short or is neither PNG, JPEG nor DICOM": 1
    }
    again = tmp_path / "again" / "data"
    with pytest.raises(UserError):
        corpus.build(again)
    path.write_bytes(whole)
    corpus.build(again)
    assert len(pd.read_csv(again / "impressions.csv")) == 24, "what was mended is tried again"
    assert hashes(again)["cxr.h5"] == hashes(built)["cxr.h5"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda p: p.unlink(), "not found"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.unlink() or p.mkdir(), "is not a file"),
        (lambda p: p.unlink() or p.symlink_to(__file__), "leads out"),
        (lambda p: save(p, np.full((60, 50), 7, np.uint8)), "constant"),
    ],
)
def test_an_evaluation_set_tolerates_no_failure(harm, words, corpus, tmp_path):
    harm(corpus.plus / "PNG/valid/patient64542/study1/view1_frontal.png")
    with pytest.raises(UserError, match=f"1 of 4 valid images cannot be used.*{words}") as caught:
        corpus.build(tmp_path / "data", "--max_failures", "0.9")
    assert "\n" not in str(caught.value) and not list((tmp_path / "data").glob("*.h5"))
    assert words in (tmp_path / "data" / "left_out.csv").read_text()


def test_one_output_folder_serves_one_build(releases, tmp_path):
    out = tmp_path / "data"
    out.mkdir()
    with open(out / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for more in ([], ["--shard", "1/2"]):
            with pytest.raises(UserError, match="in use by another build"):
                releases.build(out, *more)
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(UserError, match="in use by another build"):
            releases.build(out)
        releases.build(out, "--shard", "1/2")
    releases.build(out)
    assert not (out / ".lock").exists() and not (out / "work").exists()


def test_unfinished_work_of_other_settings_is_not_mixed_in(releases, built, tmp_path):
    out = tmp_path / "data"
    releases.build(out, "--shard", "1/2", "--depth16", "high_byte")
    with pytest.raises(UserError, match="unfinished work.*depth16: high_byte, now stretch"):
        releases.build(out)
    releases.build(out, "--overwrite")
    assert hashes(out)["cxr.h5"] == hashes(built)["cxr.h5"]


def test_a_damaged_block_is_prepared_again(releases, built, tmp_path):
    out = tmp_path / "data"
    releases.build(out, "--shard", "0/1")
    for role, size in (("train", 1000), ("valid", -30)):
        block = out / "work" / role / "000000.npz"
        block.write_bytes(block.read_bytes()[:size])
    with pytest.raises(UserError, match="not prepared yet"):
        main(["finish", "--out", str(out)])
    data = bytearray((out / "work/test/000000.npz").read_bytes())
    data[5000] ^= 1  # inside the images: found by the checksum
    (out / "work/test/000000.npz").write_bytes(data)
    releases.build(out, "--shard", "0/1")
    with pytest.raises(UserError, match="test/000000.npz is missing or damaged"):
        main(["finish", "--out", str(out)])
    (out / "work/test/000000.npz").unlink()
    releases.build(out)
    assert hashes(out) == hashes(built)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(releases, built, tmp_path):
    out = tmp_path / "x" / "data"
    for limit in (300_000, 2_000_000):  # fails while preparing; while writing cxr.h5 (2.5 MB)
        run = subprocess.run(
            command(releases, out),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
        errors = [line for line in run.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and "check the disk's space" in errors[0], run.stderr
        assert not list(out.glob("*.h5")) and not (out / "build.json").exists()
        assert not [p for p in out.rglob(".*.tmp")]
    releases.build(out)
    assert hashes(out) == hashes(built)


def test_too_little_space_is_said_before_the_work(releases, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(work.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="needs 0.0 GB, but the disk of .* has 0.0 GB free"):
        releases.build(tmp_path / "data")


def test_a_folder_for_the_manifests_that_cannot_be_is_said_before_the_work(releases, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write in .*file/splits: .*--splits"):
        releases.build(tmp_path / "data", "--splits", str(tmp_path / "file/splits"))
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("flags", [["--shard", "5/3"], ["--shard", "x"], ["--max_failures", "2"], ["--workers", "0"]])
def test_wrong_flags(releases, tmp_path, flags):
    with pytest.raises(SystemExit, match="2"):
        releases.build(tmp_path / "data", *flags)


# --- stopped at any moment -------------------------------------------------------------------------------------


def kill_and_resume(corpus: Corpus, out: Path, kills: int, seconds: float, whole: dict[str, str]) -> None:
    """Kill the build `kills` times at random moments, starting it again each time, then let it end. Where a build is
    finished before it is killed, it must be `whole`, and the next one starts anew."""
    rng, killed = random.Random(17), 0
    while killed < kills:
        process = subprocess.Popen(
            command(corpus, out), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(rng.uniform(0.2, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        assert process.wait() in (0, -signal.SIGKILL)
        if (out / "build.json").exists():
            assert {name: digest for name, digest in hashes(out).items() if name in whole} == whole
            shutil.rmtree(out)
    subprocess.run(command(corpus, out), cwd=REPOSITORY, check=True, capture_output=True)


def test_killed_and_resumed_is_the_same(releases, built, tmp_path):
    out = tmp_path / "data"
    process = subprocess.Popen(
        command(releases, out), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 60
    while not list(out.glob("work/valid/*.npz")) and time.time() < deadline:
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs([child for child in children if "tracker" not in str(child)], timeout=20)
    assert not alive, "workers outlive a killed build"
    releases.build(out)
    assert hashes(out) == hashes(built)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_twenty_times_and_resumed_is_the_same(tmp_path):
    corpus = write_releases(tmp_path / "releases", times=20)
    start = time.time()
    subprocess.run(command(corpus, tmp_path / "whole" / "data"), cwd=REPOSITORY, check=True, capture_output=True)
    whole = hashes(tmp_path / "whole" / "data")
    kill_and_resume(corpus, tmp_path / "again" / "data", 20, time.time() - start, whole)
    assert hashes(tmp_path / "again" / "data") == whole


# --- memory ----------------------------------------------------------------------------------------------------


def test_memory_of_the_command_and_of_its_workers(corpus, tmp_path):
    rng = np.random.default_rng(2)
    for i, path in enumerate(sorted((corpus.plus / "PNG/train").rglob("*.png"))[:6]):
        grey = cv2.resize(picture(rng, 200, 200), (2828, 2320))
        save(path, grey if i % 2 else np.dstack([grey, grey[::-1], grey]))  # every second image in colour
    process = psutil.Popen(
        command(corpus, tmp_path / "data", "--workers", "2"),
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak, worker_peak = 0, 0
    while process.poll() is None:
        try:
            own = process.cmdline()  # before exec, a child is a copy of its parent
            sizes = [child.memory_info().rss for child in process.children(recursive=True) if child.cmdline() != own]
            peak = max(peak, process.memory_info().rss + sum(sizes))
            worker_peak = max([worker_peak, *sizes])
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            pass
        time.sleep(0.03)
    assert process.returncode == 0
    assert worker_peak < 150 << 20, f"{worker_peak >> 20} MiB"
    assert peak < (1024 + 2 * 150) << 20, f"{peak >> 20} MiB"


def test_workers_do_without_torch():
    code = "import sys, data_prep.steps.blocks, data_prep.steps.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=os.environ).returncode == 0


def test_planning_memory_does_not_grow_with_the_rows(tmp_path):
    """Forty megabytes of reports are read one row at a time."""
    path = tmp_path / "df_chexpert_plus_240401.csv"
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path_to_image", "split", "section_impression"])
        writer.writerows(["train/a/b/c.jpg", "train", f"{i} " + 8000 * "x"] for i in range(5_000))
    code = (
        "import sys, resource; from pathlib import Path; from data_prep.releases.rows import read_records\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"n = sum(1 for _ in read_records(Path({str(path)!r}), ['split', 'section_impression'], ''))\n"
        "assert n == 5000\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 20_000, "KiB"


# --- on a cluster ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_slurm_script_runs_as_it_is(releases, built, tmp_path):
    """Run every task of the array with SLURM's variables; a fake `sbatch` records the joining job."""
    (tmp_path / "bin").mkdir()
    booked = tmp_path / "booked"
    (tmp_path / "bin/sbatch").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {booked}\n')
    (tmp_path / "bin/sbatch").chmod(0o755)
    root, out = tmp_path / "root", tmp_path / "with space" / "data"
    shutil.copytree(releases.root, root)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": path,
        "DATA_ROOT": str(root),
        "OUT": str(out),
        "FLAGS": " ".join(QUICK_AUDIT),
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_COUNT": "2",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "SLURM_JOB_ACCOUNT": "lab",
        "PYTHON": sys.executable,
    }
    for task in ("2", "1"):
        subprocess.run(
            ["bash", "docs/slurm/prepare_data.sbatch"],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            env=environment | {"SLURM_ARRAY_TASK_ID": task},
        )
    lines = booked.read_text().splitlines()
    assert "--dependency=afterok:77" in lines and "--account=lab" in lines
    assert not any(line.startswith("--partition") for line in lines)
    (tmp_path / "bin/sbatch").write_text("#!/bin/bash\nexit 1\n")  # some clusters do not allow a job to submit another
    run = subprocess.run(
        ["bash", "docs/slurm/prepare_data.sbatch"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        env=environment | {"SLURM_ARRAY_TASK_ID": "1"},
        text=True,
    )
    assert "run: " in run.stderr and "data_prep finish --out" in run.stderr
    wrapped = next(line for line in lines if line.startswith("--wrap=")).removeprefix("--wrap=")
    subprocess.run(["bash", "-c", wrapped], cwd=REPOSITORY, check=True, capture_output=True)
    assert hashes(out)["cxr.h5"] == hashes(built)["cxr.h5"]


def test_another_image_size_is_recorded_and_audited(releases, tmp_path):
    out = tmp_path / "data"
    releases.build(out, "--image_size", "448")
    for name in ("cxr", "valid", "test"):
        with open_images(out / f"{name}.h5") as handle:
            assert handle["cxr"].shape[1:] == (448, 448)
    assert json.loads((out / "build.json").read_text())["settings"]["image_size"] == 448
    with pytest.raises(UserError, match="image_size"):
        releases.build(out)
    places = ["--data", str(out), "--splits", str(tmp_path / "splits"), "--out", str(tmp_path / "audit")]
    main(["audit", *places, "--copies", "5"])
