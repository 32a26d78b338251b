"""The demo corpus: layouts, labels, wording, determinism, and a folder that is already in use."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chexzero.common import folders
from chexzero.common.errors import UserError
from chexzero.common.labels import FINDINGS, LABELS, NO_FINDING
from data_prep.demo import corpus
from data_prep.demo.cases import PARENTS, Finding, Patient, Study, labels_of, sample_patient, sample_study
from data_prep.demo.draw import draw_view
from data_prep.demo.reports import ABSENT, write_report

MAN = Patient("Male", 50, "White", build=5)


def hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes_on_any_number_of_processes(tmp_path, monkeypatch):
    sizes = dict(train=9, valid=2, test=2, seed=3)
    corpus.write_corpus(tmp_path / "one", **sizes, workers=1)
    monkeypatch.setattr(corpus, "FEW", 0)
    corpus.write_corpus(tmp_path / "two", **sizes, workers=2)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    corpus.write_corpus(tmp_path / "other", **sizes | {"seed": 4}, workers=1)
    same = hashes(tmp_path / "one").items() & hashes(tmp_path / "other").items()
    assert not [name for name, _ in same if name.endswith((".png", ".jpg"))]


def test_layout_of_chexpert_plus_and_chexpert(demo_releases):
    plus = demo_releases / "chexpert_plus"
    table = pd.read_csv(plus / "df_chexpert_plus_240401.csv", keep_default_na=False)
    assert list(table.columns) == corpus.PLUS_COLUMNS
    assert table["split"].value_counts().to_dict() == {"train": 18, "valid": 30}
    for row in table.itertuples():
        assert re.fullmatch(
            rf"{row.split}/{row.deid_patient_id}/study\d+/view\d_(frontal|lateral)\.jpg", row.path_to_image
        )
        assert row.frontal_lateral.lower() in row.path_to_image
        assert not (plus / "PNG" / row.path_to_image).exists()
        picture = cv2.imread(str((plus / "PNG" / row.path_to_image).with_suffix(".png")), cv2.IMREAD_UNCHANGED)
        assert picture.dtype == np.uint8 and picture.ndim == 2 and picture.std() > 20
        assert row.section_impression or row.section_findings
    numbers = table["deid_patient_id"].str.removeprefix("patient").astype(int)
    assert numbers[table["split"] == "train"].max() <= 64540
    assert numbers[table["split"] == "valid"].between(64541, 64740).all()

    valid = pd.read_csv(demo_releases / "chexpert" / "valid.csv")
    paths = table["path_to_image"][table["split"] == "valid"]
    assert list(valid["Path"]) == [f"CheXpert-v1.0/{path}" for path in paths]
    truth = pd.read_csv(demo_releases / "chexpert" / "groundtruth.csv")
    assert len(truth) == 28 and truth["Study"].is_unique
    for study in truth["Study"]:
        file = demo_releases / "chexpert" / study.removeprefix("CheXpert-v1.0/") / "view1_frontal.jpg"
        assert file.read_bytes()[:3] == b"\xff\xd8\xff"
    for labels in (valid[LABELS], truth[LABELS]):
        assert labels.isin((0, 1)).all(axis=None)
        assert labels.nunique().eq(2).all(), "both classes of every label"


def test_layout_of_rexgradient(demo_releases):
    metadata = demo_releases / "rexgradient" / "metadata"
    images, ranges, patients = 0, set(), {}
    for split in ("train", "valid", "test"):
        studies = json.loads((metadata / f"{split}_metadata_view_position.json").read_text())
        table = pd.read_csv(metadata / f"{split}_metadata.csv")
        assert list(table["id"]) == list(studies) and "ImagePath" not in table
        for key, study in studies.items():
            assert key == f"p{study['PatientID']}_a{study['AccessionNumber']}_s{study['StudyInstanceUid']}"
            assert len(study["ImagePath"]) == len(study["ImageViewPosition"])
            assert re.fullmatch(r"\d{3}Y", study["PatientAge"]) and study["PatientSex"] in "MF"
            assert patients.setdefault(study["PatientID"], split) == split
            for path in study["ImagePath"]:
                file = metadata / path
                picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
                assert picture.dtype == np.uint16 and picture.ndim == 2
                ranges.add(picture.max() > 4095)
                images += 1
    assert images == 18
    assert ranges == {True, False}, "some files fill the 16 bits, some only 12"


def test_says_that_it_is_drawn(demo_releases, capsys, tmp_path):
    for release in corpus.RELEASES:
        assert "drawn by code" in (demo_releases / release / "DRAWN.txt").read_text()
    assert json.loads((demo_releases / "demo.json").read_text())["drawn"] is True


def test_a_second_call_does_nothing_and_other_settings_are_refused(demo_releases):
    before = hashes(demo_releases)
    sizes = dict(train=36, valid=30, test=28, seed=11)
    assert corpus.write_corpus(demo_releases, **sizes) is False
    assert hashes(demo_releases) == before
    with pytest.raises(UserError, match="other settings"):
        corpus.write_corpus(demo_releases, **sizes | {"seed": 12})


def test_never_writes_over_a_real_release(tmp_path):
    csv = tmp_path / "chexpert_plus" / "df_chexpert_plus_240401.csv"
    csv.parent.mkdir()
    csv.write_text("real")
    with pytest.raises(UserError, match="chexpert_plus"):
        corpus.write_corpus(tmp_path, 1, 1, 1, 0)
    assert csv.read_text() == "real" and not (tmp_path / "chexpert").exists()


def test_an_interrupted_drawing_is_not_taken_for_whole(tmp_path, monkeypatch):
    def stop(pictures, workers):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_draw_all", stop)
        with pytest.raises(KeyboardInterrupt):
            corpus.write_corpus(tmp_path, 2, 1, 1, 0)
    assert not (tmp_path / "chexpert_plus").exists() and not (tmp_path / "demo.json").exists()
    assert corpus.write_corpus(tmp_path, 2, 1, 1, 0, workers=1) is True
    assert not (tmp_path / ".unfinished").exists()


@pytest.mark.parametrize("sizes", [dict(train=0), dict(valid=0), dict(test=-1), dict(seed=-1), dict(train=10**6)])
def test_wrong_sizes_are_refused(tmp_path, sizes):
    with pytest.raises(UserError, match="--" + next(iter(sizes))):
        corpus.write_corpus(tmp_path / "out", **dict(train=1, valid=1, test=1, seed=0) | sizes)


@pytest.mark.parametrize("train, valid, test", [(1, 1, 1), (7, 3, 2), (101, 450, 30)])
def test_counts_are_exact(train, valid, test):
    parts = {"plus_train": train - train // 2, "plus_valid": valid}
    for part, count in parts.items():
        cases = list(corpus.plan(part, count, 0))
        assert sum(len(case.study.views) for case in cases) == count
        assert max(case.patient for case in cases) < corpus.PATIENTS[part]
    studies = list(corpus.plan("chexpert_test", test, 0))
    assert len(studies) == test and all(case.study.views[0] != "LATERAL" for case in studies)


def sample(n: int, seed: int = 0) -> list[Study]:
    rng = np.random.default_rng(seed)
    return [sample_study(rng, sample_patient(rng)) for _ in range(n)]


def test_labels_follow_the_hierarchy_and_are_balanced():
    studies = sample(3000)
    for study in studies:
        drawn = {finding.label for finding in study.findings}
        positive = {label for label, value in study.labels.items() if value}
        assert drawn <= positive
        for label in positive:
            assert set(PARENTS.get(label, [])) <= positive
        assert (NO_FINDING in positive) == (not positive - {NO_FINDING, "Support Devices"})
    share = pd.DataFrame([study.labels for study in studies])[FINDINGS].mean()
    assert share.between(0.06, 0.5).all(), share
    severity = np.array([finding.severity for study in studies for finding in study.findings])
    assert 0.08 < (severity < 0.25).mean() < 0.3, "subtle cases are included"


def test_reports_say_what_is_there_and_deny_only_what_is_not():
    rng = np.random.default_rng(1)
    texts = []
    for study in sample(1500, seed=2):
        report = write_report(rng, study)
        texts.append(report.impression or report.findings)
        assert texts[-1].endswith(".") and "{" not in texts[-1] and "  " not in texts[-1]
        for label, words in ABSENT.items():
            for text in (report.findings, report.impression):
                if study.labels[label]:
                    assert not re.search(rf"\b(no|without) ({'|'.join(words)})\b", text.lower()), (label, text)
    counts = pd.Series(texts).value_counts()
    assert counts["No acute cardiopulmonary process."] > 30, "normal reports are repeated"
    assert len(counts) > 1000, "the others vary"
    joined = " ".join(texts).lower()
    assert all(phrase in joined for phrase in ("cannot be excluded", "possible", "degenerative", "correlation"))
    for label in FINDINGS:
        assert f"no {label.lower()}" in joined and label.lower() in joined


def frontal(*findings: Finding, view: str = "PA") -> np.ndarray:
    return draw_view(Study(MAN, findings, (view,), labels=labels_of(findings)), view, np.random.default_rng(8))


def test_pictures_vary_in_size_and_projection():
    shapes = set()
    for seed in range(12):
        picture = draw_view(Study(MAN, (), ("PA",)), "PA", np.random.default_rng(seed))
        assert picture.dtype == np.float32 and picture.min() >= 0 and picture.max() <= 1
        shapes.add(picture.shape)
    assert len(shapes) > 6 and any(h > w for h, w in shapes) and any(w > h for h, w in shapes)


@pytest.mark.parametrize(
    "finding, where, brighter",
    [
        (Finding("Pleural Effusion", "left", severity=0.9), (0.55, 0.75, 0.62, 0.85), True),
        (Finding("Pleural Effusion", "right", severity=0.9), (0.55, 0.75, 0.15, 0.38), True),
        (Finding("Pneumothorax", "right", severity=0.9), (0.15, 0.35, 0.22, 0.38), False),
        (Finding("Consolidation", "left", "mid", 1.0), (0.35, 0.62, 0.58, 0.85), True),
    ],
)
def test_findings_are_drawn_on_their_side(finding, where, brighter):
    """Compare pictures with and without the finding, same noise and pose; the patient's right is on the left."""
    differences = []
    for seed in range(4):
        pictures = [draw_view(Study(MAN, f, ("PA",)), "PA", np.random.default_rng(seed)) for f in ((finding,), ())]
        h, w = pictures[0].shape
        top, bottom, left, right = (int(f * n) for f, n in zip(where, (h, h, w, w), strict=True))
        box = (slice(top, bottom), slice(left, right))
        mirrored = (slice(top, bottom), slice(w - right, w - left))
        contrast = [picture[box].mean() - picture[mirrored].mean() for picture in pictures]
        differences.append(contrast[0] - contrast[1])
    assert (np.mean(differences) > 0.03) if brighter else (np.mean(differences) < -0.03), differences


@pytest.mark.parametrize("label", FINDINGS)
@pytest.mark.parametrize("view", ["AP", "LATERAL"])
def test_every_finding_can_be_drawn(label, view):
    for study in sample(200, seed=4):
        found = [finding for finding in study.findings if finding.label == label]
        if found:
            picture = frontal(*found, view=view)
            assert np.isfinite(picture).all() and picture.std() > 0.05
            return
    raise AssertionError(f"{label} is never sampled")


@pytest.mark.parametrize("moves", range(5))
def test_a_drawing_killed_at_its_end_goes_on(demo_releases, tmp_path, monkeypatch, moves):
    """After a kill at the n-th move into place, the next call moves the rest and redraws nothing."""
    sizes = {"train": 36, "valid": 30, "test": 28, "seed": 11}
    drawn = tmp_path / ".unfinished"
    drawn.mkdir()
    for name in (*corpus.RELEASES, corpus.WHOLE):
        copy = shutil.copytree if (demo_releases / name).is_dir() else shutil.copy
        copy(demo_releases / name, (tmp_path if (*corpus.RELEASES, corpus.WHOLE).index(name) < moves else drawn) / name)
    monkeypatch.setattr(corpus, "draw_picture", None)
    assert corpus.write_corpus(tmp_path, **sizes) is (moves < 4)
    assert corpus.write_corpus(tmp_path, **sizes) is False
    for path in demo_releases.rglob("[!.]*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(demo_releases)).read_bytes() == path.read_bytes()


def test_two_drawings_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    with folders.hold(tmp_path), pytest.raises(UserError, match="is being written by process"):
        corpus.write_corpus(tmp_path, 2, 2, 2, 0)
