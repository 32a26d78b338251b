"""DICOM files as grey images, through pydicom (an optional extra)."""

import io

import numpy as np

INSTALL = "DICOM files need pydicom; install it with `pip install pydicom`"
DECODERS = "for JPEG, JPEG-LS and JPEG 2000 install `pylibjpeg[all]` or `python-gdcm`"


def is_dicom(data: bytes) -> bool:
    """Whether a file's bytes carry DICOM's mark, `DICM` after a preamble of 128 bytes."""
    return data[128:132] == b"DICM"


def decode_dicom(data: bytes) -> np.ndarray:
    """A DICOM radiograph's pixels as it is meant to be shown: uint16 (H, W), its own range over 0..65535.

    The modality and VOI look-up (or window) of the file are applied and MONOCHROME1 is inverted, so that bone is
    bright. Raises `ValueError` for a file without one grey frame, or where pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise ValueError(INSTALL) from error
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        pixels = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float32)
    except Exception as error:  # pydicom's plugins have exceptions of their own
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"the DICOM file cannot be decoded ({why})" + (f"; {DECODERS}" if "plugins" in why else "")
        ) from error
    if pixels.ndim != 2:
        raise ValueError(f"the DICOM file has pixels of shape {pixels.shape}; one grey frame is needed")
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        pixels = pixels.max() - pixels
    low, high = float(pixels.min()), float(pixels.max())
    return ((pixels - low) * (65535 / max(high - low, 1e-6))).astype(np.uint16)
