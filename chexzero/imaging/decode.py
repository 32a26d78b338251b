"""One image file to its 320 x 320 bytes: upstream's for 8-bit files, and read right for 16-bit ones.

This module is all that a worker process loads: no torch.
"""

import hashlib
import os
from dataclasses import dataclass

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 26))  # a larger header is damage, or means harm
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

import cv2  # noqa: E402  (the limit is read when OpenCV first decodes)
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from chexzero.common.files import inside  # noqa: E402
from chexzero.data_process import RESOLUTION, preprocess  # noqa: E402
from chexzero.imaging.dicom import decode_dicom, is_dicom  # noqa: E402

LARGEST_FILE = 1 << 28

#: How 16-bit samples become 8 bits: the image's own range scaled to 0..255, or upstream's way, the low byte dropped.
DEPTH16 = ("stretch", "high_byte")


class UnreadableImage(ValueError):
    """The image cannot be used; the message is the reason that is listed."""


@dataclass(frozen=True)
class Prepared:
    """`pixels` uint8 (size, size), the bits of a sample in the file, and the SHA-256 of the file."""

    pixels: np.ndarray
    bits: int
    file_sha256: bytes


def prepare_image(root: str, path: str, depth16: str = "stretch", size: int = RESOLUTION) -> Prepared:
    """Read and prepare the image `path` under `root`; `size` is the side in pixels.

    Raises `UnreadableImage` for a file that is missing, leads out of `root`, is damaged, or shows nothing.
    """
    try:
        with open(inside(root, path), "rb") as handle:
            data = handle.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise UnreadableImage(f"the file is larger than {LARGEST_FILE >> 20} MiB")
        image = decode(data)
        return Prepared(prepare_pixels(image, depth16, size), 8 * image.itemsize, hashlib.sha256(data).digest())
    except UnreadableImage:
        raise
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error
    except (ValueError, MemoryError) as error:
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def read_file(path: str | os.PathLike) -> np.ndarray:
    """Read and prepare one file, wherever it lies: uint8 (320, 320). Raises `OSError` or `UnreadableImage`."""
    with open(path, "rb") as handle:
        return prepare_pixels(decode(handle.read(LARGEST_FILE)))


def decode(data: bytes) -> np.ndarray:
    """Decode a PNG, JPEG or DICOM file: grey (H, W) or RGB (H, W, 3), uint8 or uint16, without alpha.

    A file whose three channels are equal is grey: resizing one channel gives upstream's bytes in a third of the time.
    Raises `UnreadableImage`, a `ValueError`, for what is none of these, damaged, or larger than OpenCV takes.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    if is_dicom(data):
        return decode_dicom(data)
    if not _is_whole(data):
        raise UnreadableImage("the file is cut short or is neither PNG, JPEG nor DICOM")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:  # its text begins with a path on the machine where OpenCV was built
        raise UnreadableImage(f"OpenCV refuses the file ({' '.join(error.err.split())})") from error
    if image is None:
        raise UnreadableImage("the file is damaged and cannot be decoded")
    if image.ndim == 2:
        return image
    if np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 1], image[..., 2]):
        return np.ascontiguousarray(image[..., 1])
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _is_whole(data: bytes) -> bool:
    """Whether the last part of the format is there; some decoders fill up what is missing and say nothing."""
    if data.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in data
    return data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def prepare_pixels(image: np.ndarray, depth16: str = "stretch", size: int = RESOLUTION) -> np.ndarray:
    """A decoded image, 8 or 16 bits, (H, W) or (H, W, 3), as upstream's `preprocess` makes it: uint8 (size, size)."""
    low, high = int(image.min()), int(image.max())
    if low == high:
        raise UnreadableImage(f"the image is constant (every pixel is {low})")
    if image.dtype == np.uint16:
        image = stretch(image, low, high) if depth16 == "stretch" else (image >> 8).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise UnreadableImage(f"the samples are {image.dtype}, neither 8 nor 16 bits")
    pixels = np.asarray(preprocess(Image.fromarray(image), size))
    if pixels.min() == pixels.max():
        raise UnreadableImage(f"the image is constant once it is 8 bits and {size} pixels")
    return pixels


def stretch(image: np.ndarray, low: int, high: int) -> np.ndarray:
    """uint16 samples of `low`..`high` to uint8 0..255, rounded to the nearest."""
    scaled = image.astype(np.float32)
    scaled -= low
    scaled *= 255 / (high - low)
    return np.rint(scaled, out=scaled).astype(np.uint8)
