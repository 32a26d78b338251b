"""Every format that is read: a small correct file, and the reader that a command uses for it."""

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from chexzero.common.labels import LABELS


@dataclass(frozen=True)
class Format:
    """`checked`: whether the format has checksums of its values, so that no altered value may be read."""

    suffix: str
    make: Callable[[], bytes]
    read: Callable[[Path], Any]
    checked: bool = False


def picture(top: int = 255) -> np.ndarray:
    """A smooth picture with a little noise, (200, 160), values 0..top."""
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.random((8, 8)), (160, 200), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 0.01, (200, 160))
    coarse = (coarse - coarse.min()) / np.ptp(coarse)
    return np.rint(coarse * top).astype(np.uint16 if top > 255 else np.uint8)


def encoded(suffix: str, top: int = 255, *options: int) -> Callable[[], bytes]:
    return lambda: cv2.imencode(suffix, picture(top), list(options))[1].tobytes()


def dicom() -> bytes:
    import pydicom

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    file = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns, file.SamplesPerPixel, file.PixelRepresentation = 200, 160, 1, 0
    file.PhotometricInterpretation, file.BitsAllocated, file.BitsStored, file.HighBit = "MONOCHROME2", 16, 12, 11
    file.WindowCenter, file.WindowWidth, file.RescaleSlope, file.RescaleIntercept = 2048, 4096, 1, 0
    file.PixelData = picture(4000).astype("<u2").tobytes()
    out = io.BytesIO()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()


def hdf5() -> bytes:
    import tempfile

    from data_prep.steps.sets import new_images

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        with new_images(path, [b"a", b"b"], {}) as handle:
            handle["cxr"][:] = np.random.default_rng(0).integers(0, 256, (2, 320, 320))
        return path.read_bytes()


def table() -> bytes:
    rows = [f"patient{i},{','.join(str((i * j) % 3 % 2) for j in range(14))}" for i in range(40)]
    return ("\n".join([",".join(["id", *LABELS]), *rows]) + "\n").encode()


def weights(suffix: str) -> Callable[[], bytes]:
    def make() -> bytes:
        import torch
        from safetensors.torch import save

        state = {f"visual.{i}.weight": torch.from_numpy(np.random.default_rng(i).random((20, 20))) for i in range(5)}
        if suffix == ".safetensors":
            return save(state)
        out = io.BytesIO()
        torch.save(state, out)
        return out.getvalue()

    return make


def read_picture(path: Path) -> np.ndarray:
    from chexzero.imaging.decode import prepare_image

    return prepare_image(str(path.parent), path.name).pixels


def read_hdf5(path: Path) -> tuple:
    from chexzero.common.formats import check_images, image_ids, open_images

    check_images(path)
    with open_images(path) as handle:
        return image_ids(handle), handle["cxr"][:]


def read_labels(path: Path) -> tuple:
    from chexzero.common import formats

    labels, values = formats.read_labels(path)
    return labels["id"].tolist(), values


def read_weights(path: Path) -> list:
    from chexzero.models.checkpoints import read_state_dict

    # copied: tensors of a .safetensors file are mapped from the file, which the next damaged file overwrites
    return [(key, value.numpy().copy()) for key, value in sorted(read_state_dict(path).items())]


def read_json(path: Path) -> Any:
    from chexzero.common import files

    return files.read_json(path)


def read_yaml(path: Path) -> Any:
    from chexzero.common import files

    return files.read_yaml(path)


SETTINGS = {"lr": 0.0001, "names": ["a", "b"], "data": {"cxr": "data/cxr.h5", "rows": list(range(60))}}


def packed_dicom() -> bytes:
    return gzip.compress(dicom(), mtime=0)


def jpeg_dicom() -> bytes:
    """A DICOM file that contains a JPEG."""
    import pydicom

    file = pydicom.dcmread(io.BytesIO(dicom()))
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    file.BitsAllocated, file.BitsStored, file.HighBit, file.WindowCenter, file.WindowWidth = 8, 8, 7, 128, 256
    file.PixelData = pydicom.encaps.encapsulate([encoded(".jpg")()])
    file["PixelData"].VR = "OB"
    out = io.BytesIO()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()


def parquet() -> bytes:
    import pandas as pd

    out = io.BytesIO()
    pd.DataFrame({"id": [f"patient{i}" for i in range(40)], "text": [f"Report {i}." for i in range(40)]}).to_parquet(
        out
    )
    return out.getvalue()


def read_release_table(path: Path) -> list:
    from data_prep.releases.rows import read_records

    return [tuple(record.values()) for _, record in read_records(path, ["id"], "copy it again", ["text"])]


FORMATS = {
    "png": Format(".png", encoded(".png"), read_picture, checked=True),
    "png16": Format(".png", encoded(".png", 65535), read_picture, checked=True),
    "jpeg": Format(".jpg", encoded(".jpg"), read_picture),
    "jpeg progressive": Format(".jpg", encoded(".jpg", 255, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), read_picture),
    "dicom": Format(".dcm", dicom, read_picture),
    "dicom, gzip": Format(".dcm.gz", packed_dicom, read_picture, checked=True),
    "dicom, jpeg": Format(".dcm", jpeg_dicom, read_picture),
    "tiff": Format(".tif", encoded(".tif"), read_picture),
    "bmp": Format(".bmp", encoded(".bmp"), read_picture),
    "hdf5": Format(".h5", hdf5, read_hdf5, checked=True),
    "csv": Format(".csv", table, read_labels),
    "csv of a release": Format(".csv", table, read_release_table),
    "csv, gzip": Format(".csv.gz", lambda: gzip.compress(table(), mtime=0), read_release_table, checked=True),
    "parquet": Format(".parquet", parquet, read_release_table),
    "json": Format(".json", lambda: json.dumps(SETTINGS, indent=1).encode(), read_json),
    "yaml": Format(".yaml", lambda: json.dumps(SETTINGS, indent=1).encode(), read_yaml),
    "safetensors": Format(".safetensors", weights(".safetensors"), read_weights),
    "pt": Format(".pt", weights(".pt"), read_weights, checked=True),
}
