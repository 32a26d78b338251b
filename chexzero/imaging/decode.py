"""Turn one image file into 320 x 320 bytes: upstream's bytes for 8-bit files, correctly scaled ones for 16-bit files.

A worker process loads only this module: no torch.
"""

import contextlib
import hashlib
import io
import os
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from chexzero.common.files import inside
from chexzero.data_process import MAX_PIXELS, RESOLUTION, UnreadableImage, decode_image, preprocess
from chexzero.imaging.dicom import decode_dicom, is_dicom

__all__ = ["DEPTH16", "Prepared", "UnreadableImage", "decode", "prepare_image", "prepare_pixels", "read_file"]

LARGEST_FILE = 1 << 28

#: How 16-bit samples become 8 bits: the image's own range (`sample_range`) scaled to 0..255, or as in upstream the low
#: byte dropped.
DEPTH16 = ("stretch", "high_byte")

#: The quantiles that bound the bulk of a picture's samples, and how far beyond it, in widths of the bulk, the range
#: extends. They change none of 69 real 16-bit radiographs; in 12-bit ones, a square of up to 7 % of the pixels at 65535
#: does not change the rest.
BULK = (0.1, 0.9)
REACH = 2.0

#: First bytes of the formats that are read with Pillow.
_OTHER = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"BM": "BMP"}


_GZIP = b"\x1f\x8b"
_GZIP_ONLY = 31  # zlib's `wbits` for gzip's header and checksum


@dataclass(frozen=True)
class Prepared:
    """`pixels` uint8 (size, size), the bits of a sample in the file, and the SHA-256 of the file.

    `note` says what is odd about the range of 16-bit samples, "" if nothing is.
    """

    pixels: np.ndarray
    bits: int
    file_sha256: bytes
    note: str = ""


def prepare_image(root: str, path: str, depth16: str = "stretch", size: int = RESOLUTION) -> Prepared:
    """Read and prepare the image `path` under `root`; `size` is the side in pixels.

    Raises `UnreadableImage` for a file that is missing, leads out of `root`, is damaged, or has one grey value.
    """
    try:
        data = _read(inside(root, path))
        image = decode(data)
        note = odd_range(image) if image.dtype == np.uint16 and depth16 == "stretch" else ""
        return Prepared(prepare_pixels(image, depth16, size), 8 * image.itemsize, hashlib.sha256(data).digest(), note)
    except UnreadableImage:
        raise
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error
    except (ValueError, MemoryError) as error:
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def read_file(path: str | os.PathLike, size: int = RESOLUTION) -> np.ndarray:
    """Read and prepare one file, wherever it lies: uint8 (size, size). Raises `OSError` or `UnreadableImage`."""
    return prepare_pixels(decode(_read(path)), size=size)


def _read(path: str | os.PathLike) -> bytes:
    with open(path, "rb") as handle:
        data = handle.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise UnreadableImage(f"the file is larger than {LARGEST_FILE >> 20} MiB")
    return data


def decode(data: bytes) -> np.ndarray:
    """Decode a PNG, JPEG, DICOM, TIFF or BMP file by its content: grey (H, W) or RGB (H, W, 3), uint8 or uint16.

    A file whose three channels are equal is grey: resizing one channel gives upstream's bytes in a third of the time.
    A file that is packed with gzip (`.dcm.gz`) is unpacked. Raises `UnreadableImage`, a `ValueError`, for any other
    format, for damage, and for more than `MAX_PIXELS` pixels.
    """
    if data.startswith(_GZIP):
        data = _unpacked(data)
    if is_dicom(data):
        return decode_dicom(data)
    other = next((name for mark, name in _OTHER.items() if data.startswith(mark)), None)
    return _decode_other(data, other) if other else decode_image(data)


def kind_of(head: bytes) -> str | None:
    """The format that a file's first bytes announce (PNG, JPEG, DICOM, TIFF, BMP), packed with gzip or not; or None.

    head: 132 bytes are enough; of a packed file more are needed, so that 132 bytes come out of them.
    """
    if head.startswith(_GZIP):
        with contextlib.suppress(zlib.error):
            head = zlib.decompressobj(_GZIP_ONLY).decompress(head, 132)
    if is_dicom(head):
        return "DICOM"
    marks = {b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", **_OTHER}
    return next((name for mark, name in marks.items() if head.startswith(mark)), None)


def _unpacked(data: bytes) -> bytes:
    """Unpack a gzip file, whose checksum zlib checks; never more than `LARGEST_FILE`."""
    unpacking = zlib.decompressobj(_GZIP_ONLY)
    try:
        content = unpacking.decompress(data, LARGEST_FILE + 1)
    except zlib.error as error:
        raise UnreadableImage(f"the gzip file is damaged ({error})") from error
    if len(content) > LARGEST_FILE:
        raise UnreadableImage(f"the gzip file unpacks to more than {LARGEST_FILE >> 20} MiB")
    if not unpacking.eof:
        raise UnreadableImage("the gzip file is cut short")
    if unpacking.unused_data:
        raise UnreadableImage("the gzip file holds more than one file")
    return content


def _decode_other(data: bytes, name: str) -> np.ndarray:
    """Decode TIFF and BMP with Pillow, which refuses files that are cut short; one page, 8 or 16 bits."""
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"the image has {image.width} x {image.height} pixels, too many")
            pages = getattr(image, "n_frames", 1)
            if pages > 1:
                raise UnreadableImage(f"the {name} file has {pages} pages; one is needed")
            inverted = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == 0
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "I;16L"):
                raise UnreadableImage(f"the {name} file's samples are of the kind {image.mode}; 8 or 16 bits are read")
            if image.mode in ("1", "LA"):
                return np.asarray(image.convert("L"))
            if image.mode.startswith("I;16"):
                grey = np.asarray(image).astype(np.uint16)
                return 65535 - grey if inverted else grey
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's plugins can raise any exception on damage
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableImage(f"the {name} file is damaged and cannot be decoded ({why})") from error
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return pixels


def prepare_pixels(image: np.ndarray, depth16: str = "stretch", size: int = RESOLUTION) -> np.ndarray:
    """Prepare a decoded image, 8 or 16 bits, (H, W) or (H, W, 3), by upstream's `preprocess`: uint8 (size, size)."""
    low, high = int(image.min()), int(image.max())
    if low == high:
        raise UnreadableImage(f"the image is constant (every pixel is {low})")
    if image.dtype == np.uint16:
        image = stretch(image, *sample_range(image)) if depth16 == "stretch" else (image >> 8).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise UnreadableImage(f"the samples are {image.dtype}, neither 8 nor 16 bits")
    pixels = np.asarray(preprocess(Image.fromarray(image), size))
    if pixels.min() == pixels.max():
        raise UnreadableImage(f"the image is constant once it is 8 bits and {size} pixels")
    return pixels


def sample_range(image: np.ndarray) -> tuple[int, int]:
    """The range (lowest, highest) of a uint16 picture's samples, without those far from all others.

    The bulk of the picture lies between two quantiles of the samples above the background (the lowest value). Samples
    further from it than `REACH` times its width are a marker, dead pixels or padding: they are clipped and do not
    extend the range.
    """
    counts = _histogram(image)
    found = np.flatnonzero(counts)
    lowest, highest = int(found[0]), int(found[-1])
    bulk = np.cumsum(counts[lowest + 1 :], dtype=np.int64)
    if not len(bulk) or not bulk[-1]:
        return lowest, highest
    first, last = lowest + 1 + np.searchsorted(bulk, np.multiply(BULK, bulk[-1]))
    if first == last:
        return lowest, highest
    reach = REACH * (last - first)
    near = found[(found >= first - reach) & (found <= last + reach)]
    return int(near[0]), int(near[-1])


def odd_range(image: np.ndarray) -> str:
    """One sentence about samples outside `sample_range`, "" if there are none."""
    low, high = sample_range(image)
    outside = float(((image < low) | (image > high)).mean())
    if not outside:
        return ""
    return f"{outside:.4%} of the samples lie outside {low}..{high}, far from all others, and are clipped"


def _histogram(image: np.ndarray) -> np.ndarray:
    flat = image if image.ndim == 2 else image.reshape(len(image), -1)
    return cv2.calcHist([flat], [0], None, [65536], [0, 65536]).ravel()


def stretch(image: np.ndarray, low: int, high: int) -> np.ndarray:
    """uint16 samples of `low`..`high` to uint8 0..255, rounded to the nearest; values outside are clipped."""
    scaled = image.astype(np.float32)
    scaled -= low
    scaled *= 255 / (high - low)
    return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)
