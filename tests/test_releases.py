"""The readers: every layout in use, and one clear sentence for every damage."""

import argparse
import json
import re
import shutil
from pathlib import Path

import cv2
import pandas as pd
import pytest
from drawn_datasets import write_dicom
from hypothesis import example, given, settings
from hypothesis import strategies as st
from release_corpus import Corpus, copy_releases, write_releases

from chexzero.common.errors import UserError
from data_prep import build
from data_prep.releases import locate, rexgradient
from data_prep.releases.chexpert import image_key, read_table, study_key
from data_prep.releases.chexpert_plus import ChexpertPlus
from data_prep.releases.kaggle import image_files
from data_prep.releases.rows import Row, checked_path, read_records, read_rows
from data_prep.report_text import choose_report
from data_prep.roles import read_roles
from data_prep.steps.failures import read_left_out
from data_prep.steps.plan import describe, make_plan
from data_prep.steps.work import Work


@pytest.fixture(scope="session")
def releases(tmp_path_factory) -> Corpus:
    return write_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture
def corpus(releases, tmp_path) -> Corpus:
    """A copy that a test may change."""
    return copy_releases(releases, tmp_path / "releases")


def plan_rows(flags: list[str], out: Path) -> dict[str, list]:
    """The rows of each role that a build with these flags would prepare."""
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    args = parser.parse_args([*flags, "--out", str(out)])
    args.splits = out / "splits"
    work = Work(out)
    work.folder.mkdir(parents=True)
    plan = make_plan(args, *describe(args), work)
    rows = {role: list(read_rows(work.rows_path(role))) for role in plan.rows}
    rows["left_out"] = list(read_left_out(work))
    return rows


def ids(rows: dict[str, list]) -> dict[str, list[str]]:
    return {role: [row.id for row in rows[role]] for role in ("train", "valid", "test")}


@pytest.fixture(scope="session")
def usual(releases, tmp_path_factory) -> dict[str, list]:
    return plan_rows(releases.flags(), tmp_path_factory.mktemp("usual") / "data")


def test_roles_ids_and_order(usual):
    names = ids(usual)
    assert names["train"][:2] == [
        "chexpert_plus/train/patient00001/study1/view1_frontal",
        "chexpert_plus/train/patient00001/study2/view1_frontal",
    ]
    assert names["train"][14:17] == [
        "rexgradient/Gtrain0/Atrain0/1.2.0.0",
        "rexgradient/Gtrain1/Atrain1/1.2.1.0",
        "rexgradient/Gtrain1/Atrain1/1.2.1.1",
    ]
    assert [row.split for row in usual["train"][14:]] == ["train"] * 6 + ["valid"] * 3 + ["test"]
    assert len(names["valid"]) == 4
    assert all(name.startswith("chexpert_plus/valid/patient6454") for name in names["valid"])
    assert names["test"] == [
        f"chexpert/test/patient{64741 + i}/study1/{view}"
        for i, view in enumerate(["view2_frontal", "view1_frontal", "view1_frontal"])
    ]
    rex = usual["train"][16]
    assert (rex.view, rex.ap_pa, rex.age, rex.sex) == ("lateral", "", "45", "Female")
    assert rex.patient_id == "rexgradient/Gtrain1"
    assert rex.report == "Impression of train 1: ü." and rex.study_id == "rexgradient/Gtrain1/Atrain1"
    assert usual["train"][0].report == "1. Impression, of train/patient00001/study1/view1_frontal."
    assert usual["train"][2].report == "", "an empty impression is kept: it trains as a space"
    assert usual["valid"][1].labels == "10" * 7 and usual["test"][1].labels == "01" * 7  # columns found by name
    assert [left["reason"] for left in usual["left_out"]] == ["not the study's first frontal view"] * 2


def move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


def rename_all(folder: Path, old: str, new: str) -> None:
    for path in sorted(folder.rglob(f"*{old}")):
        path.rename(path.with_suffix(new))


def label_images(path: Path) -> None:
    """The test labels with one row per image, as in some copies."""
    text = path.read_text().replace("Study", "Path")
    path.write_text(text.replace("/study1,", "/study1/view1_frontal.jpg,"))


def by_patient(path: Path) -> None:
    """The validation labels with one row per patient."""
    path.write_text(re.sub(r"/study1/view1_\w+\.jpg", "", path.read_text()))


def as_dicom(folder: Path) -> None:
    """Replace PNG files with DICOM files of the same names."""
    for path in list(folder.rglob("*.png")):
        write_dicom(path.with_suffix(".dcm"), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        path.unlink()


def split_into_batches(c: Corpus) -> None:
    """CheXpert's original batches, with the patients directly in them."""
    for number, patients in enumerate(("patient0000[1-4]", "patient0000[5-9]"), start=2):
        for patient in (c.plus / "PNG/train").glob(patients):
            move(patient, c.plus / f"CheXpert-v1.0 batch {number} (train {number - 1})" / patient.name)
    move(c.plus / "PNG/valid", c.plus / "CheXpert-v1.0 batch 1 (validate & csv)")
    shutil.rmtree(c.plus / "PNG")


def flatten_rex(c: Corpus) -> None:
    """Put all of ReXGradient's images in one folder; in this corpus their names differ by split and study."""
    for split in ("train", "valid", "test"):
        studies = json.loads(c.rex_json(split).read_text())
        for study in studies.values():
            names = []
            for path in study["ImagePath"]:
                new = f"{split}.{Path(path).name}"
                move(c.rex / "metadata" / path, c.rex / "images" / new)
                names.append(f"{Path(path).parent}/{new}")
            study["ImagePath"] = names
        c.rex_json(split).write_text(json.dumps(studies))
    shutil.rmtree(c.rex / "deid_png")


def to_another_disk(c: Corpus) -> None:
    """Folders on other disks, linked into the releases."""
    for folder in (c.plus / "PNG/train", c.chexpert / "test", c.rex / "deid_png/Gtrain0", c.rex / "metadata"):
        other = c.root / "disk" / f"of_{folder.name}"
        move(folder, other)
        folder.symlink_to(other)


def chexlocalize(c: Corpus) -> None:
    """CheXpert's validation and test images in CheXlocalize's layout."""
    for old, new in (("valid", "val"), ("test", "test")):
        if (c.chexpert / old).is_dir():
            move(c.chexpert / old, c.root / "x" / new)
    move(c.chexpert / "valid.csv", c.root / "x/val_labels.csv")
    label_images(c.chexpert / "groundtruth.csv")
    move(c.chexpert / "groundtruth.csv", c.root / "x/test_labels.csv")
    move(c.root / "x", c.chexpert / "CheXlocalize/CheXpert")


LAYOUTS = {
    "PNG_train and PNG_valid": lambda c: [move(c.plus / "PNG" / s, c.plus / f"PNG_{s}") for s in ("train", "valid")],
    "one flat folder": lambda c: [
        move(patient, c.plus / "all" / patient.name) for patient in (c.plus / "PNG").glob("*/patient*")
    ],
    "Parquet": lambda c: pd.read_csv(c.plus_csv).to_parquet(c.plus_csv.with_suffix(".parquet")) or c.plus_csv.unlink(),
    "Parquet of another name": lambda c: (
        pd.read_csv(c.plus_csv).to_parquet(c.plus / "export.parquet") or c.plus_csv.unlink()
    ),
    "csv/ beside PNG/": lambda c: move(c.plus_csv, c.plus / "csv" / c.plus_csv.name),
    "download/metadata": lambda c: move(c.rex / "metadata", c.rex / "download/metadata"),
    "batches": split_into_batches,
    "DICOM only": lambda c: (
        move(c.plus / "PNG", c.plus / "DICOM/Uncompressed") or as_dicom(c.plus / "DICOM/Uncompressed")
    ),
    "JPEG in capitals": lambda c: rename_all(c.chexpert / "test", ".jpg", ".JPEG"),
    "labels by patient": lambda c: by_patient(c.chexpert / "valid.csv"),
    "CheXlocalize": chexlocalize,
    "folders on other disks": to_another_disk,
    "a derived table above the real one": lambda c: (
        c.plus_csv.with_name("df_chexpert_plus_240401_findings.csv").write_text(
            "".join(c.plus_csv.read_text().splitlines(True)[:3])
        )
        and move(c.plus_csv, c.plus / "deep/er" / c.plus_csv.name)
    ),
    "PNG/PNG": lambda c: (
        move(c.plus / "PNG" / "train", c.plus / "PNG/PNG/train")
        or move(c.plus / "PNG" / "valid", c.plus / "PNG/PNG/valid")
    ),
    "train/ at the root": lambda c: [move(c.plus / "PNG" / s, c.plus / s) for s in ("train", "valid")],
    "jpg on disk": lambda c: rename_all(c.plus / "PNG", ".png", ".jpg"),
    "images/deid_png": lambda c: move(c.rex / "deid_png", c.rex / "images/deid_png"),
    "test as png": lambda c: rename_all(c.chexpert / "test", ".jpg", ".png"),
    "CheXpert-v1.0/": lambda c: move(c.chexpert, c.root / "x/CheXpert-v1.0") or move(c.root / "x", c.chexpert),
    "no prefix in the labels": lambda c: [
        path.write_text(path.read_text().replace("CheXpert-v1.0/", "")) for path in c.chexpert.glob("*.csv")
    ],
    "prefix in the table": lambda c: c.edit_plus(
        lambda t: t.assign(path_to_image="CheXpert-v1.0/" + t["path_to_image"])
    ),
    "labels by image": lambda c: label_images(c.chexpert / "groundtruth.csv"),
    "macOS's own files": lambda c: [
        (path.parent / f"._{path.name}").write_bytes(b"x") for path in list(c.chexpert.rglob("*.jpg"))
    ],
    "byte order mark": lambda c: c.plus_csv.write_text(c.plus_csv.read_text(), encoding="utf-8-sig"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_rows(layout, corpus, usual, tmp_path):
    LAYOUTS[layout](corpus)
    rows = plan_rows(corpus.flags(), tmp_path / "data")
    assert ids(rows) == ids(usual)
    assert not any(row.problem for role in ("train", "valid", "test") for row in rows[role])
    assert all((Path(row.root) / row.path).is_file() for role in ("train", "valid", "test") for row in rows[role])
    assert [row.labels for row in rows["test"]] == [row.labels for row in usual["test"]]


def test_flattened_rexgradient(corpus, usual, tmp_path):
    flatten_rex(corpus)
    rows = plan_rows(corpus.flags(), tmp_path / "data")["train"]
    assert len(rows) == len(usual["train"]) and not any(row.problem for row in rows)


@pytest.mark.parametrize(
    "layout",
    ["csv/ beside PNG/", "download/metadata", "CheXlocalize", "PNG_train and PNG_valid", "folders on other disks"],
)
def test_layouts_under_one_data_root(layout, corpus, usual, tmp_path):
    LAYOUTS[layout](corpus)
    assert ids(plan_rows(["--data_root", str(corpus.root)], tmp_path / "data")) == ids(usual)


@pytest.mark.parametrize(
    ("lost", "archive", "command"),
    [
        ("chexpert_plus/PNG", "png_chexpert_plus_chunk_0.zip", "for part in .*png_chexpert_plus_chunk.*zip; do unzip"),
        ("rexgradient/deid_png", "deid_png.part00", r"cat .*deid_png\.part\* \| tar --zstd -x -C "),
        ("chexpert/test", "CheXpert-v1.0.zip", "unzip"),
        ("chexpert/valid.csv", "chexpert.tar.gz", "tar -xzf"),
    ],
)
def test_an_archive_that_is_not_unpacked_is_named_with_its_command(lost, archive, command, corpus, tmp_path):
    move(corpus.root / lost, tmp_path / "lost")
    (corpus.root / lost).parent.joinpath(archive).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{archive} is there, not unpacked; unpack it: .*{command}"):
        plan_rows(corpus.flags(), tmp_path / "data")


def test_odd_entries_are_left_out_and_listed(corpus, tmp_path):
    corpus.edit_rex(lambda s: s.update(PatientAge=45))
    corpus.edit_rex(lambda s: s.update(ImagePath="../deid_png/a/b/c.png"), "valid")
    first("deid_patient_id", "")(corpus)
    rows = plan_rows(corpus.flags(), tmp_path / "data")
    listed = [left for left in rows["left_out"] if "cannot be used" in left["reason"]]
    assert [left["id"] for left in listed] == [
        "chexpert_plus/row 1",
        "rexgradient/pGtrain0_aAtrain0_s1.2.0",
        "rexgradient/pGvalid0_aAvalid0_s1.2.0",
    ]
    assert "PatientAge is 45, not text" in listed[1]["reason"] and len(rows["train"]) == 24 - 3
    with pytest.raises(UserError, match=r"PatientAge.*\(2 such entries, more than --max_bad_records 1 allows\)"):
        plan_rows(corpus.flags("--max_bad_records", "1"), tmp_path / "data2")


def test_two_series_with_files_of_one_name_are_two_images(corpus, tmp_path):
    base = "../deid_png/Gtrain1/Atrain1/studies/1.2.1/series"
    paths = [f"{base}/{series}/instances/1.png" for series in ("s1", "s2")]
    for path in paths:
        move(next((corpus.rex / "deid_png/Gtrain1").rglob("1.2.1*.png")), corpus.rex / "metadata" / path)
    studies = json.loads(corpus.rex_json("train").read_text())
    list(studies.values())[1]["ImagePath"] = paths
    corpus.rex_json("train").write_text(json.dumps(studies))
    rows = plan_rows(corpus.flags(), tmp_path / "data")["train"]
    assert [row.id for row in rows[15:17]] == [f"rexgradient/Gtrain1/Atrain1/{series}/1" for series in ("s1", "s2")]
    assert not any(row.problem for row in rows)


def test_a_table_cut_short_is_a_warning(corpus, tmp_path, caplog):
    plan_rows(corpus.flags(), tmp_path / "data")
    assert "chexpert_plus, split train: the table has 14 images where the release has 223,228" in caplog.text


@pytest.mark.parametrize("text", ["None", "None.", "nan", "N/A", "NONE", "[]", "___", " . ", "___.", "n/a.", ""])
def test_reports_that_are_no_reports_are_empty(text, corpus, tmp_path):
    first("section_impression", text)(corpus)
    assert plan_rows(corpus.flags(), tmp_path / "data")["train"][0].report == ""


@pytest.mark.parametrize("text", ["No change.", "Normal.", "None of the lines moved.", "1.", "NA"])
def test_short_reports_that_are_reports_stay(text):
    kept = choose_report(Row(*[""] * 8, impression=text), "impression")
    assert kept == ("" if text in ("NA",) else text)


def test_reports_are_cleaned_if_asked(corpus, tmp_path):
    text = "1. Edema in ___ lung, 2.5 cm. 2. No change. I have personally reviewed the images for this examination."
    first("section_impression", text)(corpus)
    assert plan_rows(corpus.flags(), tmp_path / "data")["train"][0].report == text
    cleaned = plan_rows(corpus.flags("--clean_reports"), tmp_path / "data2")["train"][0].report
    assert cleaned == "Edema in lung, 2.5 cm. No change."


def test_the_usual_ending_is_taken_before_another(corpus, tmp_path):
    for split in ("train", "valid"):
        shutil.copytree(corpus.plus / "PNG" / split, corpus.plus / "CheXpert-v1.0" / split)
    rename_all(corpus.plus / "CheXpert-v1.0", ".png", ".jpg")
    rows = plan_rows(corpus.flags(), tmp_path / "data")
    assert {Path(row.root).name for row in rows["train"][:14] + rows["valid"]} == {"PNG"}


def test_a_folder_of_patients_of_another_set_is_not_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr(locate, "CROWD", 5)
    for k in range(6):
        (tmp_path / f"files/p10/p{k}/s1").mkdir(parents=True)
        (tmp_path / f"set{k}/metadata").mkdir(parents=True)
    found = {path.relative_to(tmp_path).as_posix() for path in (f.path for f in locate.folders(tmp_path))}
    assert "files/p10" in found and "files/p10/p0" not in found and "set5/metadata" in found


def test_data_root_as_the_first_users_have_it(corpus, usual, tmp_path):
    root = tmp_path / "root"
    move(corpus.plus_csv, root / "CheXpert/chexpertplus" / corpus.plus_csv.name)
    move(corpus.plus / "PNG", root / "CheXpert/chexpertplus/PNG/PNG")
    move(corpus.chexpert / "test", root / "CheXpert/CheXpert-v1.0/test")
    move(corpus.chexpert / "valid.csv", root / "CheXpert/CheXpert-v1.0/valid.csv")
    move(corpus.chexpert / "groundtruth.csv", root / "CheXpert/cheXpert-test-set-labels/groundtruth.csv")
    move(corpus.rex / "metadata", root / "RexGradient/data/metadata")
    move(corpus.rex / "deid_png", root / "RexGradient/data/images/deid_png")
    assert ids(plan_rows(["--data_root", str(root)], tmp_path / "data")) == ids(usual)


def test_a_flag_for_each_path(corpus, usual, tmp_path):
    places = tmp_path / "places"
    flags = []
    for flag, source in {
        "chexpert_plus_csv": corpus.plus_csv,
        "chexpert_plus_images": corpus.plus / "PNG",
        "chexpert_valid_csv": corpus.chexpert / "valid.csv",
        "chexpert_test_csv": corpus.chexpert / "groundtruth.csv",
        "chexpert_images": corpus.chexpert,
        "rexgradient_metadata": corpus.rex / "metadata",
        "rexgradient_images": corpus.rex / "deid_png",
    }.items():
        target = places / flag / source.name
        move(source, target)
        flags += [f"--{flag}", str(target)]
    assert ids(plan_rows(flags, tmp_path / "data")) == ids(usual)


@pytest.mark.parametrize(
    ("lost", "flag"),
    [
        ("chexpert_plus/df_chexpert_plus_240401.csv", "--chexpert_plus_csv"),
        ("chexpert_plus/PNG", "--chexpert_plus_images"),
        ("chexpert/valid.csv", "--chexpert_valid_csv"),
        ("chexpert/groundtruth.csv", "--chexpert_test_csv"),
        ("chexpert/test", "--chexpert_images"),
        ("rexgradient/metadata", "--rexgradient_metadata"),
        ("rexgradient/deid_png", "--rexgradient_images"),
    ],
)
def test_what_is_not_found_is_named_with_its_flag(lost, flag, corpus, tmp_path):
    move(corpus.root / lost, tmp_path / "lost")
    for flags in (corpus.flags(), ["--data_root", str(corpus.root)]):
        with pytest.raises(UserError, match=flag):
            plan_rows(flags, tmp_path / f"data{len(flags)}")


def test_without_any_folder_the_flags_are_named(tmp_path):
    with pytest.raises(UserError, match="--chexpert_plus.*--data_root"):
        plan_rows([], tmp_path / "data")
    with pytest.raises(UserError, match="--data_root .*nowhere: there is no such folder"):
        plan_rows(["--data_root", str(tmp_path / "nowhere")], tmp_path / "data2")


def test_choices(releases, corpus, tmp_path):
    def planned(*flags):
        planned.count += 1
        return plan_rows(releases.flags(*flags), tmp_path / f"data{planned.count}")

    planned.count = 0

    frontal = planned("--views", "frontal")
    assert {row.view for row in frontal["train"]} == {"frontal"}
    listed = [left for left in frontal["left_out"] if left["reason"] == "view is lateral"]
    assert len(frontal["train"]) + len(listed) == 24 and listed
    assert len(planned("--test_views", "all")["test"]) == 5
    assert len(planned("--empty_report", "drop")["train"]) == 23
    with_findings = planned("--empty_report", "findings")["train"]
    assert with_findings[2].report.startswith("Findings of") and with_findings[1].report.startswith("1. Impression")
    both = planned("--section", "both")["train"][0].report
    assert both == "Findings of {0}. 1. Impression, of {0}.".format("train/patient00001/study1/view1_frontal")
    with pytest.raises(UserError, match="patient64544/study1 of the valid set has no frontal.*--valid_views all"):
        planned("--valid_views", "first_frontal")
    corpus.edit_rex(lambda study: study.update(ImageViewPosition=["UNKNOWN"]))
    left = plan_rows(corpus.flags("--views", "not_lateral"), tmp_path / "unknown")["train"]
    assert "other" in {row.view for row in left} and "lateral" not in {row.view for row in left}


@pytest.mark.parametrize("moved", [False, True], ids=["beside CheXpert", "beside CheXpert-Plus"])
def test_test_rows_in_the_table_of_chexpert_plus_are_used(moved, corpus, usual, tmp_path):
    """Their images may be in either release's folder."""

    def add(table):
        new = table.iloc[[0] * 3].copy()
        new["path_to_image"] = [f"test/patient{64741 + i}/study1/view{2 - (i > 0)}_frontal.jpg" for i in range(3)]
        new["deid_patient_id"], new["split"] = [f"patient{64741 + i}" for i in range(3)], "test"
        return pd.concat([table, new])

    corpus.edit_plus(add)
    if moved:
        move(corpus.chexpert / "test", corpus.plus / "PNG/test")
    rows = plan_rows(corpus.flags(), tmp_path / "data")["test"]
    assert not any(row.problem for row in rows)
    assert [row.id for row in rows] == [row.id.replace("chexpert/", "chexpert_plus/") for row in usual["test"]]
    assert [row.labels for row in rows] == [row.labels for row in usual["test"]] and rows[0].race == "Unknown"


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ({"train": {"chexpert_plus": ["train", "valid"]}}, "of chexpert_plus are named for train and for valid"),
        ({"valid": {"chexpert": ["valid"], "chexpert_plus": ["valid"]}}, "name them once"),
        ({"test": {"rexgradient": ["test"]}}, "rexgradient"),
        ({"train": {"chexpert": ["valid"]}}, "chexpert"),
        ({"test": {}}, "test names no release"),
        ({"test": {"chexpert": ["training"]}}, "there are only"),
        ({"other": {"chexpert": ["test"]}}, "exactly the roles"),
        ({"test": ["chexpert"]}, "exactly the roles"),
    ],
)
def test_roles_that_leak_or_cannot_be_played_are_refused(roles, words, tmp_path):
    usual_roles = {
        "train": {"chexpert_plus": ["train"]},
        "valid": {"chexpert_plus": ["valid"]},
        "test": {"chexpert": ["test"]},
    }
    path = tmp_path / "roles.yaml"
    path.write_text(json.dumps(usual_roles | roles))
    with pytest.raises(UserError, match=words):
        read_roles(path)


def test_other_roles(corpus, usual, tmp_path):
    """CheXpert's own validation images are used if present; a release without a role need not be present."""
    shutil.copytree(corpus.plus / "PNG/valid", corpus.chexpert / "valid")
    shutil.rmtree(corpus.rex)
    path = tmp_path / "roles.yaml"
    path.write_text("train: {chexpert_plus: [train]}\nvalid: {chexpert: [valid]}\ntest: {chexpert: [test]}\n")
    rows = plan_rows(["--data_root", str(corpus.root), "--roles", str(path)], tmp_path / "data")
    assert [row.labels for row in rows["valid"]] == [row.labels for row in usual["valid"]]
    assert rows["valid"][0].id == "chexpert/valid/patient64541/study1/view1_frontal" and len(rows["train"]) == 14


def first(column, value):
    """Damage to the first row of CheXpert-Plus's table."""

    def edit(table):
        table.loc[0, column] = value

    return lambda c: c.edit_plus(edit)


def study(**values):
    """Damage to the first study of ReXGradient."""
    return lambda c: c.edit_rex(lambda s: s.update(values))


def replace(name, old, new):
    def damage(c):
        path = c.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


#: damage -> (the function that does it, the expected message)
DAMAGES = {
    "missing column": (
        lambda c: c.edit_plus(lambda t: t.drop(columns="section_impression")),
        "df_chexpert_plus_240401.csv lacks the column section_impression",
    ),
    "missing split column": (lambda c: c.edit_plus(lambda t: t.drop(columns="split")), "lacks the column split"),
    "no patient": (first("deid_patient_id", ""), "row 1: deid_patient_id is empty"),
    "NaN patient": (first("deid_patient_id", "nan"), "row 1: deid_patient_id is empty"),
    "no path": (first("path_to_image", ""), "row 1: path_to_image is empty"),
    "climbing path": (first("path_to_image", "train/../../../etc/passwd"), "row 1.*leads out"),
    "absolute path": (first("path_to_image", "/etc/train/patient1/study1/view1_frontal.jpg"), "row 1.*leads out"),
    "short path": (first("path_to_image", "train/patient00001.jpg"), "row 1.*not like train/patient00001/study1"),
    "odd path": (first("path_to_image", "train/pat\tient/study1/view1_frontal.jpg"), "row 1.*invalid part"),
    "ragged row": (lambda c: c.plus_csv.write_text(c.plus_csv.read_text() + "a,b\n"), "row 19: 2 cells"),
    "cut in quotes": (lambda c: c.plus_csv.write_text(c.plus_csv.read_text() + 'train,"cut'), "after row 18.*CSV"),
    "latin-1": (
        lambda c: c.plus_csv.write_bytes(c.plus_csv.read_bytes().replace(b"whole", b"\xfcber", 1)),
        "UTF-8.*iconv",
    ),
    "latin-1 labels": (lambda c: (c.chexpert / "valid.csv").write_bytes(b"Path,Sch\xfcler\n"), "UTF-8.*iconv"),
    "empty table": (lambda c: c.plus_csv.write_text(""), "lacks the column.*it has: nothing"),
    "no labels for an image": (replace("chexpert/valid.csv", "patient64542", "patient64999"), "has no labels for it"),
    "label of no image": (lambda c: c.edit_plus(lambda t: t.iloc[:-1]), "labels valid/patient64544.*no such image"),
    "labelled twice": (
        lambda c: (c.chexpert / "valid.csv").write_text(
            (c.chexpert / "valid.csv").read_text() + (c.chexpert / "valid.csv").read_text().splitlines()[1] + "\n"
        ),
        "row 5.*labelled twice",
    ),
    "blank label": (replace("chexpert/valid.csv", ",0.0,1.0", ",,1.0"), "valid.csv, row 1.*not 0 or 1"),
    "uncertain label": (replace("chexpert/valid.csv", ",0.0,1.0", ",-1,1.0"), "valid.csv, row 1.*-1.*not 0 or 1"),
    "label column lost": (replace("chexpert/groundtruth.csv", "Fracture", "Bruch"), "lacks the column Fracture"),
    "validation row twice": (lambda c: c.edit_plus(lambda t: pd.concat([t, t.iloc[[-1]]])), "twice"),
    "study without image": (
        replace("chexpert/groundtruth.csv", "patient64742", "patient64750"),
        "patient64750.*no image",
    ),
    "one path as text": (study(ImagePath="../deid_png/a/b/c.png"), "pGtrain0.*ImagePath is .*not a list"),
    "path of a wrong type": (study(ImagePath=[5]), "pGtrain0.*ImagePath is .*not a list of texts"),
    "null path": (study(ImagePath=[None]), "pGtrain0.*ImagePath is empty"),
    "climbing ImagePath": (study(ImagePath=["../../../etc/passwd.png"]), "pGtrain0.*leads out"),
    "absolute ImagePath": (study(ImagePath=["/etc/deid_png/x.png"]), "pGtrain0.*leads out"),
    "ImagePath elsewhere": (study(ImagePath=["../other/x.png"]), "pGtrain0.*not like ../deid_png"),
    "views missing": (study(ImageViewPosition=[]), "1 ImagePath but 0 ImageViewPosition"),
    "no PatientID": (study(PatientID=None), "pGtrain0.*PatientID is ''"),
    "NaN PatientID": (study(PatientID=float("nan")), "pGtrain0.*PatientID is ''"),
    "number as PatientID": (study(PatientID=17), "pGtrain0.*PatientID is 17, not text"),
    "list as Impression": (study(Impression=["a"]), "pGtrain0.*Impression is .*not text"),
    "lost key": (lambda c: c.edit_rex(lambda s: s.pop("ImagePath")), "pGtrain0.* lacks ImagePath"),
    "text instead of studies": (lambda c: c.rex_json("train").write_text("studies"), "after 0 studies: not valid JSON"),
    "study is a list": (lambda c: c.rex_json("train").write_text('{"a": []}'), "a: the entry is a list"),
    "cut JSON": (lambda c: c.rex_json("train").write_text(c.rex_json("train").read_text()[:-40]), "not valid JSON"),
    "empty JSON": (lambda c: c.rex_json("train").write_text(""), "not valid JSON"),
    "JSON twice in a file": (
        lambda c: c.rex_json("train").write_text(2 * c.rex_json("train").read_text()),
        "not valid JSON.*garbage",
    ),
    "no study": (
        lambda c: [c.rex_json(split).write_text(" {} ") for split in ("train", "valid", "test")],
        "no row belongs to the split train or valid or test; name the right table",
    ),
    "split spelled otherwise": (
        lambda c: c.edit_plus(lambda t: t.replace({"split": {"train": "Train"}})),
        "df_chexpert_plus_240401.csv, row 1: the split is 'Train', none of train, valid, test",
    ),
    "odd file name": (
        lambda c: (c.chexpert / "test/patient64742/study1/view1 (1).jpg").touch(),
        "study1: a file's name has the invalid part",
    ),
    "latin-1 JSON": (lambda c: c.rex_json("train").write_bytes(b'{"\xfc": 1}'), "UTF-8.*iconv"),
    "study twice": (
        lambda c: c.rex_json("train").write_text(
            '{"a": %s, "a": %s}' % (2 * (json.dumps(next(iter(json.loads(c.rex_json("train").read_text()).values()))),))
        ),
        "study a occurs twice",
    ),
    "two tables": (
        lambda c: (
            shutil.copy(c.plus_csv, c.plus / "df_chexpert_plus_other.csv")
            and c.plus_csv.rename(c.plus / "df_chexpert_plus_third.csv")
        ),
        "both .* match; name one with --chexpert_plus_csv",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tables_give_one_clear_sentence(damage, corpus, tmp_path):
    harm, words = DAMAGES[damage]
    harm(corpus)
    with pytest.raises(UserError, match=f"(?s){words}") as caught:
        corpus.build(tmp_path / "out" / "data", "--max_bad_records", "0")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    assert list((tmp_path / "out").rglob("*.*")) == [], "nothing half-made is left"


def test_duplicate_training_rows_are_left_out_and_listed(corpus, tmp_path):
    corpus.edit_plus(lambda t: pd.concat([t, t.iloc[[0]]]))
    rows = plan_rows(corpus.flags(), tmp_path / "data")
    assert len(rows["train"]) == 24
    listed = [left["id"] for left in rows["left_out"] if left["reason"] == "duplicate of an earlier row"]
    assert listed == [rows["train"][0].id]


def test_a_study_without_an_image_is_listed(corpus, tmp_path):
    corpus.edit_rex(lambda s: s.update(ImagePath=[], ImageViewPosition=[]))
    rows = plan_rows(corpus.flags(), tmp_path / "data")
    assert len(rows["train"]) == 23
    left_out = rows["left_out"][0]
    assert (left_out["id"], left_out["reason"]) == ("rexgradient/Gtrain0/Atrain0", "study without an image")


def test_patient_of_the_column_is_kept_beside_the_path(corpus, tmp_path):
    first("deid_patient_id", "patient64541")(corpus)
    row = plan_rows(corpus.flags(), tmp_path / "data")["train"][0]
    assert (row.patient_id, row.patient_id_column) == ("patient00001", "patient64541")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("train/patient00001/study1/view1_frontal.jpg", "train/patient00001/study1/view1_frontal"),
        ("CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg", "valid/patient64541/study1/view1_frontal"),
        ("PNG/PNG/test/patient1/study2/view1_lateral.png", "test/patient1/study2/view1_lateral"),
        ("./train/patient1/study2/v.1.png", "train/patient1/study2/v.1"),
    ],
)
def test_image_key(text, key):
    assert image_key(text, "row 1") == key
    assert study_key(text, "row 1") == key.rsplit("/", 1)[0] == study_key(str(Path(text).parent) + "/", "row 1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=40)
    | st.lists(st.sampled_from(["..", ".", "", "train", "a", "/", "\\", "\0"]), max_size=7).map("/".join)
)
def test_no_path_of_a_table_leaves_its_root(text):
    for check in (
        lambda: checked_path(text, "row 1").as_posix(),
        lambda: image_key(text, "row 1"),
        lambda: rexgradient.image_path(text, "row 1"),
    ):
        try:
            path = check()
        except UserError as error:
            assert "row 1" in str(error)
        else:
            assert not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(
        ["PatientID", "AccessionNumber", "PatientAge", "Findings", "Impression", "ImageViewPosition", "ImagePath"]
    ),
    value=json_values,
)
def test_any_json_value_gives_rows_or_one_sentence(name, value):
    entry = {
        "PatientID": "G1",
        "AccessionNumber": "A1",
        "PatientSex": "M",
        "PatientAge": "045Y",
        "Findings": "f",
        "Impression": "i",
        "ImageViewPosition": ["PA"],
        "ImagePath": ["../deid_png/G1/A1/x.png"],
        name: value,
    }
    try:
        rows = rexgradient.study_rows(entry, "train", "file, key")
    except UserError as error:
        assert str(error).startswith("file, key")
    else:
        for row in rows:
            assert row.id.startswith("rexgradient/") and row.id.encode() and row.report == ""


@settings(max_examples=60, deadline=None)
@example(studies={"NaN": None, "a": 'x" NaN, NaN'}, indent=None, ascii_only=False, piece=1)
@given(
    studies=st.dictionaries(st.text(), json_values, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    piece=st.integers(1, 7),
)
def test_streamed_json_is_what_the_json_module_reads(studies, indent, ascii_only, piece, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "studies.json"
    text = json.dumps(studies, indent=indent, ensure_ascii=ascii_only)
    try:
        path.write_text(text, encoding="utf-8")
    except UnicodeEncodeError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rexgradient, "PIECE", piece)
        read = dict(rexgradient.read_entries(path))
    assert read == json.loads(text, parse_constant=lambda _: None) and list(read) == list(studies)


@pytest.fixture(scope="session")
def readers(releases) -> dict:
    """A table's path -> the function that reads a whole copy of it."""
    return {
        releases.plus_csv: lambda path: list(ChexpertPlus({"": path}, [locate.Place(releases.plus)]).rows("train")),
        releases.chexpert / "valid.csv": lambda path: read_table(path, "valid"),
        releases.chexpert / "groundtruth.csv": lambda path: read_table(path, "test"),
        releases.rex_json("train"): lambda path: list(rexgradient.Rexgradient({"train": path}, []).rows("train")),
    }


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_table_gives_rows_or_one_sentence(data, readers, tmp_path_factory):
    original = data.draw(st.sampled_from(list(readers)))
    damaged = bytearray(original.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        cut = data.draw(st.integers(0, 3) | st.just(len(damaged)))
        damaged[at : at + cut] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b",", b"\n", b"..", b"null", b"NaN"])
        )
    path = tmp_path_factory.mktemp("damaged") / original.name
    path.write_bytes(damaged)
    try:
        rows = readers[original](path)
    except UserError as error:
        assert original.name in str(error) and len(str(error)) < 1000
        return
    for row in (row for row in rows if not row.problem) if isinstance(rows, list) else ():
        assert not row.path.startswith("/") and ".." not in row.path.split("/") and row.patient_id_column.strip()


def test_the_demo_corpus_and_the_real_layout_are_read(demo_releases, tmp_path):
    rows = plan_rows(["--data_root", str(demo_releases)], tmp_path / "data")
    assert len(rows["train"]) == 36 and len(rows["valid"]) == 30 and len(rows["test"]) == 28
    assert not any(row.problem for role in ("train", "valid", "test") for row in rows[role])


@pytest.mark.parametrize(
    ("text", "kept_out", "found"),
    [
        ("patient00001\nG-nowhere\n", 2, 1),
        ("train/patient00001/study1\n", 1, 1),
        ("Path,Report Impression\nCheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg,x\n", 1, 1),
        ("imgpath\n./data/CheXpert/CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg\n", 1, 1),
        ("rexgradient/Gtrain1\n", 2, 1),
        ("../deid_png/Gtrain1/Atrain1/studies/1.2.1/1.2.1.0.png\n", 1, 1),
        ("Gvalid1/Avalid1\nview1_frontal.jpg\n", 2, 1),
    ],
)
def test_keep_out_lists_patients_studies_or_images(text, kept_out, found, releases, tmp_path, caplog):
    (tmp_path / "list.csv").write_text(text)
    rows = plan_rows(releases.flags("--keep_out", str(tmp_path / "list.csv")), tmp_path / "data")
    listed = [left for left in rows["left_out"] if left["reason"] == "kept out by list.csv"]
    assert len(listed) == kept_out == 24 - len(rows["train"])
    counts = json.loads((tmp_path / "data/work/plan.json").read_text())["counts"]["keep_out"][
        str(tmp_path / "list.csv")
    ]
    assert (counts["found"], counts["images"]) == (found, kept_out)
    assert ("match nothing in the training releases" in caplog.text) == (counts["entries"] > found)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_a_keep_out_list_of_nothing_is_refused(text, releases, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match="list.csv (lists nothing|has none of the columns)"):
        plan_rows(releases.flags("--keep_out", str(tmp_path / "list.csv")), tmp_path / "data")


@pytest.mark.parametrize("line", ["1,2", "1,2,", "1,2,,,", "\n1,2", "1,2\n\n"])
def test_empty_cells_beyond_the_header_and_empty_lines_are_passed_over(line, tmp_path):
    (tmp_path / "t.csv").write_text(f"a, b\n{line}\n3,4\n")
    read = read_records(tmp_path / "t.csv", ["b"], "", optional=["a", "c"])
    assert [record for _, record in read] == [{"b": "2", "a": "1"}, {"b": "4", "a": "3"}]


@pytest.mark.parametrize(("line", "cells"), [("1", 1), ("1,2,x", 3), ("1,2,,x", 4), ("1,2,x,", 4)])
def test_a_row_of_another_length_than_the_header_is_refused(line, cells, tmp_path):
    (tmp_path / "t.csv").write_text(f"a,b\n1,2\n{line}\n")
    with pytest.raises(UserError, match=f"row 2: {cells} cells where the header has 2"):
        list(read_records(tmp_path / "t.csv", ["a"], ""))


@pytest.mark.parametrize(
    ("columns", "words"),
    [("abx", r"lacks the column x \(it has: a, b, c, c\)"), ("xay", "columns x, y "), ("c", "c twice")],
)
def test_columns_that_are_missing_or_there_twice_are_named(columns, words, tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c,c\n1,2,3,4\n")
    with pytest.raises(UserError, match=words):
        list(read_records(tmp_path / "t.csv", list(columns), ""))
    assert list(read_records(tmp_path / "t.csv", ["b"], "")) == [(1, {"b": "2"})]


def test_image_files_are_found_at_any_depth_and_nothing_else_is(tmp_path):
    for name in ("a.png", "deep/er/b.dcm.gz", "deep/c.JPG", "._a.png", ".hidden.png", "notes.txt", "deep/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert image_files(tmp_path) == {"a": "a.png", "b": "deep/er/b.dcm.gz", "c": "deep/c.JPG"}


def test_a_file_is_named_by_the_root_that_it_really_lies_in(tmp_path):
    """For a folder on another disk, the path keeps the parts that its real folder ends with."""
    root, disk = tmp_path / "root", tmp_path / "root2"
    (root / "a/b").mkdir(parents=True)
    (disk / "a/b").mkdir(parents=True)
    (disk / "other").mkdir()
    links = {"itself": root, "within": root / "a/b", "p": disk / "a", "q": disk / "other", "deep": disk}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "a/linked").symlink_to(disk / "a")
    (tmp_path / "root3").symlink_to(root)
    for path, found in {
        "x.png": (root, "x.png"),
        "a/b/x.png": (root, "a/b/x.png"),
        "itself/x.png": (root, "itself/x.png"),
        "within/x.png": (root, "within/x.png"),
        "q/x.png": (disk / "other", "x.png"),
        "p/b/x.png": (disk / "a", "b/x.png"),
        "deep/a/b/x.png": (disk, "a/b/x.png"),
        "a/linked/b/x.png": (disk / "a", "b/x.png"),
    }.items():
        assert locate._real(root, path) == (str(found[0]), found[1]), path
    assert locate._real(tmp_path / "root3", "a/x.png") == (str(root), "a/x.png")
