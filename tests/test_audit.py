"""The overlap audit finds every kind of planted overlap and no unrelated images, and drops the right rows."""

import hashlib
import hmac
import json
import re

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest

from chexzero.common.errors import UserError
from data_prep.__main__ import main as data_prep
from data_prep.overlap import cards, checks, disguise, near, report, verify
from data_prep.overlap.audit import AuditOptions, run_audit
from data_prep.overlap.cards import read_key
from data_prep.overlap.contract import Role
from data_prep.overlap.features import content_box
from data_prep.overlap.finished import _check_manifest, keep_build_report
from data_prep.overlap.identity import level
from data_prep.overlap.near_reports import is_normal, near_reports, normalise

FEW = {"workers": 1, "copies": 3, "unrelated": 4}
BARE = {"workers": 1, "copies": 0, "unrelated": 0}  # nothing is measured
TELLING = (
    "1. Large right hilar mass with volume loss of the upper lobe, suspicious for malignancy.\n"
    "2. Two surgical clips project over the left axilla."
)


def chest(seed: int) -> np.ndarray:
    """A picture as similar to the others as chests are: one coarse shape for all, individual structures and texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:320j, -1:1:320j]
    picture = 150 - 90 * np.exp(-((np.abs(x) - 0.45) ** 2 / 0.08 + y**2 / 0.35)) + 12 * np.cos(18 * y + 2 * x**2)
    for sigma, weight in ((24, 14), (8, 8), (3, 8), (1, 6)):
        noise = cv2.GaussianBlur(rng.standard_normal((320, 320)), (0, 0), sigma)
        picture += weight * noise / noise.std()
    picture = np.clip(picture, 1, 255).astype(np.uint8)
    picture[:20] = picture[-20:] = 0
    return picture


def role(name: str, seeds: list[int], patients: list[str] | None = None, **columns) -> Role:
    """A role whose image k is chest(seeds[k]) of patient k."""
    source, split = {
        "train": ("rexgradient", "train"),
        "valid": ("chexpert_plus", "valid"),
        "test": ("chexpert", "test"),
    }[name]
    patients = patients or (
        [f"rexgradient/R{seed}" for seed in seeds] if name == "train" else [f"patient{64000 + seed}" for seed in seeds]
    )
    studies = [
        f"{patient}/A{k}" if name == "train" else f"{source}/{split}/{patient}/study1"
        for k, patient in enumerate(patients)
    ]
    rows = pd.DataFrame(
        {
            "id": [f"{study}/view{k}" for k, study in enumerate(studies)],
            "source": source,
            "split": split,
            "patient_id": patients,
            "patient_id_column": patients,
            "study_id": studies,
            "view": "frontal",
            "report": "",
            "file_sha256": [f"{name}{k}" for k in range(len(seeds))],
            "pixel_sha256": [f"p{name}{k}" for k in range(len(seeds))],
        }
        | columns
    )
    return Role(np.stack([chest(seed) for seed in seeds]), rows)


def disguised(image: np.ndarray, name: str, seed: int = 0) -> np.ndarray:
    kind = next(one for one in disguise.DISGUISES if one.name == name)
    return disguise.disguised(image, kind, np.random.default_rng(seed), chest(99))


@pytest.fixture(scope="module")
def planted() -> dict[str, Role]:
    """Training rows 0 to 6 each share one thing with an evaluation set, 7 has the patient of 2, the rest nothing."""
    valid, test = role("valid", [1, 2, 3, 4]), role("test", [5, 6, 7, 8])
    patients = [f"rexgradient/R{k}" for k in range(14)]
    patients[0] = "patient64001"  # a patient of the validation set, by the path
    patients[7] = patients[2]
    train = role("train", list(range(100, 114)), patients)
    train.rows.loc[1, "patient_id_column"] = "Patient064002"  # another, by the table, spelled differently
    train.images[2] = disguised(test.images[0], "crop of each side 7.5 %")
    train.images[3] = 255 - test.images[1]
    train.rows.loc[4, "file_sha256"] = valid.rows["file_sha256"][2]
    train.rows.loc[5, "pixel_sha256"] = test.rows["pixel_sha256"][2]
    train.rows.loc[6, "report"] = TELLING
    train.rows.loc[8:, "report"] = "No acute cardiopulmonary process."
    valid.rows.loc[3, "report"] = TELLING.upper().replace("\n", "  ")
    valid.rows.loc[2, "report"] = "No acute  cardiopulmonary process."
    return {"train": train, "valid": valid, "test": test}


def copied(roles: dict[str, Role]) -> dict[str, Role]:
    return {name: Role(one.images.copy(), one.rows.copy()) for name, one in roles.items()}


def test_each_kind_of_overlap_is_found_and_nothing_else(planted, tmp_path):
    audit = run_audit(planted, tmp_path, AuditOptions(**FEW))
    ids = planted["train"].rows["id"]
    assert audit.drop_ids == set(ids[:8])
    assert set(audit.reasons) == audit.drop_ids
    assert audit.summary["found"] == {"patient": 2, "study": 0, "bytes": 1, "pixels": 1, "near": 2, "report": 1}
    assert (audit.summary["dropped"], audit.summary["dropped_patients"], audit.summary["action"]) == (8, 7, "drop")
    wanted = [
        "valid: equal patient ids",
        "valid: equal patient ids",
        "test: near-equal",
        "test: near-equal",
        "valid: equal image files",
        "test: equal preprocessed",
        "valid: near-equal telling",
        "of the same patient",
    ]
    for image, words in zip(ids, wanted, strict=False):
        assert words in audit.reasons[image], image
    report = json.loads((tmp_path / "overlap_report.json").read_text())
    near_pairs = [(m["a_id"], m["b_id"]) for c in report["checks"] if c["kind"] == "near" for m in c["matches"]]
    assert near_pairs == [(ids[2], planted["test"].rows["id"][0]), (ids[3], planted["test"].rows["id"][1])]
    remarks = [c["note"] for c in report["checks"] if c["kind"] == "report"]
    assert "6 more pairs" in remarks[0] and "none in the test set" in remarks[1]
    assert report["roles"]["train"]["ids_disagree"] == 1
    assert not list(tmp_path.glob(".audit-*"))


def test_the_measurements_are_measured(planted, tmp_path, monkeypatch):
    few = AuditOptions(**FEW | {"copies": 7})
    summary = run_audit(planted, tmp_path, few).summary
    assert summary["recall"] >= 6 / 7 and 0.4 < summary["recall_lower_95"] < 1
    assert summary["false_alarm_rate"] == 0.0 and 0 < summary["false_alarm_upper_95"] < 0.7
    measured = json.loads((tmp_path / "overlap_report.json").read_text())["measured"]["planted"]
    assert len(measured["not_tried"]) == len(disguise.DISGUISES) - 7  # untried disguises are named
    monkeypatch.setattr(verify, "SAME", ((10, 1.1, 0.0),))  # no pair is called equal ...
    strict = run_audit(planted, tmp_path, few).summary
    assert strict["recall"] == 0.0 and strict["found"]["near"] == 0 and len(strict["weak_at"]) == 7
    page = (tmp_path / "overlap_report.md").read_text()
    assert "Weak at (fewer than 90 % found): grey levels; gamma 0.4" in page
    for name, value in {
        "SAME": ((0, -1.0, 0.0),),
        "MIN_OVERLAP": 0.0,
        "MIN_INLIERS": 0,
        "is_sane": lambda matrix: True,
    }.items():
        monkeypatch.setattr(verify, name, value)  # ... or every pair that some map aligns
    loose = run_audit(planted, tmp_path, few).summary
    assert loose["false_alarm_rate"] > 0.5


def test_clean_sets_lose_nothing(planted, tmp_path):
    roles = copied(planted)
    keep = range(9, 14)
    roles["train"] = Role(roles["train"].images[9:], roles["train"].rows.iloc[list(keep)])
    audit = run_audit(roles, tmp_path, AuditOptions(**BARE))
    assert (audit.drop_ids, audit.reasons, audit.summary["status"]) == (set(), {}, "no overlap found")
    assert "Nothing had to be left out" in (tmp_path / "overlap_report.md").read_text()


def test_keep_only_reports_and_stop_stops_after_the_report(planted, tmp_path):
    audit = run_audit(planted, tmp_path / "keep", AuditOptions("keep", **BARE))
    assert audit.drop_ids == set() and len(audit.reasons) == 8 and audit.summary["dropped"] == 0
    with pytest.raises(UserError, match="overlap.*--on_overlap is stop; read .*overlap_report.html"):
        run_audit(planted, tmp_path / "stop", AuditOptions("stop", **BARE))
    assert "The build was stopped" in (tmp_path / "stop" / "overlap_report.html").read_text()
    with pytest.raises(UserError, match="--on_overlap maybe is unknown"):
        run_audit(planted, tmp_path, AuditOptions("maybe"))


def test_validation_against_test_is_reported_and_never_dropped(tmp_path):
    valid, test = role("valid", [1, 2, 3]), role("test", [4, 5, 6])
    test.images[1] = disguised(valid.images[2], "gamma 0.4")
    test.rows.loc[2, "patient_id_column"] = valid.rows["patient_id"][0]
    audit = run_audit({"train": role("train", [7, 8]), "valid": valid, "test": test}, tmp_path, AuditOptions(**BARE))
    assert audit.drop_ids == set() and audit.summary["status"] == "overlap found"
    assert audit.summary["found_valid_test"] == {
        "patient": 1,
        "study": 1,
        "bytes": 0,
        "pixels": 0,
        "near": 1,
        "report": 0,
    }
    assert "Validation and test share 1 patient" in audit.summary["sentence"]


def test_validation_and_test_are_compared_without_a_training_set(tmp_path):
    roles = {"valid": role("valid", [1, 2, 3]), "test": role("test", [4, 5])}
    roles["test"].images[1] = disguised(roles["valid"].images[2], "gamma 0.4")
    found = checks.compare_images(roles, tmp_path, seed=0, **BARE)
    (check,) = found.checks
    assert (check.kind, check.a_role, check.b_role, check.a, check.b) == ("near", "valid", "test", 3, 2)
    assert found.compared == 6 and [(m.a_id, m.b_id) for m in check.matches] == [
        (roles["valid"].rows["id"][2], roles["test"].rows["id"][1])
    ]


def test_the_shareable_report_names_nobody_and_html_escapes_ids(planted, tmp_path):
    roles = copied(planted)
    evil = "rexgradient/<script>alert(1)</script>|`x`/A/\"'&"
    roles["train"].rows.loc[2, "id"] = evil
    for name, row in (("train", 6), ("valid", 3)):
        roles[name].rows.loc[row, "report"] += " \u202e<img src=x onerror=alert(1)>"
    run_audit(roles, tmp_path, AuditOptions(**BARE))
    html = (tmp_path / "overlap_report.html").read_text()
    assert "<script" not in html and "rexgradient/&lt;script&gt;alert(1)&lt;/script&gt;|`x`/A/&#34;&#39;&amp;" in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html and "\u202e" not in html
    assert html.count("data:image/jpeg;base64,") >= 2 * 3 + 2 * 2
    assert "hilar mass" in html and not re.search(r"(src|href)=\"(?!data:)", html)
    shareable = (tmp_path / "overlap_report.md").read_text()
    for one in roles.values():
        assert not any(name in shareable for name in [*one.rows["id"], *one.rows["patient_id"]])
    assert "hilar mass" not in shareable


def test_a_report_is_the_same_twice(planted, tmp_path):
    for name, workers in (("a", 1), ("b", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "overlap_report.key").write_text("of one data folder")
        run_audit(planted, tmp_path / name, AuditOptions(**FEW | {"workers": workers}))
    for ending in ("json", "md", "html"):
        first, second = ((tmp_path / name / f"overlap_report.{ending}").read_bytes() for name in "ab")
        assert first == second


def test_ids_are_hashed_with_a_key_that_stays_with_the_data(planted, tmp_path):
    pages = []
    for name in "ab":
        run_audit(planted, tmp_path / name, AuditOptions(**BARE))
        pages.append((tmp_path / name / "overlap_report.md").read_text())
        assert (tmp_path / name / "overlap_report.key").stat().st_mode & 0o077 == 0
    image = planted["test"].rows["id"][0]
    assert pages[0] != pages[1]  # without the key the hashes cannot be reversed by trying all ids
    key = (tmp_path / "a" / "overlap_report.key").read_bytes().strip()
    assert hmac.new(key, image.encode(), "sha256").hexdigest()[:12] in pages[0]
    assert hashlib.sha256(image.encode()).hexdigest()[:12] not in pages[0]


@pytest.mark.parametrize("image", [np.zeros((320, 320), np.uint8), np.full((320, 320), 255, np.uint8)])
def test_an_empty_image_is_equal_to_nothing(image):
    assert verify.compare(verify.prepare_poses(chest(1)), verify.prepare(image)) is None
    assert verify.compare(verify.prepare_poses(image), verify.prepare(image)) is None
    assert content_box(image) == (slice(0, 320), slice(0, 320))


def test_reports_that_tell_something():
    def rows(*texts):
        return pd.DataFrame(
            {
                "id": [f"i{k}" for k in range(len(texts))],
                "report": texts,
                "study_id": [f"s{k}" for k in range(len(texts))],
            }
        )

    assert normalise(" A\n\tB ") == "a b" and normalise(float("nan")) == ""
    normal = "The lungs are clear. No pleural effusion or pneumothorax. Heart size is normal. No acute fracture."
    template = "PICC line tip projects over the cavoatrial junction and may be used from now on as needed."
    training = rows(normal, TELLING, *[template] * 6, "short")
    evaluation = rows(TELLING.lower(), normal, template, "short", None)
    matches, common = near_reports("train", training, "valid", evaluation)
    assert [(m.a_id, m.b_id, m.score) for m in matches] == [("i1", "i0", 1.0)]
    assert common == 1 + 6 + 1


EDITS = {
    "typo": TELLING.replace("suspicious", "suspicous"),
    "sentence moved": " ".join(reversed(TELLING.split("\n"))),
    "prefix": "IMPRESSION: " + TELLING,
    "no final stop": TELLING.rstrip("."),
    "no numbers": TELLING.replace("1. ", "").replace("2. ", ""),
    "masked date": TELLING + " Compared with XXXX.",
    "sentence dropped": TELLING.split("\n")[0],
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_report_is_found(edit):
    def rows(*texts):
        ids = [f"i{k}" for k in range(len(texts))]
        return pd.DataFrame({"id": ids, "study_id": ids, "report": texts})

    other = "Small left effusion with adjacent atelectasis. Two surgical clips project over the left axilla."
    matches, _ = near_reports("train", rows(other, EDITS[edit]), "valid", rows(TELLING))
    assert [(m.a_id, m.b_id) for m in matches] == [("i1", "i0")]
    assert 0.5 <= matches[0].score <= 1


@pytest.mark.parametrize(
    ("value", "source", "key"),
    [
        *(("64742", s, "patient64742") for s in ("chexpert", "chexpert_plus")),
        ("Patient 64742", "chexpert", "patient64742"),
        ("patient64742.0", "chexpert_plus", "patient64742"),
        ("p64742", "chexpert", "patient64742"),
        ("PATIENT_0064742", "rexgradient", "patient64742"),
        ("６４７４２", "chexpert", "patient64742"),
        ("64742", "rexgradient", "rexgradient/64742"),
        ("p64742", "mimic", "p64742"),
        ("GRDN1A", "rexgradient", "rexgradient/grdn1a"),
        ("rexgradient/GRDN1A", "rexgradient", "rexgradient/grdn1a"),
        ("patient647421", "chexpert", "patient647421"),
        ("", "rexgradient", ""),
    ],
)
def test_spellings_of_an_id_are_levelled_where_the_numbering_is_known(value, source, key):
    assert level(value, source) == key


def test_a_disagreement_of_path_and_table_is_listed_or_stops(planted, tmp_path):
    run_audit(planted, tmp_path, AuditOptions(**BARE))
    report = json.loads((tmp_path / "overlap_report.json").read_text())
    assert report["roles"]["train"]["ids_that_disagree"] == [planted["train"].rows["id"][1]]
    with pytest.raises(UserError, match="name different patients in 1 images, the first is rexgradient/R1/A1/view1"):
        run_audit(planted, tmp_path, AuditOptions(**BARE, on_disagreement="stop"))


def test_wrong_roles_are_refused(planted, tmp_path):
    roles = copied(planted)
    roles["train"].rows.loc[3, "id"] = roles["train"].rows["id"][4]
    with pytest.raises(UserError, match="train has the id .* twice"):
        run_audit(roles, tmp_path, AuditOptions(**FEW))
    roles["train"] = Role(roles["train"].images[:5], planted["train"].rows)
    with pytest.raises(UserError, match="5 images but 14 rows"):
        run_audit(roles, tmp_path, AuditOptions(**FEW))


def test_intervals_are_exact():
    assert near.rate(0, 0)["rate"] is None
    assert near.rate(0, 300)["upper_95"] == pytest.approx(1 - 0.025 ** (1 / 300))
    assert near.rate(450, 450)["lower_95"] == pytest.approx(0.025 ** (1 / 450))


def finished(folder, roles: dict[str, Role]):
    """`data/` and `splits/` as a build writes them."""
    data, splits = folder / "data", folder / "splits"
    data.mkdir()
    splits.mkdir()
    for name, images, table in (
        ("train", "cxr.h5", "impressions.csv"),
        ("valid", "valid.h5", "valid_labels.csv"),
        ("test", "test.h5", "test_labels.csv"),
    ):
        one = roles[name]
        with h5py.File(data / images, "w") as file:
            file["cxr"] = one.images
            file.create_dataset("id", data=one.rows["id"].tolist(), dtype=h5py.string_dtype())
        columns = ["id", "patient_id", "study_id", "view", *(["report", "source"] if name == "train" else [])]
        one.rows[columns].rename(columns={"report": "impression"}).to_csv(data / table, index=False)
        one.rows.drop(columns="report").to_csv(splits / f"{name}.csv", index=False)
    return data, splits


def test_the_command_audits_finished_files_and_leaves_them(planted, tmp_path, capsys):
    data, splits = finished(tmp_path, planted)
    (data / "overlap_report.json").write_text('{"summary": {"sentence": "of the build"}}')
    (data / "build.json").write_text('{"drawn": true, "overlap": {"sentence": "Dropped 3 images."}}')
    before = {path.name: path.read_bytes() for path in data.glob("*.[hc]*") if path.suffix != ".html"}
    assert data_prep(["audit", "--data", str(data), "--splits", str(splits), "--workers", "1", "--copies", "0"]) is None
    assert "Still in the training set: 7 training images of 6 patients" in capsys.readouterr().out
    assert all((data / name).read_bytes() == content for name, content in before.items())
    assert "of the build" in (data / "overlap_report_build.json").read_text()
    text = (data / "overlap_report.md").read_text()
    assert "The corpus is drawn" in text and "Dropped 3 images." in text
    with pytest.raises(UserError, match="--on_overlap is stop"):
        data_prep(["audit", "--data", str(data), "--splits", str(splits), "--copies", "0", "--on_overlap", "stop"])
    for build, words in (
        ('{"manifests": {"valid.csv": "00"}}', "valid.csv is not the manifest of .*--splits"),
        ("[]", "build.json is not the record of a build"),
    ):
        (data / "build.json").write_text(build)
        with pytest.raises(UserError, match=words):
            data_prep(["audit", "--data", str(data), "--splits", str(splits)])
    (data / "build.json").unlink()
    with pytest.raises(UserError, match="cannot write in /proc/nowhere: .*--out"):
        data_prep(["audit", "--data", str(data), "--splits", str(tmp_path), "--out", "/proc/nowhere"])


def test_without_manifests_pixels_are_still_compared(planted, tmp_path):
    roles = copied(planted)
    roles["train"].images[9] = roles["valid"].images[0]
    data, _ = finished(tmp_path, roles)
    data_prep(["audit", "--data", str(data), "--splits", str(tmp_path / "none"), "--workers", "1", "--copies", "0"])
    summary = json.loads((data / "overlap_report.json").read_text())["summary"]
    assert summary["found"] == {"patient": 1, "study": 0, "bytes": 0, "pixels": 1, "near": 3, "report": 0}


def test_rows_that_drifted_apart_are_refused(planted, tmp_path):
    data, splits = finished(tmp_path, planted)
    table = pd.read_csv(data / "impressions.csv")
    table.iloc[::-1].to_csv(data / "impressions.csv", index=False)
    with pytest.raises(UserError, match="row 0 of"):
        data_prep(["audit", "--data", str(data), "--splits", str(splits)])
    with pytest.raises(UserError, match="fewer than two"):
        data_prep(["audit", "--data", str(tmp_path)])


def test_any_two_sets_of_images_can_be_audited(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, pictures in {"ours": [chest(1), chest(2)], "theirs": [disguised(chest(2), "mirrored"), chest(3)]}.items():
        (tmp_path / name / "part").mkdir(parents=True)
        for k, picture in enumerate(pictures):
            cv2.imwrite(str(tmp_path / name / "part" / f"{k}.png"), picture)
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["cxr"] = np.stack([chest(3), disguised(chest(2), "turned 90°")])
    for test, row in (("theirs", "part/0.png"), ("theirs.h5", "row 1")):
        sets = ["--train", "ours", "--test", test, "--copies", "2", "--workers", "1", "--out", f"of {test}"]
        assert data_prep(["audit", "--images_only", *sets]) is None
        said = capsys.readouterr().out
        assert "share 1 pair of near-equal images" in said and "patient" not in said  # an unknown patient
        report = json.loads((tmp_path / f"of {test}" / "overlap_report.json").read_text())
        (check,) = (one for one in report["checks"] if one["kind"] == "near")
        assert [(m["a_id"], m["b_id"]) for m in check["matches"]] == [("train: part/1.png", f"test: {row}")]
        assert set(report["audited_files_sha256"]) == {"ours", test}
    with pytest.raises(UserError, match="--images_only needs --train and --test"):
        data_prep(["audit", "--images_only", "--train", "ours"])
    with pytest.raises(UserError, match="nowhere"):
        data_prep(["audit", "--images_only", "--train", "ours", "--test", "nowhere"])


@pytest.mark.parametrize(("studies", "found"), [(3, 3), (4, 0)])
def test_a_telling_report_of_too_many_studies_is_a_template(studies, found, monkeypatch):
    monkeypatch.setattr("data_prep.overlap.near_reports.MAX_STUDIES", 3)
    table = pd.DataFrame({"id": list("abcd"), "study_id": list("abcd"), "report": TELLING})
    matches, common = near_reports("train", table[:studies], "valid", table[:1].replace("a", "v"))
    assert len(matches) == found and common == studies - found


def test_the_secret_of_the_shared_report_is_made_once_and_is_the_owners_alone(tmp_path):
    key = read_key(tmp_path)
    assert re.fullmatch(rb"[0-9a-f]{64}", key) and read_key(tmp_path) == key
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_card_shows_the_image_that_it_names(planted):
    for name, one in planted.items():
        for row, image_id in enumerate(one.rows["id"]):
            assert np.array_equal(cards._image(one, image_id), one.images[row]), (name, row)


def test_images_of_one_set_and_of_two_known_patients_are_unrelated():
    roles = {
        "valid": role("valid", [1, 2, 3, 4], ["patient64001", "patient64001", "", "patient64002"]),
        "test": role("test", [5], ["patient64009"]),
    }
    related = checks._related(roles, list(roles), np.array(["valid"] * 4 + ["test"]))
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5) if not related(i, j)]
    assert pairs == [(0, 3), (1, 3)]  # 2 has no patient, 4 is of another set


def test_what_the_report_counts_and_tells_of_matches(planted):
    ids = list(planted["train"].rows["id"])
    reasons = dict.fromkeys(ids[:2], "valid: equal patient ids (a)")
    reasons[ids[3]] = "valid: equal patient ids, of the same patient (a)"
    found = checks.concerned(planted["train"].rows, reasons)
    assert found == {"images": 3, "patients": 3, "matching": 2, "by_source": {"rexgradient": 3}}
    matches = [
        checks.Match("near", "train", "a", "test", "b", score=0.0),
        checks.Match("patient", "train", "a", "test", "b", key="k"),
    ]
    check = checks.Check("near", "train", "test", 1, 1, matches)
    both = {"a_id": "a", "b_id": "b"}
    assert report._check(check)["matches"] == [both | {"score": 0.0}, both | {"key": "k"}]


def test_a_sentence_is_normal_up_to_fourteen_words():
    sentence = "no " + " ".join(["focal"] * 11) + " consolidation"
    assert [is_normal(f"{sentence}{more}") for more in ("", " seen", " seen today")] == [True, True, False]
    assert not is_normal("a large mass")


def test_the_difference_that_a_card_shows_is_of_what_both_pictures_hold():
    b = chest(1)
    moved = np.where(b > 0, np.clip(b * 0.5 + 40, 1, 255), 0).astype(np.uint8)  # another window
    moved[:, :50] = 0
    found = cards._difference(b, moved)
    assert (found[:, :50] == 128).all() and np.abs(found.astype(int) - 128).max() <= 5
    bright = b.copy()
    bright[150:160, 150:160] = np.minimum(b[150:160, 150:160] + 60.0, 255)
    found = cards._difference(bright, moved).astype(int) - 128
    raised = bright[150:160, 150:160].astype(int) - b[150:160, 150:160]
    assert np.abs(found[150:160, 150:160] - raised / 2).max() <= 6


@pytest.mark.parametrize(("pixels", "compared"), [(99, False), (100, True)])
def test_pictures_that_share_less_than_100_pixels_show_no_difference(pixels, compared):
    b, moved = (np.zeros(320 * 320, np.uint8) for _ in range(2))
    b[:pixels] = np.arange(pixels) + 1
    moved[:pixels] = b[:pixels][::-1]
    assert (cards._difference(b, moved) != 128).any() == compared


@pytest.mark.parametrize(
    ("done", "said"), [(1, False), (99, False), (100, True), (200, True), (249, False), (250, True)]
)
def test_progress_is_said_every_100_images_and_at_the_end(done, said, caplog):
    with caplog.at_level("INFO"):
        checks._progress(250)(done)
    assert (f"{done} of 250" in caplog.text) is said


def test_the_manifest_of_a_build_is_known_by_its_hash(tmp_path):
    path = tmp_path / "valid.csv"
    build = {"manifests": {"valid.csv": hashlib.sha256(b"id\n").hexdigest()}}
    _check_manifest(build, tmp_path, path)  # the file is missing; another check reports that
    path.write_bytes(b"id\n")
    for one in (build, {}, {"manifests": {"test.csv": "00"}}):
        _check_manifest(one, tmp_path, path)
    path.write_bytes(b"id\nx\n")
    with pytest.raises(UserError, match="valid.csv is not the manifest of"):
        _check_manifest(build, tmp_path, path)


@pytest.mark.parametrize(
    ("report", "kept"),
    [('{"summary": {}}', True), ('{"finished": false}', True), ('{"finished": true}', False), ("[]", False)],
)
def test_the_report_of_a_build_is_kept_and_that_of_an_audit_replaced(tmp_path, report, kept):
    (tmp_path / "overlap_report.json").write_text(report)
    (tmp_path / "overlap_report.md").write_text("x")
    keep_build_report(tmp_path)
    middle = "_build" if kept else ""
    assert {path.name for path in tmp_path.iterdir()} == {f"overlap_report{middle}.{end}" for end in ("json", "md")}


def test_equal_images_within_a_set_are_counted_and_images_without_a_hash_are_not():
    one = role("valid", [1, 2, 3, 4, 5])
    one.rows["pixel_sha256"] = ["aa", "", "aa", "", "aa"]
    assert checks.facts(one)["equal_images_within"] == 2
