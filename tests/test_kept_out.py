"""`--keep_out`: pictures near-equal to a listed image leave training too, found by the overlap audit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from release_corpus import write_releases
from test_audit import disguised, role
from test_releases import plan_rows

from data_prep import finish
from data_prep.__main__ import main as data_prep
from data_prep.overlap.audit import AuditOptions, run_audit
from data_prep.releases.rows import read_rows
from data_prep.steps import plan

FEW = ["--workers", "1", "--audit_copies", "2", "--audit_unrelated", "2"]


@pytest.fixture(scope="module")
def with_a_copy(demo_releases: Path, tmp_path_factory) -> tuple[Path, str, str]:
    """A drawn corpus in which an image of ReXGradient is a smaller, darker copy of a CheXpert-Plus image, in another
    file; returns its folder, the path of the original and a part of the copy's id."""
    root = tmp_path_factory.mktemp("copied") / "releases"
    shutil.copytree(demo_releases, root)
    table = pd.read_csv(next(root.rglob("df_chexpert_plus_240401.csv")))
    listed = table[(table["split"] == "train") & (table["frontal_lateral"] == "Frontal")]["path_to_image"].iloc[0]
    original = next(root.rglob("PNG")) / listed.replace(".jpg", ".png")
    picture = cv2.imread(str(original), cv2.IMREAD_GRAYSCALE)
    entries = json.loads(next(root.rglob("train_metadata_view_position.json")).read_text())
    path = next(iter(entries.values()))["ImagePath"][0]
    copy = next(root.rglob(path.rsplit("/", 1)[1]))
    smaller = cv2.resize(picture, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(copy), (smaller * 0.8).astype(np.uint16) * 256)
    return root, listed, copy.stem


def left_out(out: Path) -> dict[str, str]:
    table = pd.read_csv(out / "left_out.csv")
    return dict(zip(table["id"], table["reason"], strict=True))


@pytest.mark.long
def test_a_copy_of_a_kept_out_image_is_found_dropped_and_counted(with_a_copy, tmp_path):
    root, listed, copy = with_a_copy
    (tmp_path / "their_test.txt").write_text(f"{listed}\n")
    out = tmp_path / "data"
    data_prep(
        ["build", "--data_root", str(root), "--out", str(out), "--keep_out", str(tmp_path / "their_test.txt"), *FEW]
    )
    reasons = left_out(out)
    ((name, reason),) = [(name, reason) for name, reason in reasons.items() if name.endswith(copy)]
    original = f"chexpert_plus/{listed.rsplit('.', 1)[0]}"
    assert reason == f"overlap with kept_out: near-equal images ({original})"
    assert reasons[original] == "kept out by their_test.txt"
    assert not pd.read_csv(out / "impressions.csv")["id"].isin([name, original]).any()
    report = json.loads((out / "overlap_report.json").read_text())
    (check,) = [one for one in report["checks"] if one["kind"] == "near" and one["roles"][1] == "kept_out"]
    assert check["compared"][1] == 1 and [(one["a_id"], one["b_id"]) for one in check["matches"]] == [(name, original)]
    assert report["summary"]["n_checked_kept_out"] == 1 and report["summary"]["dropped"] >= 1
    assert {one["roles"][0] for one in report["checks"] if one["roles"][1] == "kept_out"} == {"train"}
    assert "training / kept-out" in (out / "overlap_report.md").read_text()
    assert not (out / "kept_out.h5").exists()


def test_the_audit_compares_kept_out_images_with_training_alone(tmp_path):
    """One kept-out image has a copy in training, which is dropped, and one in the test set, which is not."""
    kept, test = role("valid", [1, 2], ["patient00001", "patient00002"]), role("test", [3, 4])
    train = role("train", [5, 6, 7], [f"rexgradient/R{k}" for k in range(3)])
    train.images[1] = disguised(kept.images[0], "crop of each side 7.5 %")
    test.images[0] = kept.images[1]
    audit = run_audit({"train": train, "test": test, "kept_out": kept}, tmp_path, AuditOptions(copies=2, unrelated=1))
    assert audit.reasons == {train.rows["id"][1]: f"overlap with kept_out: near-equal images ({kept.rows['id'][0]})"}
    report = json.loads((tmp_path / "overlap_report.json").read_text())
    assert {tuple(one["roles"]) for one in report["checks"]} == {("train", "test"), ("train", "kept_out")}
    assert report["summary"]["image_pairs_compared"] == 3 * 4 and report["summary"]["n_checked_kept_out"] == 2
    assert "training / kept-out" in (tmp_path / "overlap_report.md").read_text()
    run_audit({"train": train, "test": test}, tmp_path / "without", AuditOptions(copies=2, unrelated=1))
    assert "kept_out" not in (tmp_path / "without" / "overlap_report.json").read_text()


def test_the_plan_holds_the_listed_images_that_are_at_hand(tmp_path, monkeypatch, caplog):
    releases = write_releases(tmp_path / "releases")
    listed = tmp_path / "list.txt"
    listed.write_text("train/patient00001\nrexgradient/Gtrain1\n")
    rows = plan_rows(releases.flags("--keep_out", str(listed)), tmp_path / "data")
    kept = list(read_rows(tmp_path / "data" / "work" / "kept_out.csv"))
    assert sorted(row.id for row in kept) == sorted(
        left["id"] for left in rows["left_out"] if "kept out" in left["reason"]
    )
    assert len(kept) > 2 and any(row.report for row in kept)
    (releases.root / "gone").mkdir()
    file = next(releases.root.rglob("*patient00001/**/*.png"), None) or next(releases.root.rglob("patient00001/**/*.*"))
    file.rename(releases.root / "gone" / file.name)
    plan_rows(releases.flags("--keep_out", str(listed)), tmp_path / "missing")
    assert len(list(read_rows(tmp_path / "missing" / "work" / "kept_out.csv"))) == len(kept) - 1
    monkeypatch.setattr(plan, "MOST_KEPT_OUT", 1)
    plan_rows(releases.flags("--keep_out", str(listed)), tmp_path / "fewer")
    assert len(list(read_rows(tmp_path / "fewer" / "work" / "kept_out.csv"))) == 1
    assert f"leaves out {len(kept)} images; the overlap audit looks for copies of only the first 1" in caplog.text


def test_the_patients_of_a_list_go_beside_what_overlaps(tmp_path, monkeypatch):
    """The reason "listed patient" replaces a match with a listed image, but no other overlap."""
    reasons = {"a": "overlap with test: equal image files (t)", "b": "overlap with kept_out: near-equal images (k)"}
    patients = dict.fromkeys("abc", "patient of list.txt")
    monkeypatch.setattr(finish, "_audit", lambda *_: SimpleNamespace(drop_ids={"a", "b", "d"}, reasons=reasons))
    monkeypatch.setattr(finish, "_of_kept_out_patients", lambda *_: patients)
    monkeypatch.setattr(finish, "Counts", lambda _: SimpleNamespace(add=None, odd=[], add_left_out=lambda _: None))
    for name in ("remove_remains", "_check_blocks", "write_left_out", "write_odd_ranges"):
        monkeypatch.setattr(finish, name, lambda *_: None)
    for name in ("build_record", "summary"):
        monkeypatch.setattr(finish, name, lambda *_: {})
    dropped, room = {}, []
    monkeypatch.setattr(finish, "require_space", lambda _, needed, __: room.append(needed))
    monkeypatch.setattr(finish, "write_role", lambda _work, _plan, role, gone, _: dropped.update({role: gone}) or {})
    some_plan = SimpleNamespace(finishing={"splits": str(tmp_path)}, rows={"train": 3, "test": 2}, image_size=10)
    finish.finish(SimpleNamespace(out=tmp_path, discard=lambda: None), some_plan, 1)
    assert dropped["train"] == {
        "a": reasons["a"],
        "b": "patient of list.txt",
        "c": "patient of list.txt",
        "d": "overlap with an evaluation set",
    }
    assert dropped["valid"] == dropped["test"] == {} and room == [500]  # one byte per pixel
