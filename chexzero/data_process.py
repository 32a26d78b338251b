"""Turn radiographs into 320 x 320 grey images and reports into a CSV of impressions, exactly as upstream. No torch.

h5py and pandas are imported where they are used: a process that only prepares images saves their 50 MiB.
"""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 26))  # a header with more pixels is damaged or malicious
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

import cv2  # noqa: E402  (the limit is read when OpenCV first decodes)
import numpy as np
import simplejpeg
from PIL import Image
from tqdm import tqdm

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, read_table, require_file, write_text
from chexzero.common.resample import RESOLUTION, lanczos

if TYPE_CHECKING:
    import pandas as pd

NO_IMPRESSION = "NO IMPRESSION"

#: Images with more pixels are not decoded.
MAX_PIXELS = 1 << 26
#: A progressive JPEG has about ten scans; decoding time grows with their number, not with the file's size.
MAX_SCANS = 100
_ORIENTATION = 0x0112  # EXIF


class UnreadableImage(ValueError):
    """The image cannot be used; lists of unreadable images give the message as the reason."""


def preprocess(img: Image.Image, desired_size: int = RESOLUTION) -> Image.Image:
    """Scale so that the longer side is `desired_size` and centre on black; returns a mode-`L` square image.

    New sides are `int(side * ratio)` (floor), the filter is Lanczos, the offsets are floored. A colour image is
    resized in colour and converted afterwards; for a grey one (mode `L`) resizing its single channel gives the same
    bytes. Raises `ValueError` when the shorter side would have no pixel left.
    """
    ratio = desired_size / max(img.size)
    width, height = (int(side * ratio) for side in img.size)
    if min(width, height) == 0:
        raise ValueError(f"an image of {img.size[0]} x {img.size[1]} pixels is too narrow for {desired_size} pixels")
    canvas = Image.new("L", (desired_size, desired_size))
    canvas.paste(lanczos(img, (width, height)), ((desired_size - width) // 2, (desired_size - height) // 2))
    return canvas


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read a file as upstream does (OpenCV, 8 bits, no alpha): mode `L` for a grey source, `RGB` for a colour one.

    16-bit samples lose their low byte. A colour file whose channels are equal is returned as `L`, which
    `preprocess` turns into the same bytes in a third of the time. Raises `UnreadableImage`, a `ValueError`, for a
    damaged file.
    """
    with open(path, "rb") as handle:
        data = handle.read()
    try:
        return Image.fromarray(decode_image(data, cv2.IMREAD_ANYCOLOR))
    except UnreadableImage as error:
        raise UnreadableImage(f"cannot be decoded as an image: {error}") from error


def decode_image(data: bytes, flags: int = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH) -> np.ndarray:
    """Decode PNG or JPEG bytes as OpenCV does with `flags`: grey (H, W) or RGB (H, W, 3), uint8 or uint16, no alpha.

    Three equal channels become one. Raises `UnreadableImage` for any other format, more than `MAX_PIXELS` pixels, and
    damage; a JPEG counts as damaged if libjpeg warns of it (missing or extra data, a wrong marker, a bad code).
    """
    if not data:
        raise UnreadableImage("the file is empty")
    if data.startswith(b"\xff\xd8"):
        pixels = _decode_jpeg(data, flags)
    elif data.startswith(b"\x89PNG"):
        if b"IEND\xaeB`\x82" not in data:
            raise UnreadableImage("the file is cut short or is neither PNG, JPEG nor DICOM")
        pixels = _decode_with_opencv(data, flags)
    else:
        raise UnreadableImage("the file is cut short or is neither PNG, JPEG nor DICOM")
    if pixels.ndim == 2:
        return pixels
    if np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 1], pixels[..., 2]):
        return np.ascontiguousarray(pixels[..., 1])
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _decode_jpeg(data: bytes, flags: int) -> np.ndarray:
    """Decode with libjpeg-turbo, as OpenCV does; OpenCV itself hides libjpeg's warnings and returns partial images."""
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise UnreadableImage(f"the JPEG file has more than {MAX_SCANS} scans")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        kind = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(colours, "BGR")
        pixels = simplejpeg.decode_jpeg(data, colorspace=kind)
    except (ValueError, RuntimeError) as error:  # simplejpeg raises libjpeg's warnings as errors
        raise UnreadableImage(f"the JPEG file is damaged ({_words(error)})") from error
    if kind == "CMYK" or _is_turned(data):  # rare; OpenCV rotates and converts as upstream does
        return _decode_with_opencv(data, flags)
    return pixels[..., 0] if kind == "GRAY" else pixels


def _is_turned(data: bytes) -> bool:
    """Whether the EXIF orientation asks for a rotation or a mirroring."""
    if b"Exif\0" not in data[: 1 << 16]:
        return False
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return image.getexif().get(_ORIENTATION, 1) != 1


def _decode_with_opencv(data: bytes, flags: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # its text begins with a path on the machine where OpenCV was built
        raise UnreadableImage(f"OpenCV refuses the file ({_words(error.err)})") from error
    if pixels is None:
        raise UnreadableImage("the file is damaged and cannot be decoded")
    return pixels


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"the image has {width} x {height} pixels, more than the {MAX_PIXELS} that are read")


def _words(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def img_to_hdf5(
    cxr_paths: Sequence[str | os.PathLike], out_filepath: str | os.PathLike, resolution: int = RESOLUTION
) -> None:
    """Preprocess the files on all cores and write `cxr`: uint8, N x resolution x resolution, one chunk per image.

    Row i is `cxr_paths[i]`. Upstream writes the same whole numbers as float32, and leaves a black row for a file that
    fails; here every file is tried, then `UserError` names the failures and nothing is written. Memory holds a
    few images at a time.
    """
    from chexzero.common.hdf5 import NewFile

    paths = list(cxr_paths)
    if not paths:
        raise UserError(f"no images to write to {out_filepath}; check the folder that was searched")
    failures = []
    with atomic_path(out_filepath) as temporary, NewFile(temporary) as file:
        dataset = file.create_dataset(
            "cxr", (len(paths), resolution, resolution), np.uint8, chunks=(1, resolution, resolution), fletcher32=True
        )
        images = _in_parallel(lambda path: _attempt(path, resolution), paths)
        for row, image in enumerate(tqdm(images, total=len(paths), unit="image", disable=None)):
            if isinstance(image, str):
                failures.append(f"{paths[row]} {image}")
            else:
                dataset[row] = image
                file.check()
        if failures:
            report = f"{out_filepath}.failed.txt"
            write_text(report, "\n".join(failures) + "\n")
            raise UserError(
                f"{len(failures)} of {len(paths)} images failed, so {out_filepath} is not written: "
                f"{'; '.join(failures[:3])}; repair them or take them off the list ({report} names all)"
            )


def _attempt(path: str | os.PathLike, resolution: int) -> np.ndarray | str:
    try:
        return np.asarray(preprocess(read_image(path), resolution))
    except (OSError, ValueError) as error:
        return f"({error})"


def _in_parallel(function: Callable, items: Iterable) -> Iterator:
    """Yield `function(item)` in order, a few items ahead; decoding and resizing release the interpreter lock."""
    workers = os.cpu_count() or 1
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def get_cxr_path_csv(out_filepath: str | os.PathLike, directory: str | os.PathLike[str]) -> None:
    """Write a CSV with the column `Path`: every JPEG below `directory`, sorted, whatever the file system's order.

    Links to folders are followed; hidden files (`._x.jpg`, which macOS leaves) are skipped.
    """
    import pandas as pd

    paths = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(directory, followlinks=True)
        for name in names
        if name.lower().endswith((".jpg", ".jpeg")) and not name.startswith(".")
    )
    if not paths:
        raise UserError(f"{directory} holds no .jpg file; name the folder of the radiographs")
    with atomic_path(out_filepath) as temporary:
        pd.DataFrame({"Path": paths}).to_csv(temporary, index=False)


def get_cxr_paths_list(filepath: str | os.PathLike) -> "pd.Series":
    """The column `Path` of a CSV, one string per row."""
    return read_table(filepath, ["Path"], remedy="name a CSV written by get_cxr_path_csv")["Path"]


def write_report_csv(
    cxr_paths: Iterable[str | os.PathLike], txt_folder: str | os.PathLike, out_path: str | os.PathLike
) -> None:
    """Write `filename, impression`, one row per image, from MIMIC's report files.

    The report of `.../p10/p10000032/s50414267/<image>.jpg` is `<txt_folder>/p10/p10000032/s50414267.txt`. An image
    without a report raises `UserError` before anything is written.
    """
    import pandas as pd

    rows = []
    impressions: dict[Path, str] = {}  # the images of a study share a report
    for path in map(Path, cxr_paths):
        group, patient, study = path.parts[-4:-1] if len(path.parts) >= 4 else ("", "", path.stem)
        report = Path(txt_folder) / group / patient / f"{study}.txt"
        if report not in impressions:
            require_file(report, f"it is the report of {path}; check the reports' folder")
            impressions[report] = extract_impression(report.read_text(encoding="utf-8", errors="replace"))
        rows.append((report.name, impressions[report]))
    with atomic_path(out_path) as temporary:
        pd.DataFrame(rows, columns=["filename", "impression"]).to_csv(temporary, index=False)


def extract_impression(report: str) -> str:
    """The impression of a MIMIC report, its words joined by single spaces; `NO IMPRESSION` without such a heading.

    It begins after the last word `IMPRESSION:` and ends before the first heading of a recommendation or of a
    notification. As in upstream, the whole report is searched for that heading: one before the impression leaves the
    impression empty, unless it is the report's first word, which does not count as a heading.
    """
    words = report.split()
    if "IMPRESSION:" not in words:
        return NO_IMPRESSION
    begin = len(words) - words[::-1].index("IMPRESSION:")
    ends = [_first_heading(words, spellings) for spellings in _END_HEADINGS]
    return " ".join(words[begin : min(end or len(words) for end in ends)])


#: The first spelling of each kind that occurs in the report is used.
_END_HEADINGS = (("RECOMMENDATION(S):", "RECOMMENDATION:", "RECOMMENDATIONS:"), ("NOTIFICATION:", "NOTIFICATIONS:"))


def _first_heading(words: list[str], spellings: Sequence[str]) -> int | None:
    return next((words.index(spelling) for spelling in spellings if spelling in words), None)
