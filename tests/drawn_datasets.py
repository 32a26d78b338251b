"""Small drawn copies of public datasets in their own file layouts, with their encoding pitfalls."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from release_corpus import picture, save

from chexzero.common.labels import LABELS

HEX = "0123456789abcdef" * 2
LONG = "1" * 38  # PadChest's ids do not fit into 64 bits


def write_table(path: Path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *rows])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())  # no final line end


def write_dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2") -> None:
    pydicom = __import__("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def padchest(root: Path, rng: np.random.Generator, n: int = 12) -> None:
    header = (
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
        "MethodProjection,Pediatric,PhotometricInterpretation_DICOM,ReportID,Report,MethodLabel,Labels,Localizations"
    )
    labels = [
        "\"['cardiomegaly', ' pleural effusion']\"",
        "['normal']",
        "\"['unchanged', '']\"",
        "\"['pseudonodule', ' pericardial effusion']\"",
        "nan",
        "['']",
    ]
    rows = []
    for i in range(n):
        name = f"{LONG}{i:02d}_{'00-000-001' if i % 2 else 'aaaaa1'}.png"
        save(root / f"images/{i % 3}" / name, picture(rng).astype(np.uint16) * 16)  # 12 bits in a 16-bit file
        method = "RNN_model" if i >= 10 else "Physician"
        projection = ["PA", "L", "AP_horizontal"][i % 3]
        rows.append(
            f"{i},{name},{i % 3},20120229,{LONG}{i:02d},{LONG}{i // 2:02d},1944.0,F,,{projection},x,No,MONOCHROME1,"
            f"9{i},sin alteracion {i} .,{method},{labels[i % len(labels)]},[]"
        )
    write_table(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", header, rows)


def openi(root: Path, rng: np.random.Generator, n: int = 12) -> None:
    (root / "ecgen-radiology").mkdir(parents=True)
    terms = ["normal", "Cardiomegaly/mild", "Opacity/lung/base/left", "Technical Quality of Image Unsatisfactory ", ""]
    for i in range(1, n + 1):
        names = [f"CXR{i}_IM-{i:04d}-{k}001" for k in (1, 2)] if i % 5 else []
        for name in names:
            save(root / "NLMCXR_png" / f"{name}.png", picture(rng))
        images = "".join(f'<parentImage id="{name}"><panel><url>/x.jpg</url></panel></parentImage>' for name in names)
        (root / f"ecgen-radiology/{i}.xml").write_text(
            f'<?xml version="1.0"?><eCitation><uId id="CXR{i}"/><MedlineCitation><Article><Abstract>'
            f'<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="FINDINGS">Lungs {i} &lt; x.'
            f'</AbstractText><AbstractText Label="IMPRESSION">{i}. XXXX.</AbstractText></Abstract></Article>'
            f"</MedlineCitation><MeSH><major>{terms[i % 5]}</major><automatic>opacity</automatic></MeSH>{images}"
            f"</eCitation>"
        )


def openi_kaggle(root: Path, rng: np.random.Generator, n: int = 12) -> None:
    rows = [f'{i},"{"normal" if i % 2 else "Cardiomegaly/mild;Opacity/lung"}",x,y,z,None.,Lungs {i}.,Heart {i}.'
            for i in range(1, n + 1)]  # fmt: skip
    write_table(root / "indiana_reports.csv", "uid,MeSH,Problems,image,indication,comparison,findings,impression", rows)
    names = [(i, f"{i}_IM-{i:04d}-{k}001.dcm.png", view) for i in range(1, n + 1) for k, view in
             ((1, "Frontal"), (2, "Lateral"))]  # fmt: skip
    for _, name, _ in names:
        save(root / "images/images_normalized" / name, picture(rng))
    write_table(
        root / "indiana_projections.csv", "uid,filename,projection", [f"{i},{name},{view}" for i, name, view in names]
    )


def openi_r2gen(root: Path, rng: np.random.Generator, n: int = 3) -> None:
    entries: dict[str, list[dict]] = {}
    for split in ("train", "val", "test"):
        for i in range(n):
            name = f"CXR{len(split)}{i}_IM-0{i}"
            images = [f"{name}/{k}.png" for k in (0, 1)]
            for image in images:
                save(root / "iu_xray/images" / image, picture(rng))
            entry = {"id": name, "report": f"no pneumothorax {i}", "image_path": images, "split": split}
            entries.setdefault(split, []).append(entry)
    (root / "iu_xray/annotation.json").write_text(json.dumps(entries))


def chestxray14(root: Path, rng: np.random.Generator, n: int = 8) -> None:
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    labels = ["Cardiomegaly|Effusion", "No Finding", "Pleural_Thickening", "Mass|Infiltration"]
    names = [f"{i // 2:08d}_{i % 2:03d}.png" for i in range(n)]
    for i, name in enumerate(names):
        grey = picture(rng)
        path = root / f"images_{1 + i % 2:03d}/images" / name
        save(path, grey if i else np.dstack([grey, grey, grey, np.full_like(grey, 255)]))  # some files are RGBA
    rows = [f"{x},{labels[i % 4]},0,{i // 2},58,M,PA,2600,2700,0.143,0.143" for i, x in enumerate(names)]
    write_table(root / "Data_Entry_2017_v2020.csv", header, rows)
    (root / "train_val_list.txt").write_text("\n".join(names[: n // 2]))
    (root / "test_list.txt").write_text("\n".join(names[n // 2 :]))


def vindr(root: Path, rng: np.random.Generator, n: int = 4) -> None:
    from data_prep.releases.vindr import Vindr

    for split in ("train", "test"):
        names = [f"{HEX[i:]}{HEX[:i]}"[:-1] + split[1] for i in range(n)]
        names = [name.replace("r", "a") for name in names]
        for i, name in enumerate(names):
            write_dicom(root / split / f"{name}.dicom", picture(rng), ("MONOCHROME1", "MONOCHROME2")[i % 2])
        columns = [*Vindr.labels]
        rows = [[name, *[int((i + j) % 4 == 0) for j in range(28)]] for i, name in enumerate(names)]
        if split == "train":
            columns = [column.replace("Other disease", "Other diseases") for column in columns]
            readers = [[name, reader, *([0] * 28)] for name in names for reader in ("R9", "R8")]
            rows = [[row[0], "R10", *row[1:]] for row in rows] + readers
            columns = ["rad_id", *columns]
        write_table(
            root / f"annotations/image_labels_{split}.csv",
            ",".join(["image_id", *columns]),
            [",".join(map(str, row)) for row in rows],
        )


def rsna(root: Path, rng: np.random.Generator, n: int = 20) -> None:
    rows = []
    for i in range(n):
        name = f"{i:08d}-aaaa-4bbb-8ccc-000000000001"
        write_dicom(root / "stage_2_train_images" / f"{name}.dcm", picture(rng))
        rows += [f"{name},200.0,300.0,150.0,250.0,1"] * 2 if i % 4 == 0 else [f"{name},,,,,0"]
    write_table(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", rows)


def siim(root: Path, rng: np.random.Generator, n: int = 20) -> None:
    rows = []
    for i in range(n):
        name = f"1.2.276.0.7230010.3.1.4.8323329.{i}.1517875160.{i}"
        write_dicom(root / f"dicom-images-train/1.{i}/1.{i}.1" / f"{name}.dcm", picture(rng))
        rows += [f"{name}, 500000 3 1020 5"] * 2 if i % 4 == 0 else [f"{name}, -1" if i % 2 else f"{name},-1"]
    write_table(root / "train-rle.csv", "ImageId, EncodedPixels", rows)


def tuberculosis(prefix: str, folder: str) -> Callable:
    def draw(root: Path, rng: np.random.Generator, n: int = 6) -> None:
        for i in range(n):
            name = f"{prefix}_{i:04d}_{i % 2}"
            save(root / folder / "CXR_png" / f"{name}.png", np.dstack([picture(rng)] * 3))
            readings = root / folder / "ClinicalReadings" / f"{name}.txt"
            readings.parent.mkdir(exist_ok=True)
            readings.write_text(f"Patient's Sex: F\nPatient's Age: 027Y\n{'cavity right' if i % 2 else 'normal'}\n")
        (root / folder / "CXR_png" / f"._{name}.png").write_bytes(b"x")
        save(root / folder / "ManualMask/leftMask" / f"{name}.png", picture(rng))

    return draw


def mimic(root: Path, rng: np.random.Generator, n: int = 9) -> None:
    alphabetical = sorted(LABELS)
    meta, splits, labels, tested = [], [], [], []
    for i in range(n):
        subject, study, dicom = f"1000{i:04d}", f"5000{i:04d}", f"aaaaaaaa-bbbbbbbb-cccccccc-dddddddd-{i:08d}"
        folder = f"files/p{subject[:2]}/p{subject}"
        save(root / folder / f"s{study}" / f"{dicom}.jpg", picture(rng))
        (root / folder / f"s{study}.txt").write_text(
            f" FINAL REPORT\n FINDINGS:  Lungs {i}.\n\n IMPRESSION:\n 1. Heart ___ {i}.\n\nRECOMMENDATION(S):  none\n"
        )
        meta.append(f"{dicom},{subject},{study},CHEST (PA AND LAT),{['PA', 'LATERAL', ''][i % 3]},2900,2400")
        split = ["train", "validate", "test"][i // 3]
        splits.append(f"{dicom},{study},{subject},{split}")
        cells = ["1.0" if j == i else "-1.0" if j == i + 1 else "" if j == i + 2 else "0.0" for j in range(14)]
        labels.append(f"{subject},{study},{','.join(cells)}")
        if split == "test" and i < n - 1:
            tested.append(f"{study},{','.join('1.0' if name == 'Lung Opacity' else '0.0' for name in LABELS)}")
    columns = "PerformedProcedureStepDescription,ViewPosition,Rows,Columns"
    write_table(root / "mimic-cxr-2.0.0-metadata.csv.gz", f"dicom_id,subject_id,study_id,{columns}", meta)
    write_table(root / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", splits)
    write_table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", f"subject_id,study_id,{','.join(alphabetical)}", labels)
    renamed = ",".join(LABELS).replace("Lung Opacity", "Airspace Opacity")
    write_table(root / "mimic-cxr-2.1.0-test-set-labeled.csv", f"study_id,{renamed}", tested)


def chexpert5x200(root: Path, rng: np.random.Generator, n: int = 10) -> None:
    from chexzero.common.labels import COMPETITION_LABELS

    rows = []
    for i in range(n):
        key = f"train/patient{i + 1:05d}/study1/view1_frontal.jpg"
        save(root / "CheXpert-v1.0-small" / key, picture(rng))
        cells = ["1.0" if j == i % 5 else "" for j in range(5)]
        rows.append(f"CheXpert-v1.0-small/{key},{','.join(cells)}")
    write_table(root / "chexpert_5x200.csv", f"Path,{','.join(COMPETITION_LABELS)}", rows)


def table(root: Path, rng: np.random.Generator, n: int = 30) -> None:
    """A hospital's own table, with its own column names."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "own.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["file", "mrn", "accession", "text", "view", "split", "Pneumonia", "Edema"])
        for i in range(n):
            save(root / f"img/{i}.png", picture(rng))
            split = ["train", "val", "test"][0 if i < n - 10 else 1 + i % 2]
            writer.writerow(
                [f"img/{i}.png", f"m{i // 2}", f"a{i}", f"Bericht {i}: ü.", "PA", split, i % 2, ["0", "", "1"][i % 3]]
            )


#: name -> the function that draws it
SETS: dict[str, Callable] = {
    "padchest": padchest,
    "openi": openi,
    "chestxray14": chestxray14,
    "vindr": vindr,
    "rsna": rsna,
    "siim": siim,
    "montgomery": tuberculosis("MCUCXR", "MontgomerySet"),
    "shenzhen": tuberculosis("CHNCXR", "ChinaSet_AllFiles"),
    "mimic": mimic,
    "chexpert5x200": chexpert5x200,
    "table": table,
}


def draw(name: str, root: Path) -> Path:
    """Draw the dataset under `root`; return its folder."""
    SETS[name](root, np.random.default_rng(7))
    return root
