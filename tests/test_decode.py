"""Image files are read correctly or refused with a reason: damage, 16-bit ranges, DICOM by the standard."""

import contextlib
import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from chexzero.data_process import UnreadableImage, read_image
from chexzero.imaging import dicom as dicom_files
from chexzero.imaging.decode import decode, prepare_image, prepare_pixels, read_file, sample_range, stretch
from chexzero.imaging.dicom import _as_stored, _check_header

pydicom = pytest.importorskip("pydicom")


def picture(top: int, shape=(300, 240), seed=0) -> np.ndarray:
    """A smooth picture with a little noise, 0..top."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.random((8, 8)), shape[::-1], interpolation=cv2.INTER_CUBIC) + rng.normal(0, 0.01, shape)
    coarse = (coarse - coarse.min()) / np.ptp(coarse)
    return np.rint(coarse * top).astype(np.uint16 if top > 255 else np.uint8)


# --- JPEG ---

KINDS = {
    "baseline": [],
    "optimized": [cv2.IMWRITE_JPEG_OPTIMIZE, 1],
    "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 8],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
}


def jpeg(pixels: np.ndarray, kind: str = "baseline") -> bytes:
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90, *KINDS[kind]])[1].tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", [False, True])
def test_sound_jpegs_are_read_as_opencv_reads_them(tmp_path, kind, colour):
    pixels = np.dstack([picture(255, seed=i) for i in range(3)]) if colour else picture(255)
    (tmp_path / "a.jpg").write_bytes(jpeg(pixels, kind))
    expected = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_ANYCOLOR)
    expected = expected[..., ::-1] if colour else expected
    np.testing.assert_array_equal(decode((tmp_path / "a.jpg").read_bytes()), expected)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.jpg")), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_and_four_colour_jpegs_are_read_as_opencv_reads_them(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(255)).save(tmp_path / "a.jpg", exif=exif)
    expected = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_ANYCOLOR)
    np.testing.assert_array_equal(decode((tmp_path / "a.jpg").read_bytes()), expected)
    Image.fromarray(np.dstack([picture(255, seed=i) for i in range(4)]), "CMYK").save(tmp_path / "b.jpg")
    expected = cv2.imread(str(tmp_path / "b.jpg"), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decode((tmp_path / "b.jpg").read_bytes()), expected)


def _hole(data, at, length):
    return data[:at] + bytes(length) + data[at + length :]


def _lost(data, at, length):
    return data[:at] + data[at + length :]


def _ended(data, at, length):
    return data[:at] + b"\xff\xd9"


@pytest.mark.parametrize("damage", [_hole, _lost, _ended])
@pytest.mark.parametrize("kind", ["baseline", "optimized", "restarts"])
def test_damaged_jpegs_are_refused(damage, kind):
    data = jpeg(picture(255, (600, 500)), kind)
    start = data.find(b"\xff\xda") + 14
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        damaged = damage(data, start + int(share * (len(data) - start)), 150)
        with pytest.raises(UnreadableImage, match="damaged"):
            decode(damaged)


def test_shared_damaged_jpegs(shared, tmp_path):
    for name in ("jpeg_hole.jpg", "jpeg_half_then_end_marker.jpg"):
        with pytest.raises(UnreadableImage, match="premature end of data"):
            read_file(shared / "cases" / name)
        with pytest.raises(UnreadableImage, match="premature end of data"):
            read_image(shared / "cases" / name)
    for path in (shared / "real_cxr").rglob("*.jpg"):
        np.testing.assert_array_equal(decode(path.read_bytes()), cv2.imread(str(path), cv2.IMREAD_ANYCOLOR))


def test_jpegs_that_cost_too_much():
    data = bytearray(jpeg(picture(255)))
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    with pytest.raises(UnreadableImage, match="65500 x 65500 pixels, more than"):
        decode(bytes(data))
    with pytest.raises(UnreadableImage, match="more than 100 scans"):
        decode(jpeg(picture(255)) + b"\xff\xda" * 100)


@pytest.mark.parametrize("name, mode", [("a.tif", "L"), ("a.bmp", "RGB"), ("a.tif", "I;16"), ("a.png", "L")])
def test_files_are_read_by_content(tmp_path, name, mode):
    pixels = picture(65535 if mode == "I;16" else 255)
    pixels = np.dstack([picture(255, seed=i) for i in range(3)]) if mode == "RGB" else pixels
    Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "without_ending")
    np.testing.assert_array_equal(read_file(tmp_path / "without_ending"), prepare_pixels(pixels))
    data = (tmp_path / "without_ending").read_bytes()
    with pytest.raises(UnreadableImage, match="cut short|damaged"):
        decode(data[: len(data) // 2])


# --- 16 bits ---


@pytest.mark.parametrize("share", [1 / 72000, 0.003, 0.02, 0.06])
def test_a_marker_does_not_blacken_a_12_bit_picture(share):
    plain = picture(4000)
    marked = plain.copy()
    side = max(1, round((share * plain.size) ** 0.5))
    marked[2 : 2 + side, 2 : 2 + side] = 65535
    assert sample_range(plain) == (0, 4000)
    low, high = sample_range(marked)
    assert low < 100 and 3600 < high <= 4000
    difference = np.abs(prepare_pixels(plain).astype(int) - prepare_pixels(marked))
    assert difference[: 2 + 2 * side].max() > 20 or side == 1  # the marker is still there, white
    assert (
        np.median(difference) <= 2
        and abs(prepare_pixels(plain).mean() - prepare_pixels(marked).mean()) < 255 * share + 2
    )


def test_the_whole_range_of_a_picture_without_outliers_is_kept():
    plain = picture(60000)
    assert sample_range(plain) == (0, 60000)
    framed = np.zeros((900, 900), np.uint16)
    framed[300:600, 300:540] = plain
    assert sample_range(framed) == (0, 60000)
    few = np.zeros((100, 100), np.uint16)
    few[50, 50] = 900
    assert sample_range(few) == (0, 900)


def test_odd_ranges_are_noted(shared):
    folder = str(shared / "cases")
    marked, plain = prepare_image(folder, "png16_12bit_marker.png"), prepare_image(folder, "png16_12bit.png")
    assert "0.3031% of the samples lie outside 0..4080" in marked.note and plain.note == ""
    assert abs(marked.pixels.mean() - 104.4) < 1 and abs(plain.pixels.mean() - 104.1) < 0.1
    assert prepare_image(folder, "png16_12bit_marker.png", "high_byte").pixels.mean() < 10  # upstream's way


def test_real_radiographs_keep_their_range(shared):
    for path in (shared / "real_cxr/rexgradient").rglob("*.png"):
        image = decode(path.read_bytes())
        if image.dtype == np.uint16:
            assert sample_range(image) == (image.min(), image.max()), path


# --- DICOM ---


def dicom(pixels: np.ndarray, preamble=True, syntax=None, **tags) -> bytes:
    """A DICOM file of one grey frame; `tags` are set last, None removes one."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax or pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    file = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    bits = 8 * pixels.itemsize
    file.Rows, file.Columns = pixels.shape[:2]
    file.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        file.PlanarConfiguration = 0
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    file.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = bits, bits, bits - 1
    file.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    out = io.BytesIO()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue() if preamble else out.getvalue()[132:]


PLAIN = picture(4000)
SHOWN = prepare_pixels(PLAIN).astype(int)


def shown(data: bytes) -> np.ndarray:
    return prepare_pixels(decode(data)).astype(int)


def _lut(descriptor, data):
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = descriptor, np.asarray(data, "<u2").tobytes()
    return [item]


EQUAL = {
    "plain": dicom(PLAIN),
    "12 bits stored": dicom(PLAIN, BitsStored=12, HighBit=11),
    "no High Bit": dicom(PLAIN, BitsStored=12, HighBit=None),
    "no preamble": dicom(PLAIN, preamble=False),
    "window of no width": dicom(PLAIN, WindowCenter=0, WindowWidth=0),
    "window of width 1": dicom(PLAIN, WindowCenter=2000, WindowWidth=1),
    "window of negative width": dicom(PLAIN, WindowCenter=2000, WindowWidth=-5),
    "window beside the picture": dicom(PLAIN, WindowCenter=60000, WindowWidth=10),
    "window without a centre": dicom(PLAIN, WindowWidth=100),
    "window of the whole range": dicom(PLAIN, WindowCenter=2000.5, WindowWidth=4001),
    "two windows": dicom(PLAIN, WindowCenter=[2000.5, 100], WindowWidth=[4001, 2]),
    "intercept without slope": dicom(PLAIN, RescaleIntercept=-1000),
    "rescaled": dicom(PLAIN, RescaleSlope=2, RescaleIntercept=-1000),
    "rescaled and windowed": dicom(PLAIN, RescaleSlope=2, RescaleIntercept=0, WindowCenter=4000.5, WindowWidth=8001),
    "inverted": dicom(4000 - PLAIN, PhotometricInterpretation="MONOCHROME1"),
    "inverted, and said so twice": dicom(
        4000 - PLAIN, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"
    ),
    "inverted by its look-up shape": dicom(4000 - PLAIN, PresentationLUTShape="INVERSE"),
    "signed": dicom((PLAIN.astype(int) - 2000).astype(np.int16)),
    "overlay in unused bits": dicom(
        PLAIN | 0x8000 * (np.arange(240) % 7 == 0).astype(np.uint16), BitsStored=12, HighBit=11
    ),
    "modality look-up that inverts": dicom(
        4000 - PLAIN, ModalityLUTSequence=_lut([4001, 0, 16], list(range(4000, -1, -1)))
    ),
    "VOI look-up that inverts": dicom(4000 - PLAIN, VOILUTSequence=_lut([4001, 0, 16], list(range(4000, -1, -1)))),
}


@pytest.mark.parametrize("name", EQUAL)
def test_dicom_shows_the_picture(name):
    difference = np.abs(shown(EQUAL[name]) - SHOWN)
    assert difference.max() <= 2, f"{name}: {difference.max()}"


def test_dicom_window_narrows():
    windowed = dicom(PLAIN, WindowCenter=2000.5, WindowWidth=2001)
    expected = prepare_pixels(np.clip(PLAIN.astype(int) - 1000, 0, 2000).astype(np.uint16))
    assert np.abs(shown(windowed) - expected).max() <= 1
    steep = shown(dicom(PLAIN, WindowCenter=2000, WindowWidth=500, VOILUTFunction="SIGMOID"))
    assert steep[SHOWN > 160].min() > 240 and steep[(SHOWN > 0) & (SHOWN < 90)].max() < 15


@pytest.mark.parametrize(
    "value, limit, kind", [(65535, None, "MONOCHROME2"), (60000, 65535, "MONOCHROME2"), (65535, None, "MONOCHROME1")]
)
def test_dicom_padding_is_background(value, limit, kind):
    stored = 4000 - PLAIN if kind == "MONOCHROME1" else PLAIN
    stored = np.pad(stored, ((0, 0), (40, 40)), constant_values=value)
    if limit:
        stored[:, :20] = limit
    tags = {"PixelPaddingRangeLimit": limit} if limit else {}
    pixels = shown(dicom(stored, PixelPaddingValue=value, PhotometricInterpretation=kind, **tags))
    expected = prepare_pixels(np.pad(PLAIN, ((0, 0), (40, 40))))
    assert np.abs(pixels - expected).max() <= 1 and pixels[:, :30].max() == 0


def test_dicom_signed_padding():
    stored = (PLAIN.astype(int) - 2000).astype(np.int16)
    stored[:, :50] = -32768
    pixels = shown(dicom(stored, PixelPaddingValue=-32768))
    expected = PLAIN.copy()
    expected[:, :50] = PLAIN[:, 50:].min()
    assert np.abs(pixels - prepare_pixels(expected)).max() <= 1


@pytest.mark.parametrize("deep", [8, 16])
def test_dicom_palette_and_colour(deep):
    indices, table = picture(255), np.arange(255, -1, -1, dtype=np.uint16) * (257 if deep == 16 else 1)
    data = table.astype("<u2").tobytes() if deep == 16 else table.astype(np.uint8).tobytes()
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        tags |= {f"{name}PaletteColorLookupTableDescriptor": [256, 0, deep], f"{name}PaletteColorLookupTableData": data}
    np.testing.assert_array_equal(decode(dicom(indices, **tags)), 255 - indices)
    colour = np.dstack([picture(255, seed=i) for i in range(3)])
    np.testing.assert_array_equal(decode(dicom(colour)), colour)


@pytest.mark.parametrize(
    "data, why",
    [
        (dicom(PLAIN, HighBit=14, BitsStored=12), "High Bit is 14"),
        (dicom(PLAIN, NumberOfFrames=2), "has 2 frames"),
        (dicom(PLAIN, Rows=65000, Columns=65000), "65000 x 65000 pixels, more than"),
        (dicom(PLAIN, BitsStored=17, HighBit=16), "17 bits stored in 16"),
        (dicom(PLAIN, BitsStored=0, HighBit=None), "0 bits stored in 16"),
        (dicom(PLAIN, SamplesPerPixel=2), "has 2 samples per pixel"),
        (dicom(PLAIN, RescaleSlope=0, RescaleIntercept=1), "leaves nothing of the picture"),
        (dicom(PLAIN, PresentationLUTShape="SIDEWAYS"), "Presentation LUT Shape is 'SIDEWAYS'"),
        (dicom(PLAIN, PhotometricInterpretation="HSV"), "Photometric Interpretation is 'HSV'"),
        (dicom(PLAIN, Rows=None), "lacks Rows"),
        (dicom(PLAIN, PixelData=None), "holds no pixels"),
        (dicom(np.full_like(PLAIN, 7), PixelPaddingValue=7), "all padding"),
        (dicom(PLAIN)[:9000], "cannot be decoded"),
        (dicom(PLAIN)[:132] + zlib.compress(bytes(1 << 20)), "DICOM file"),
        (dicom(PLAIN, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian), "deflated as a whole"),
    ],
)
def test_dicom_that_would_be_guessed_is_refused(data, why):
    with pytest.raises(UnreadableImage, match=why):
        decode(data)


def test_dicom_run_lengths_are_bounded():
    file = pydicom.dcmread(io.BytesIO(dicom(np.zeros((8, 8), np.uint8) + np.arange(8, dtype=np.uint8))))
    file.compress(pydicom.uid.RLELossless)
    file.PixelData = file.PixelData + b"\x81\x00" * (1 << 20)
    out = io.BytesIO()
    file.save_as(out)
    with pytest.raises(UnreadableImage, match="run lengths hold more|cannot be decoded"):
        decode(out.getvalue())


@pytest.mark.parametrize(
    ("bits", "samples", "bytes_of_a_pixel"), [(1, 1, 1), (8, 1, 1), (8, None, 1), (8, 3, 3), (16, 1, 2)]
)
def test_run_lengths_may_hold_twice_the_pixels_and_a_little(bits, samples, bytes_of_a_pixel):
    file = pydicom.dcmread(io.BytesIO(dicom(np.zeros((300, 300), np.uint8) + np.arange(300).astype(np.uint8))))
    file.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    file.BitsAllocated = file.BitsStored = bits
    file.HighBit, file.SamplesPerPixel = bits - 1, samples
    most = 2 * 300 * 300 * bytes_of_a_pixel + (1 << 16)
    file.PixelData = bytes(most)
    _check_header(file, 0)
    file.PixelData = bytes(most + 2)
    with pytest.raises(UnreadableImage, match="run lengths hold more"):
        _check_header(file, 0)


def test_shared_dicom(shared):
    plain = read_file(shared / "cases/dicom_plain.dcm").astype(int)
    for name in ("no_preamble", "window_width_0", "palette"):
        assert np.abs(read_file(shared / f"cases/dicom_{name}.dcm") - plain).max() <= 2, name
    padded = read_file(shared / "cases/dicom_padding_65535.dcm")
    assert abs(padded.mean() - plain.mean()) < 5


@pytest.mark.parametrize("out", [0, 1])
def test_the_reach_of_a_range_is_twice_the_width_of_its_bulk(out):
    """Most samples are 1000 to 1100, so samples from 800 to 1300 belong to the picture and no others."""
    image = np.repeat(np.array([1000, 1100], np.uint16), 5000)
    image = np.concatenate([image, np.array([500, 800 - out, 1300 + out], np.uint16)]).reshape(-1, 1)
    assert sample_range(image) == ((1000, 1100) if out else (800, 1300))


@pytest.mark.parametrize(
    ("value", "signed", "stored"),
    [(65535, 1, -1), (32768, 1, -32768), (32767, 1, 32767), (-5, 1, -5), (-1, 0, 65535), (65535, 0, 65535), (7, 0, 7)],
)
def test_a_padding_value_is_read_in_the_type_of_the_pixels(value, signed, stored):
    assert _as_stored(value, {"BitsAllocated": 16, "PixelRepresentation": signed}) == stored


@pytest.mark.parametrize(("name", "kind"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_dicom_of_floating_point_samples_is_read(name, kind):
    """The standard gives such a file no Bits Stored, and its pixels another name."""
    without = dict.fromkeys(("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    values = {name: (PLAIN / 4000).astype(kind).tobytes(), "BitsAllocated": 8 * np.dtype(kind).itemsize}
    assert np.abs(shown(dicom(PLAIN, **without, **values)) - SHOWN).max() <= 1


def test_dicom_of_floating_point_samples_needs_its_size():
    values = {"PixelData": None, "BitsStored": None, "FloatPixelData": (PLAIN / 4000).astype("<f4").tobytes()}
    with pytest.raises(UnreadableImage, match="it lacks Rows$"):
        decode(dicom(PLAIN, Rows=None, **values))


def test_dicom_may_have_just_as_many_pixels_as_are_read(monkeypatch):
    monkeypatch.setattr(dicom_files, "MAX_PIXELS", PLAIN.size)
    assert decode(dicom(PLAIN)).shape == PLAIN.shape
    monkeypatch.setattr(dicom_files, "MAX_PIXELS", PLAIN.size - 1)
    with pytest.raises(UnreadableImage, match="pixels, more than"):
        decode(dicom(PLAIN))


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_dicom_colour_of_more_than_8_bits_uses_the_range_of_its_bits(bits):
    colour = np.dstack([picture(2**bits - 1, seed=i) for i in range(3)])
    found = decode(dicom(colour, BitsStored=bits, HighBit=bits - 1))
    np.testing.assert_array_equal(found, np.rint(colour / (2**bits - 1) * 255))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_damaged_jpeg_within_dicom_is_refused_where_it_is_a_baseline_one(bits):
    """Pillow cannot read the JPEG of a file that declares 16 bits; the error comes from pydicom's readers."""
    whole = jpeg(picture(255))
    file = pydicom.dcmread(io.BytesIO(dicom(picture(255))))
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    file.BitsAllocated = bits
    file.PixelData = pydicom.encaps.encapsulate([whole])
    _check_header(file, 0)
    file.PixelData = pydicom.encaps.encapsulate([_hole(whole, len(whole) // 2, 150)])
    with pytest.raises(UnreadableImage, match="damaged") if bits == 8 else contextlib.nullcontext():
        _check_header(file, 0)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 4), (2, 4, 5, 3)])
def test_colour_of_another_shape_is_refused(shape, monkeypatch):
    colour = np.dstack([picture(255, seed=i) for i in range(3)])
    monkeypatch.setattr("pydicom.pixels.pixel_array", lambda _: np.zeros(shape, np.uint8))
    with pytest.raises(UnreadableImage, match="one colour frame is needed"):
        decode(dicom(colour))


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        ("MONOCHROME1", "INVERSE", False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "", False),
        ("MONOCHROME2", "", False),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_two_entries_that_contradict_each_other_are_said(kind, shape, said, caplog):
    decode(dicom(PLAIN, PhotometricInterpretation=kind, PresentationLUTShape=shape))
    assert (f"is {kind} but its Presentation LUT Shape is {shape}" in caplog.text) is said


def test_the_range_of_a_colour_picture_is_that_of_all_its_channels():
    plain = picture(4000)
    assert sample_range(np.dstack([plain // 2, plain // 4, plain])) == (0, 4000)
    assert sample_range(np.dstack([plain // 2 + 100, plain // 2, plain // 2 + 50])) == (0, 2100)


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_the_range_of_one_value_is_that_value(value):
    assert sample_range(np.full((4, 5), value, np.uint16)) == (value, value)


def test_a_range_is_stretched_over_0_to_255():
    image = np.array([[999, 1000, 1100], [1200, 1510, 1511]], np.uint16)
    assert stretch(image, 1000, 1510).tolist() == [[0, 0, 50], [100, 255, 255]]


@pytest.mark.parametrize("equal", [True, False])
def test_a_colour_file_of_equal_channels_is_grey(tmp_path, equal):
    pixels = np.dstack([picture(255)] * 2 + [picture(255, seed=0 if equal else 1)])
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(decode((tmp_path / "a.tif").read_bytes()), pixels[..., 0] if equal else pixels)
