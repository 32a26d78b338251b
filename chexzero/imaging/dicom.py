"""Decode DICOM files as the standard defines their display, with pydicom's pixel pipeline (an optional extra)."""

import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from chexzero.data_process import MAX_PIXELS, UnreadableImage, decode_image

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = logging.getLogger(__name__)

INSTALL = "DICOM files need pydicom; install it with `pip install pydicom`"
DECODERS = "for JPEG, JPEG-LS and JPEG 2000 install `pylibjpeg[all]` or `python-gdcm`"

#: First bytes of a file without the preamble of 128 bytes: its first group, 0002 (file meta) or 0008, little endian.
_FIRST_GROUPS = (b"\x02\x00\x00\x00UL", b"\x02\x00\x01\x00OB", b"\x02\x00\x10\x00UI", b"\x08\x00")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"


def is_dicom(data: bytes) -> bool:
    """Whether a file's bytes begin like DICOM, with or without the preamble of 128 bytes and `DICM`."""
    return data[128:132] == b"DICM" or data.startswith((b"DICM\x02\x00", *_FIRST_GROUPS))


def decode_dicom(data: bytes) -> np.ndarray:
    """Decode a DICOM radiograph to the pixels to display: uint16 (H, W), its own range scaled to 0..65535.

    A colour image, or one with a palette, is RGB uint8 (H, W, 3), or grey uint8 if the channels are equal. In this
    order: bits beyond Bits Stored are dropped, the modality and VOI look-ups (or the window) and the presentation
    look-up are applied, MONOCHROME1 is inverted (once), and padding becomes background: the lowest value. Header values
    that make no sense (such as a window without width) are ignored with a warning. Raises `UnreadableImage` for more
    than one frame, more than `MAX_PIXELS` pixels, damage, or if pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise UnreadableImage(INSTALL) from error
    if _DEFLATED in data[:1024]:
        raise UnreadableImage("the DICOM file is deflated as a whole; convert it, for instance with `dcmconv +te`")
    if data.startswith(b"DICM"):
        data = bytes(128) + data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that no pixel depends on
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            _check_header(dataset, len(data))
            if dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2"):
                return _grey(dataset)
            return _colour(dataset)
    except UnreadableImage:
        raise
    except Exception as error:  # pydicom's plugins raise exceptions of their own
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UnreadableImage(
            f"the DICOM file cannot be decoded ({why})" + (f"; {DECODERS}" if "plugins" in why else "")
        ) from error


def _check_header(dataset: "Dataset", size: int) -> None:
    """Limit the memory that decoding takes, and refuse headers that would leave pydicom to guess."""
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        if not little:
            raise UnreadableImage("the DICOM file names no transfer syntax and is not little endian")
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    needed = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation", "PixelRepresentation")
    floating = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
    missing = [
        name for name in needed if dataset.get(name) is None and not (floating and name.startswith(("B", "PixelR")))
    ]
    if missing:
        raise UnreadableImage(f"the DICOM file is not an image or is cut short: it lacks {', '.join(missing)}")
    if "PixelData" not in dataset and not floating:
        raise UnreadableImage("the DICOM file holds no pixels, or is cut short before them")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnreadableImage(f"the DICOM file has {frames} frames; a radiograph has one")
    pixels = int(dataset.Rows) * int(dataset.Columns)
    if pixels > MAX_PIXELS:
        raise UnreadableImage(
            f"the DICOM file has {dataset.Columns} x {dataset.Rows} pixels, more than the {MAX_PIXELS} that are read"
        )
    if floating:
        return
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if samples not in (1, 3):
        raise UnreadableImage(f"the DICOM file has {samples} samples per pixel; 1 or 3 are read")
    if dataset.BitsAllocated not in (1, 8, 16, 32):
        raise UnreadableImage(f"the DICOM file has {dataset.BitsAllocated} bits per sample; 8, 16 or 32 are read")
    if not 0 < dataset.BitsStored <= dataset.BitsAllocated:
        raise UnreadableImage(
            f"the DICOM header contradicts itself: {dataset.BitsStored} bits stored in {dataset.BitsAllocated}"
        )
    if dataset.get("HighBit", dataset.BitsStored - 1) != dataset.BitsStored - 1:
        raise UnreadableImage(
            f"the DICOM file's High Bit is {dataset.HighBit}, which the standard no longer allows with "
            f"{dataset.BitsStored} bits stored; convert it first"
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    room = pixels * samples * (dataset.BitsAllocated // 8 or 1)
    if syntax == RLELossless and len(dataset.PixelData) > 2 * room + (1 << 16):
        raise UnreadableImage("the DICOM file's run lengths hold more data than its pixels need")
    if syntax == _JPEG_BASELINE and dataset.BitsAllocated == 8:
        from pydicom.encaps import get_frame

        decode_image(get_frame(dataset.PixelData, 0, number_of_frames=1))  # Pillow ignores libjpeg's warnings


def _colour(dataset: "Dataset") -> np.ndarray:
    """RGB, YBR or palette -> uint8 (H, W, 3), or (H, W) if the channels are equal."""
    from pydicom.pixels import apply_color_lut, pixel_array

    pixels = pixel_array(dataset)  # YBR becomes RGB
    kind = str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)[..., :3]
    elif kind not in ("RGB",) and not kind.startswith("YBR_"):
        raise UnreadableImage(f"the DICOM file's Photometric Interpretation is {kind[:40]!r}, which is not read")
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise UnreadableImage(f"the DICOM file has pixels of shape {pixels.shape}; one colour frame is needed")
    if pixels.dtype != np.uint8:
        bits = 8 * pixels.itemsize if kind == "PALETTE COLOR" else int(dataset.BitsStored)
        pixels = (pixels.astype(np.float32) * (255 / (2**bits - 1))).round().clip(0, 255).astype(np.uint8)
    if (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return np.ascontiguousarray(pixels)


def _grey(dataset: "Dataset") -> np.ndarray:
    """MONOCHROME1 or MONOCHROME2 -> uint16 (H, W), bone bright, over 0..65535."""
    from pydicom.pixels import apply_modality_lut, apply_presentation_lut, pixel_array

    stored = pixel_array(dataset)
    if stored.ndim != 2:
        raise UnreadableImage(f"the DICOM file has pixels of shape {stored.shape}; one grey frame is needed")
    padding = _padding(stored, dataset)
    seen = ~padding
    if not seen.any():
        raise UnreadableImage("the DICOM file's pixels are all padding")
    stored = _without_unused_bits(stored, seen, dataset)
    stored[padding] = stored[seen].min()
    _complete_rescale(dataset)
    pixels = _windowed(apply_modality_lut(stored, dataset), seen, dataset)
    inverse = dataset.PhotometricInterpretation == "MONOCHROME1"
    if "PresentationLUTSequence" in dataset and not inverse:
        pixels = apply_presentation_lut(pixels, dataset)
    elif "PresentationLUTShape" in dataset:
        shape = str(dataset.PresentationLUTShape).strip().upper()
        if shape not in ("IDENTITY", "INVERSE", ""):
            raise UnreadableImage(f"the DICOM file's Presentation LUT Shape is {shape[:40]!r}, which is not read")
        if (shape == "INVERSE") != inverse and shape:
            log.warning(
                "a DICOM file is %s but its Presentation LUT Shape is %s", dataset.PhotometricInterpretation, shape
            )
        inverse = inverse or shape == "INVERSE"
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise UnreadableImage("the DICOM file's values are not finite")
    low, high = float(pixels[seen].min()), float(pixels[seen].max())
    scaled = (pixels - low) * (65535 / max(high - low, 1e-6))
    scaled = 65535 - scaled if inverse else scaled
    scaled[padding] = 0
    return scaled.clip(0, 65535).round().astype(np.uint16)


def _padding(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Mask of the padding: one stored value, or a range of stored values if a limit is given."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(stored.shape, bool)
    value = _as_stored(value, dataset)
    if limit is None:
        return stored == value
    low, high = sorted((value, _as_stored(limit, dataset)))
    return (stored >= low) & (stored <= high)


def _as_stored(value: Any, dataset: "Dataset") -> int:
    """Convert a padding value to the pixels' type: some writers store its bit pattern with the other signedness."""
    bits = int(dataset.get("BitsAllocated") or 16)
    value = int(value)
    if dataset.get("PixelRepresentation") == 0:
        return value % (1 << bits)
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def _without_unused_bits(stored: np.ndarray, seen: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Clear the bits above Bits Stored, where old files keep overlays."""
    stored = stored.copy()
    if stored.dtype.kind == "u" and dataset.BitsStored < dataset.BitsAllocated:
        mask = stored.dtype.type((1 << int(dataset.BitsStored)) - 1)
        if (stored[seen] > mask).any():
            log.warning("a DICOM file has bits beyond its %d Bits Stored; they are dropped", dataset.BitsStored)
        stored &= mask
    return stored


def _complete_rescale(dataset: "Dataset") -> None:
    """If only an intercept or a slope is given, set the other to its neutral value."""
    names = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
    given = {name: dataset.get(name) for name in names}
    if all(value is None for value in given.values()):
        for name in names:
            dataset.pop(name, None)
        return
    for name, neutral in names.items():
        if given[name] is None:
            log.warning("a DICOM file has no %s beside its counterpart; %g is used", name, neutral)
            setattr(dataset, name, neutral)
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise UnreadableImage(f"the DICOM file's rescaling ({slope:g}, {intercept:g}) leaves nothing of the picture")


def _windowed(pixels: np.ndarray, seen: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Apply the VOI look-up or the first window; a window that makes no sense is ignored with a warning."""
    from pydicom.pixels import apply_voi_lut

    width = _first(dataset.get("WindowWidth"))
    has_lut = bool(dataset.get("VOILUTSequence"))
    if not has_lut and (width is None or _first(dataset.get("WindowCenter")) is None):
        return pixels
    if not has_lut:
        least = 1 if str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper() == "LINEAR" else 0
        if width is None or not width > least:
            log.warning("a DICOM file's window has the width %s; its full range is shown", width)
            return pixels
    if has_lut and pixels.dtype.kind == "f":  # a rescaled picture: a look-up takes whole numbers
        pixels = np.rint(pixels).astype(np.int64)
    shown = apply_voi_lut(pixels, dataset)
    inside = shown[seen]
    if inside.min() == inside.max() and pixels[seen].min() != pixels[seen].max():
        log.warning("a DICOM file's window leaves one grey value of its picture; its full range is shown")
        return pixels
    return shown


def _first(value: Any) -> float | None:
    """The first of one or several numbers, None if there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except TypeError:
        return float(value[0]) if len(value) else None
