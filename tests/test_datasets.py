"""The named datasets, in their own file layouts with their encoding pitfalls: evaluation sets and rows of a build."""

import argparse
import hashlib
import json
import re
import shutil
from collections import Counter

import cv2
import numpy as np
import pandas as pd
import pytest
from drawn_datasets import SETS, draw, openi_kaggle, openi_r2gen
from release_corpus import QUICK_AUDIT, picture, save

from chexzero.common.errors import UserError
from chexzero.common.formats import check_rows, open_images
from chexzero.common.labels import LABELS
from data_prep.__main__ import main
from data_prep.evaluation_set import _counted
from data_prep.releases import DATASETS, vindr
from data_prep.releases.locate import Folder, Place
from data_prep.releases.padchest import _image_places, read_list
from data_prep.releases.release import split_of

#: name -> number of images in the evaluation set written from the drawn files
IMAGES = {
    "padchest": 9,  # of ten that physicians read, one has an unreadable list
    "openi": 12,
    "chestxray14": 4,
    "vindr": 4,
    "rsna": 3,
    "siim": 3,
    "montgomery": 6,
    "shenzhen": 6,
    "mimic": 2,
    "chexpert5x200": 10,
    "table": 30,
}
WITHOUT_PROJECTION = {"openi", "rsna", "siim"}
LATERALS = {"padchest": {"AP", "PA", ""}, "mimic": {"PA", ""}}
OWN = ["--table", "{root}/own.csv", "--columns", "image=file,patient=mrn,study=accession,report=text"]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """name -> the folder of a drawn dataset, drawn at first use."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = draw(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


def evaluation_set(name, root, out, *flags):
    """Run the command; returns the table of labels as text, and the record."""
    own = [part.format(root=root) for part in OWN] if name == "table" else []
    main(["evaluation-set", name, "--root", str(root), "--out", str(out), "--workers", "1", *own, *flags])
    labels = pd.read_csv(out / f"{name}_labels.csv", dtype=str, keep_default_na=False)
    return labels, json.loads((out / f"{name}.json").read_text())


def located(name, root, splits, labelled=()):
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_root")
    for dataset in DATASETS.values():
        dataset.add_arguments(parser)
    own = [part.format(root=root) for part in OWN] if name == "table" else [f"--{name}", str(root)]
    return DATASETS[name].locate(parser.parse_args(own), splits, labelled, {})


@pytest.mark.parametrize("name", SETS)
def test_each_set_becomes_an_evaluation_set(name, drawn, tmp_path):
    labels, record = evaluation_set(name, drawn(name), tmp_path)
    assert len(labels) == IMAGES[name] == record["images_written"]
    check_rows(tmp_path / f"{name}.h5", tmp_path / f"{name}_labels.csv", labels)
    with open_images(tmp_path / f"{name}.h5") as handle:
        images = handle["cxr"][:]
    assert images.shape == (len(labels), 320, 320) and images.std(axis=(1, 2)).min() > 10, "none is black or white"
    assert len({image.tobytes() for image in images}) == len(images)
    assert list(labels.columns[:4]) == ["id", "patient_id", "study_id", "view"]
    assert record["about"] == " ".join(DATASETS[name].__doc__.split())
    assert record["positives"] == {finding: int((labels[finding] == "1").sum()) for finding in labels.columns[4:]}
    values = set(np.unique(labels.iloc[:, 4:].to_numpy()))
    assert values <= {"0", "1", ""} and {"0", "1"} <= values
    assert not list(tmp_path.glob(".*")), "no work is left behind"


@pytest.mark.parametrize("name", [name for name in SETS if name != "chexpert5x200"])
def test_each_set_has_rows_to_train_with(name, drawn):
    splits = DATASETS[name].splits
    release = located(name, drawn(name), splits, () if DATASETS[name].has_reports else splits)
    rows = [row for split in splits for row in release.rows(split)]
    assert len({row.id for row in rows if row.path}) == len([row for row in rows if row.path])
    texts = {row.impression or release.sentence(row) for row in rows}
    assert len(texts) > 1
    assert {row.source for row in rows} == {name} and all(row.patient_id and row.study_id for row in rows)
    assert {row.ap_pa for row in rows} == ({""} if name in WITHOUT_PROJECTION else LATERALS.get(name, {"PA"}))
    for split in splits:
        others = {row.patient_id for row in rows if row.split != split}
        mine = {row.patient_id for row in rows if row.split == split}
        assert name in ("padchest", "chestxray14", "table") or not mine & others, "a patient is in one split"


def test_padchest_lists_are_read_as_lists_and_ids_as_text(drawn, tmp_path):
    labels, record = evaluation_set("padchest", drawn("padchest"), tmp_path)
    assert record["left_out"] == {"no labels": 1}, "the cell that reads nan"
    assert labels["patient_id"].nunique() == 5 and labels["patient_id"].str.len().min() > 40
    by_id = labels.set_index("id")
    first = by_id.iloc[0]
    assert (first["cardiomegaly"], first["pleural effusion"], first["normal"]) == ("1", "1", "0")
    pseudo = by_id[by_id["pseudonodule"] == "1"]
    assert len(pseudo) and set(pseudo["nodule"]) == {"0"} and set(pseudo["pleural effusion"]) == {"0"}
    assert "" not in labels.columns and not any(name != name.strip() for name in labels.columns)
    assert set(labels["view"]) == {"frontal", "lateral"}


def test_padchest_rnn_labels_are_another_split(drawn, tmp_path):
    labels, _ = evaluation_set("padchest", drawn("padchest"), tmp_path, "--splits", "rnn")
    assert len(labels) == 1


def test_padchests_age_needs_both_dates(drawn, tmp_path):
    root = shutil.copytree(drawn("padchest"), tmp_path / "padchest")
    table = next(root.glob("*.csv"))
    first, second, third, *rest = table.read_text().splitlines()
    lines = [first, second.replace("1944.0", ""), third.replace("20120229", ""), *rest]
    table.write_text("\n".join(lines) + "\n")
    release = located("padchest", root, ["physician"])
    ages = [row.age for row in release.rows("physician")]
    assert ages[:2] == ["", ""] and set(ages[2:]) == {"68"}


def test_padchest_in_one_flat_folder_with_gzipped_table(drawn, tmp_path):
    import gzip

    root = tmp_path / "flat"
    root.mkdir()
    for path in drawn("padchest").rglob("*.png"):
        shutil.copy(path, root)
    table = next(drawn("padchest").glob("*.csv"))
    (root / f"{table.name}.gz").write_bytes(gzip.compress(table.read_bytes()))
    labels, _ = evaluation_set("padchest", root, tmp_path / "out")
    assert len(labels) == IMAGES["padchest"]


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("['a', ' b ', '']", {"a", "b"}),
        ("['']", set()),
        ("['Air trapping']", {"air trapping"}),
        ("nan", None),
        ("", None),
        ("['a'", None),
        ("__import__('os')", None),
        ("{'a': 1}", None),
        ("[1]", None),
    ],
)
def test_label_cells(cell, names):
    found = read_list(cell)
    assert (None if found is None else set(found)) == names


def test_openi_as_nlm_hands_it_out(drawn, tmp_path):
    labels, record = evaluation_set("openi", drawn("openi"), tmp_path, "--views", "all")
    assert record["left_out"]["study without an image"] == 2
    assert len(labels) + record["left_out"]["no labels"] == 20, "unsatisfactory images have no labels"
    one = labels[labels["study_id"] == "openi/1"].iloc[0]
    assert (one["Cardiomegaly"], one["No Finding"], one["Lung Opacity"]) == ("1", "0", "0")
    two = labels[labels["study_id"] == "openi/2"].iloc[0]
    assert two["Lung Opacity"] == "1"
    rows = [
        row for split in ("train", "valid", "test") for row in located("openi", drawn("openi"), ["train"]).rows(split)
    ]
    assert {row.impression for row in rows if row.study_id == "openi/1"} == {"1. XXXX."}
    assert {row.findings for row in rows if row.study_id == "openi/1"} == {"Lungs 1 < x."}


def test_openi_as_kaggle_and_r2gen_copy_it(tmp_path):
    openi_kaggle(tmp_path / "kaggle", np.random.default_rng(1))
    labels, record = evaluation_set("openi", tmp_path / "kaggle", tmp_path / "out")
    assert len(labels) == 12 and set(labels["view"]) == {"frontal"} and record["left_out"] == {"view is lateral": 12}
    assert set(labels["Cardiomegaly"]) == {"0", "1"}
    openi_r2gen(tmp_path / "r2gen", np.random.default_rng(1))
    release = located("openi", tmp_path / "r2gen", ["train", "valid"])
    rows = {split: list(release.rows(split)) for split in ("train", "valid", "test")}
    assert [len(part) for part in rows.values()] == [6, 6, 6]
    assert rows["train"][0].impression == "no pneumothorax 0", "runs of x stay"
    with pytest.raises(UserError, match="no MeSH terms"):
        evaluation_set("openi", tmp_path / "r2gen", tmp_path / "out")


def test_openi_views_come_from_kaggles_projections_too(drawn, tmp_path):
    root = shutil.copytree(drawn("openi"), tmp_path / "openi")
    names = sorted(path.name for path in root.rglob("*.png"))
    lines = [f"{n},{n.removeprefix('CXR')[:-4]}.dcm.png,{'Frontal' if '-1001' in n else 'Lateral'}" for n in names]
    (root / "indiana_projections.csv").write_text("\n".join(["uid,filename,projection", *lines]))
    labels, record = evaluation_set("openi", root, tmp_path / "out")
    assert set(labels["view"]) == {"frontal"} and record["left_out"]["view is lateral"] == len(labels)


def test_an_xml_bomb_is_left_out(drawn, tmp_path):
    root = shutil.copytree(drawn("openi"), tmp_path / "openi")
    (root / "ecgen-radiology/1.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>')
    _, record = evaluation_set("openi", root, tmp_path / "out")
    assert record["left_out"]["entry that cannot be used"] == 1


def test_chestxray14_header_with_commas_lists_and_rgba(drawn, tmp_path):
    labels, record = evaluation_set("chestxray14", drawn("chestxray14"), tmp_path, "--splits", "train_val", "test")
    assert len(labels) == 8, "the last line of a list counts without its end"
    first = labels.iloc[0]
    assert (first["Effusion"], first["No Finding"], first["patient_id"]) == ("1", "0", "chestxray14/0")
    assert any("release has 86,524" in warning for warning in record["warnings"])


def test_chestxray14_older_table_ends_its_lines_with_a_comma(drawn, tmp_path):
    root = shutil.copytree(drawn("chestxray14"), tmp_path / "nih")
    old = root / "Data_Entry_2017_v2020.csv"
    lines = old.read_text().splitlines()
    (root / "Data_Entry_2017.csv").write_text("\n".join([lines[0], *(f"{line}," for line in lines[1:])]))
    old.unlink()
    assert len(evaluation_set("chestxray14", root, tmp_path / "out")[0]) == 4


def test_only_the_images_of_a_list(drawn, tmp_path):
    (tmp_path / "list.txt").write_text("00000002_000.png\n00000003_001.png")
    labels, record = evaluation_set("chestxray14", drawn("chestxray14"), tmp_path, "--only", str(tmp_path / "list.txt"))
    assert list(labels["id"]) == ["chestxray14/00000002_000", "chestxray14/00000003_001"]
    assert record["left_out"] == {"not in the list": 2}


def test_vindr_readers_are_merged_and_only_monochrome1_is_inverted(drawn, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    labels, _ = evaluation_set("vindr", drawn("vindr"), tmp_path, "--splits", "train")
    assert len(labels) == 4 and labels["Other disease"].tolist().count("1") == 1, "any of three readers counts"
    with open_images(tmp_path / "vindr.h5") as handle:
        for i, name in enumerate(labels["id"]):
            file = pydicom.dcmread(drawn("vindr") / "train" / f"{name.removeprefix('vindr/')}.dicom")
            grey = file.pixel_array.astype(float)
            small = handle["cxr"][i].astype(float)
            inside = small[:, small.std(axis=0) > 0]
            agree = np.corrcoef(
                grey.mean(axis=1), np.interp(np.linspace(0, 1, len(grey)), np.linspace(0, 1, 320), inside.mean(axis=1))
            )[0, 1]
            assert agree < -0.9 if file.PhotometricInterpretation == "MONOCHROME1" else agree > 0.9


@pytest.mark.parametrize("name", ["rsna", "siim"])
def test_challenges_one_row_an_image_whatever_the_blanks(name, drawn, tmp_path):
    labels, _ = evaluation_set(name, drawn(name), tmp_path, "--splits", "train", "valid", "test")
    assert len(labels) == 20 and labels.iloc[:, 4].tolist().count("1") == 5
    release = located(name, drawn(name), DATASETS[name].splits)
    assert [len(list(release.rows(split))) for split in ("train", "valid", "test")] == [14, 3, 3]


def test_tuberculosis_sets_have_label_sex_age_and_reading(drawn):
    release = located("montgomery", drawn("montgomery"), ["train"])
    rows = [row for split in ("train", "valid", "test") for row in release.rows(split)]
    assert {(row.labels, row.impression) for row in rows} == {("0", "normal"), ("1", "cavity right")}
    assert {(row.sex, row.age) for row in rows} == {("Female", "27")}


def test_mimic_reports_labels_and_splits(drawn, tmp_path):
    labels, record = evaluation_set("mimic", drawn("mimic"), tmp_path)
    assert record["left_out"] == {"no labels": 1}, "the radiologist read no report of the last study"
    assert set(labels["Lung Opacity"]) == {"1"} and set(labels["Edema"]) == {"0"}
    valid, _ = evaluation_set("mimic", drawn("mimic"), tmp_path, "--splits", "validate")
    assert (valid.iloc[0, 4:] == "").sum() == 2, "blank and uncertain are unknown"
    assert valid.iloc[0][sorted(LABELS)[3]] == "1", "columns by name, not by place"
    rows = list(located("mimic", drawn("mimic"), ["train"]).rows("train"))
    assert [row.view for row in rows] == ["frontal", "lateral", "other"]
    assert (rows[0].findings.strip(), rows[0].impression) == ("Lungs 0.", "1. Heart ___ 0.")
    assert rows[0].id.startswith("mimic/p10/p10000000/s50000000/")


def test_mimic_without_its_reports_says_where_they_are_named(drawn, tmp_path):
    root = shutil.copytree(drawn("mimic"), tmp_path / "mimic")
    for path in root.rglob("*.txt"):
        path.unlink()
    (root / "mimic-cxr-reports.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="mimic-cxr-reports.zip is there, not unpacked; unpack it: .*unzip"):
        located("mimic", root, ["train"])
    assert len(evaluation_set("mimic", root, tmp_path / "out")[0]) == 2, "scored without reports"


def test_own_table_as_csv_and_parquet(drawn, tmp_path):
    pytest.importorskip("pyarrow")
    root = shutil.copytree(drawn("table"), tmp_path / "own")
    labels, _ = evaluation_set("table", root, tmp_path / "csv")
    assert list(labels.columns[4:]) == ["Pneumonia", "Edema"] and set(labels["Edema"]) == {"0", "", "1"}
    pd.read_csv(root / "own.csv").to_parquet(root / "own.parquet")
    (root / "own.csv").rename(root / "other.csv")
    flags = ["--table", str(root / "own.parquet"), "--columns", "patient=mrn,report=text,study=accession"]
    main(["evaluation-set", "table", *flags, "--out", str(tmp_path / "parquet"), "--workers", "1"])
    assert (tmp_path / "parquet/table_labels.csv").read_bytes() == (tmp_path / "csv/table_labels.csv").read_bytes()


def test_an_absolute_path_of_an_own_table_is_taken_inside_the_folder_alone(drawn, tmp_path):
    root = shutil.copytree(drawn("table"), tmp_path / "own")
    usual, _ = evaluation_set("table", root, tmp_path / "usual")
    table = pd.read_csv(root / "own.csv", dtype=str, keep_default_na=False)
    column = next(name for name in table if table[name].str.endswith(".png").any())
    table[column] = [str(root.resolve() / text) for text in table[column]]
    table.to_csv(root / "own.csv", index=False)
    assert evaluation_set("table", root.resolve(), tmp_path / "inside")[0]["id"].tolist() == usual["id"].tolist()
    table.loc[0, column] = "/elsewhere/a.png"
    table.to_csv(root / "own.csv", index=False)
    labels, record = evaluation_set("table", root.resolve(), tmp_path / "outside")
    assert labels["id"].tolist() == usual["id"].tolist()[1:] and record["left_out"] == {"entry that cannot be used": 1}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--columns", "image=nowhere"], "no column 'nowhere', which --columns names as image"),
        (["--columns", "picture=file"], "--columns picture=file: not like image=NAME"),
        (["--columns", "image=file"], "no column for the patient .*--columns patient=NAME"),
        (["--label_columns", "Odd"], "no column 'Odd', which --label_columns names"),
    ],
)
def test_columns_that_are_not_there(flags, words, drawn, tmp_path):
    table = str(drawn("table") / "own.csv")
    if "--columns" not in flags:
        flags = [*flags, "--columns", "patient=mrn"]
    with pytest.raises(UserError, match=words):
        main(["evaluation-set", "table", "--table", table, "--out", str(tmp_path), *flags])


def test_the_splits_by_hash_are_the_same_everywhere():
    assert [split_of(str(i)) for i in range(1, 9)] == SPLITS_OF_1_TO_8
    for i in range(500):  # 70 of 100 numbers are training, the next ten validation
        number = int(hashlib.sha256(f"p{i}".encode()).hexdigest()[:16], 16) % 100
        assert split_of(f"p{i}") == ("train" if number < 70 else "valid" if number < 80 else "test")
    shares = pd.Series([split_of(f"patient{i}") for i in range(20_000)]).value_counts(normalize=True)
    assert np.allclose(shares[["train", "valid", "test"]], [0.7, 0.1, 0.2], atol=0.01)


SPLITS_OF_1_TO_8 = ["train", "train", "train", "train", "test", "train", "train", "test"]


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_sheet_says_what_it_is_and_whom_to_cite(name):
    sheet = DATASETS[name].__doc__
    wanted = ("Labels",) if name == "table" else ("From:", "Counts:", "abels", "Cite:")
    assert all(word in sheet for word in wanted)
    assert re.fullmatch(r"[a-z0-9_]+", name) and DATASETS[name].splits


def test_images_are_stored_at_another_size_if_asked(drawn, tmp_path):
    evaluation_set("montgomery", drawn("montgomery"), tmp_path / "usual")
    _, record = evaluation_set("montgomery", drawn("montgomery"), tmp_path / "large", "--image_size", "512")
    assert record["image_size"] == 512
    with open_images(tmp_path / "usual/montgomery.h5") as usual, open_images(tmp_path / "large/montgomery.h5") as large:
        assert large["cxr"].shape == (6, 512, 512) and large["cxr"].chunks == (1, 512, 512)
        small = cv2.resize(large["cxr"][0], (320, 320), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - usual["cxr"][0]).mean() < 3


def train_and_evaluate(folder):
    """Train a few steps on `folder/data` and evaluate; returns the AUROC of each label that has one."""
    from training_corpus import TINY

    import run_train
    import run_zero_shot

    data, runs = folder / "data", folder / "checkpoints"
    flags = [*TINY, "--vision_weights", "random", "--text_weights", "random", "--max_steps", "4", "--val_interval", "2"]
    flags += ["--batch_size", "8", "--num_workers", "0", "--save_dir", str(runs), "--model_name", "own"]
    files = ["--cxr_filepath", str(data / "cxr.h5"), "--txt_filepath", str(data / "impressions.csv")]
    run_train.model_pipeline(run_train.parse_args([*files, *flags]))
    where = ["--data", str(data), "--splits", str(folder / "splits"), "--out", str(folder / "results")]
    run_zero_shot.evaluate(
        run_zero_shot.parse_args(["--run", str(runs / "own"), *where, "--n_bootstrap", "20", "--device", "cpu"])
    )
    return json.loads((folder / "results/own/metrics.json").read_text())


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a build of a dataset that the project does not know."""
    from own_dataset import OwnDataset

    rng = np.random.default_rng(3)
    lines = ["name,split,heart,fluid,text"]
    for i in range(60):
        save(tmp_path / f"own/{i}.png", picture(rng))
        split = "train" if i < 24 else "valid" if i < 42 else "test"
        lines.append(f"{i}.png,{split},{i % 2},{i // 2 % 2},Report {i}.")
    (tmp_path / "own/own.csv").write_text("\n".join(lines))
    monkeypatch.setitem(DATASETS, "own_dataset", OwnDataset)
    flags = ["--own_dataset", str(tmp_path / "own"), "--roles", "own_dataset", "--out", str(tmp_path / "data")]
    main(["build", *flags, "--workers", "1", *QUICK_AUDIT])
    table = pd.read_csv(tmp_path / "data/valid_labels.csv", dtype=str, keep_default_na=False)
    assert set(table["Cardiomegaly"]) == {"0", "1"} == set(table["Pleural Effusion"]) and set(table["Edema"]) == {""}
    return tmp_path


def test_a_new_dataset_is_one_file_and_one_row(own):
    counts = json.loads((own / "data/build.json").read_text())["counts"]
    assert counts["train"]["own_dataset/train"]["images"] == 24 and counts["valid"]["own_dataset/valid"]["images"] == 18
    texts = pd.read_csv(own / "data/impressions.csv")["impression"]
    assert texts[0] == "Report 0."


@pytest.mark.long
def test_a_new_dataset_is_trained_on_and_evaluated(own):
    metrics = json.dumps(train_and_evaluate(own))
    assert "Cardiomegaly" in metrics and "Pleural Effusion" in metrics


def test_padchests_polarity_column_is_not_used(drawn, tmp_path):
    """Every drawn row says MONOCHROME1, which is often wrong in PadChest, so it must not invert an image."""
    root = drawn("padchest")
    labels, _ = evaluation_set("padchest", root, tmp_path)
    with open_images(tmp_path / "padchest.h5") as handle:
        images = dict(zip(labels["id"], handle["cxr"][:], strict=True))
    for name, image in images.items():
        (path,) = (root / "images").rglob(f"{name.rsplit('/', 1)[-1]}.png")
        grey = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(float).mean(axis=1)
        inside = image[:, image.std(axis=0) > 0].mean(axis=1)
        there = np.interp(np.linspace(0, 1, len(grey)), np.linspace(0, 1, 320), inside)
        assert np.corrcoef(grey, there)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("name", "files", "folders", "prefixes"),
    [
        ("padchest", [], ["0", "54"], [False]),
        ("padchest", ["1_a.png"], [], [True]),
        ("padchest", ["1_a.jpg"], ["3"], [False, True]),
        ("54", ["1_a.png"], [], []),  # the search starts in the folder above
        ("54", [], [], []),
        ("padchest", ["a.png", "1_a.csv"], ["123", "a"], []),
    ],
)
def test_padchests_images_lie_in_numbered_folders_or_side_by_side(name, files, folders, prefixes, tmp_path):
    found = _image_places(Folder(tmp_path / name, files, folders))
    assert found == [Place(tmp_path / name, flat=flat) for flat in prefixes]


def test_what_is_left_out_is_counted_the_most_first():
    assert _counted(Counter(a=2, b=1200)) == "1,200 × b, 2 × a" and _counted(Counter()) == "nothing"


@pytest.mark.parametrize(
    ("files", "folders", "prefixes"),
    [
        ([], ["train"], [False]),
        ([f"{'a' * 32}.dicom"], [], [True]),
        (["a.dicom"], ["other"], []),
        ([], ["test", "x"], [False]),
    ],
)
def test_vindrs_images_lie_in_the_folders_of_their_splits_or_side_by_side(files, folders, prefixes, tmp_path):
    found = vindr._image_places(Folder(tmp_path, files, folders))
    assert found == [Place(tmp_path, flat=flat) for flat in prefixes]
