"""The page answers with the model's probabilities, handles any dropped file, and serves nothing else."""

import base64
import io
import json
import shutil
import socket
import struct
import tempfile
import threading
import time
import urllib.request
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from playwright.sync_api import sync_playwright

from chexzero.common.errors import UserError
from chexzero.evaluation.standing import Standing
from chexzero.explore.app import CONNECTIONS, MAX_LABELS, Explorer, create_app, load_explorer, make_server, parse_labels
from chexzero.explore.heatmap import patch_features
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP
from chexzero.zero_shot import embed_texts, predict_labels

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TEXT = dict(context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=1)
REPORTS = ["No acute process.", "Large left pleural effusion.", "<script>alert(1)</script> & a rib fracture."]


def small_model() -> CLIP:
    torch.manual_seed(0)
    return CLIP(32, 64, 2, 64, 16, **TEXT).eval()


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    model = small_model()
    return Explorer(model, "run <b>", True, REPORTS, embed_texts(model, REPORTS))


def picture(height=400, width=300, dtype=np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, top, (height, width), dtype=dtype)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def ask(client, data: bytes, labels: str = "edema\npneumothorax", name: str = "a.png"):
    return client.post("/analyse", data={"image": (io.BytesIO(data), name), "labels": labels})


def test_probabilities_are_the_models(explorer):
    image = picture(320, 320)
    answer = ask(create_app(explorer).test_client(), png(image)).get_json()
    expected = predict_labels(explorer.model, image[None], ["edema", "pneumothorax"])[0]
    assert [f["label"] for f in answer["findings"]] == ["edema", "pneumothorax"]
    np.testing.assert_allclose([f["probability"] for f in answer["findings"]], expected, rtol=1e-6)
    assert sorted(answer["reports"]) == sorted(REPORTS)
    heat = cv2.imdecode(np.frombuffer(base64.b64decode(answer["findings"][0]["heat"].split(",")[1]), np.uint8), 1)
    assert heat.shape == (320, 320, 3) and heat.max() > heat.min()


def test_16_bit_and_dicom_files_are_read(explorer, tmp_path):
    client = create_app(explorer).test_client()
    assert ask(client, png(picture(dtype=np.uint16))).status_code == 200
    pydicom = pytest.importorskip("pydicom")
    from pydicom.examples import get_path  # a small file that pydicom ships

    data = get_path("mr").read_bytes()
    assert pydicom.dcmread(io.BytesIO(data)).pixel_array.ndim == 2
    assert ask(client, data, name="a.dcm").status_code == 200


@pytest.mark.parametrize(
    "data, labels, word",
    [
        (b"just text", "edema", "PNG"),
        (b"", "edema", "empty"),
        (png(picture())[:2000], "edema", "short"),
        (png(np.zeros((64, 64), np.uint8)), "edema", "constant"),
        (png(picture()), " \n ", "no finding"),
        (png(picture()), "x" * 10_000, "too long"),
        (png(picture()), "\n".join(map(str, range(3000))), "too many"),
    ],
)
def test_wrong_input_is_one_sentence(explorer, data, labels, word):
    answer = ask(create_app(explorer).test_client(), data, labels)
    assert answer.status_code == 400 and word in answer.get_json()["error"]


def test_a_picture_of_50_megapixels_is_answered(explorer):
    answer = ask(create_app(explorer).test_client(), png(np.tile(picture(500, 500), (14, 14))))
    assert answer.status_code == 200


def test_nothing_else_is_served(explorer):
    client = create_app(explorer).test_client()
    for path in (
        "/static/explore.html",
        "/../chexzero/explore/app.py",
        "/%2e%2e/etc/passwd",
        "/templates/explore.html",
        "/analyse",
    ):
        assert client.get(path).status_code in (404, 405)
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    page = client.get("/")
    assert b"run &lt;b&gt;" in page.data and b"Not for clinical use" in page.data
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_two_users_at_once_get_their_own_answers(explorer):
    app, images = create_app(explorer), [picture(320, 320), 255 - picture(320, 320)]
    answers = [None, None]

    def user(i):
        for _ in range(5):
            answers[i] = ask(app.test_client(), png(images[i])).get_json()["findings"][0]["probability"]

    threads = [threading.Thread(target=user, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = predict_labels(explorer.model, np.stack(images), ["edema"])[:, 0]
    np.testing.assert_allclose(answers, expected, rtol=1e-6)


def test_labels_are_lines():
    assert parse_labels(" edema \n\nmass\nedema\n") == ["edema", "mass"]
    with pytest.raises(UserError):
        parse_labels("\n".join(f"label {i}" for i in range(MAX_LABELS + 1)))


@pytest.mark.parametrize("kind", ["vit", "dinov3"])
def test_a_patch_answers_for_its_own_place(kind):
    if kind == "vit":
        model = small_model()
    else:
        from dinov3_adapter import build_vision_tower

        tower = build_vision_tower("dinov3_tiny", "random", image_resolution=64, embed_dim=32)
        model = CLIP(32, 64, 0, 0, None, **TEXT, visual=tower).eval()
    pixels = prepare(torch.from_numpy(picture(320, 320)[None]), 64).clone()
    whole, features = model.encode_image(pixels), patch_features(model, pixels)
    assert features.shape == (1, 4, 4, 32)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(1, 4, 4))
    torch.testing.assert_close(model.encode_image(pixels), whole)  # patch_features does not change the model
    pixels[:, :, 16:32, 48:64] = -pixels[:, :, 16:32, 48:64]  # the patch in row 1, column 3
    change = (patch_features(model, pixels) - features).norm(dim=-1)[0]
    assert change.argmax() == 1 * 4 + 3


@pytest.fixture
def address(explorer):
    """A running server's address."""
    server = make_server(create_app(explorer), 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.effective_port}/"
    server.close()


def test_slow_connections_hold_no_threads_and_no_answers_back(address):
    """More connections than threads send half a request each; the page still answers another at once."""
    place = ("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))
    before = threading.active_count()
    slow = [socket.create_connection(place) for _ in range(CONNECTIONS - 4)]
    for one in slow:
        one.sendall(b"POST /analyse HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nhalf")
    began = time.perf_counter()
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.status == 200
    assert time.perf_counter() - began < 5 and threading.active_count() == before
    for one in slow:
        one.close()


@pytest.mark.long
def test_400_slow_connections(explorer, monkeypatch):
    """Slow connections do not occupy threads; silent ones are closed, and the page answers again."""
    monkeypatch.setattr("chexzero.explore.app.SILENCE", 3)
    server = make_server(create_app(explorer), 0)
    threading.Thread(target=server.run, daemon=True).start()
    before, slow = threading.active_count(), []
    for _ in range(400):
        one = socket.create_connection(("127.0.0.1", server.effective_port))
        one.sendall(b"POST /analyse HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nhalf")
        slow.append(one)
    began = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.effective_port}/", timeout=300) as answer:
        assert answer.status == 200
    waves = -(-400 // CONNECTIONS)
    assert time.perf_counter() - began < 2 * 3 * (waves + 1)
    assert threading.active_count() == before
    for one in slow:
        one.close()
    server.close()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_works_in_a_browser(explorer, address, tmp_path):
    """Submit an image through the real form; the answer is shown, and HTML in it is displayed as text."""
    image = picture(320, 320)
    path = tmp_path / "<img src=x onerror=document.title='harm'>.png"
    path.write_bytes(png(image))
    labels = ["edema", "<b>mass</b>"]
    problems: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.goto(address)
        assert page.title() == "Explore run <b>"
        page.set_input_files("#file", path)
        page.fill("#labels", "\n".join(labels))
        page.click("#go")
        page.locator("#result").wait_for()
        for name in ("#heat", "#image"):
            assert page.locator(name).evaluate("async image => (await image.decode(), image.naturalWidth)") == 320
        rows = page.evaluate("[...$('rows').children].map(row => [...row.children].map(part => part.textContent))")
        assert [row[0] for row in rows] == labels
        expected = predict_labels(explorer.model, image[None], labels)[0]
        np.testing.assert_allclose([float(row[2]) for row in rows], expected, atol=6e-4)
        assert sorted(page.locator("#reports > *").all_text_contents()) == sorted(REPORTS)
        assert page.text_content("#chosen") == path.name
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.screenshot(path=tmp_path / f"result_{width}.png", full_page=True)
        (tmp_path / "notes.png").write_text("no image")
        page.set_input_files("#file", tmp_path / "notes.png")
        page.click("#go")
        page.locator("#error", has_text="neither PNG, JPEG nor DICOM").wait_for()
        assert page.title() == "Explore run <b>"
        browser.close()
    assert [one for one in problems if "400" not in one] == []  # the refusal's status is logged too


def test_other_pages_cannot_ask(explorer):
    """Another site's page may post a form here without permission; the browser then sends that page's origin."""
    client, data = create_app(explorer).test_client(), png(picture())
    for origin, status in (("http://evil.example", 403), ("null", 403), ("http://localhost", 200)):
        answer = client.post(
            "/analyse", headers={"Origin": origin}, data={"image": (io.BytesIO(data), "a.png"), "labels": "edema"}
        )
        assert answer.status_code == status


def test_an_upload_stays_in_memory(explorer, monkeypatch):
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", None)
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    assert ask(create_app(explorer).test_client(), png(picture(1500, 1500))).status_code == 200  # more than 500 kB


def test_a_header_of_too_many_pixels_is_refused(explorer):
    data = bytearray(png(picture()))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    answer = ask(create_app(explorer).test_client(), bytes(data))
    assert answer.status_code == 400 and "OpenCV" in answer.get_json()["error"]


def test_where_a_value_stands(explorer):
    image = png(picture(320, 320))
    without = ask(create_app(explorer).test_client(), image, "Edema").get_json()["findings"][0]
    assert without["stands"] == ""
    p = without["probability"]
    reference = {"Edema": np.array([p - 0.2, p - 0.1, p - 0.01, p + 0.1]), "Fracture": np.array([0.5])}
    measured = {"Edema": {"threshold": p - 0.05, "sensitivity": 0.8, "specificity": 0.75}}
    known = Explorer(
        explorer.model,
        "run",
        True,
        [],
        np.zeros((0, 0)),
        standing=Standing(reference, measured | {"Fracture": {"threshold": None}}),
    )
    client = create_app(known).test_client()
    edema, fracture, odd = ask(client, image, "Edema\nFracture\n<b>").get_json()["findings"]
    assert edema["stands"] == (
        f"75th percentile of 4 validation images; at or above the threshold {p - 0.05:.4f} chosen there "
        "(test set: sensitivity 0.80, specificity 0.75)"
    )
    assert "threshold" not in fracture["stands"] and "validation images" in fracture["stands"] and odd["stands"] == ""
    assert "those of this model's evaluation" in client.get("/").get_data(as_text=True)
    assert "Evaluate the run" in create_app(explorer).test_client().get("/").get_data(as_text=True)


def test_a_drawn_run_says_so_wherever_it_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    torch.save(small_model().state_dict(), run / "checkpoint_1.pt")
    (run / "selection.json").write_text(json.dumps({"checkpoint": "checkpoint_1.pt"}))
    (run / "config.json").write_text(
        json.dumps({"settings": {"txt_filepath": "gone/impressions.csv"}, "data": {"drawn": True}})
    )
    found = load_explorer(run, None, None, 10)
    assert found.drawn and found.reports == []


def test_the_sentence_of_a_value_has_its_side_and_its_ordinal():
    standing = Standing({"Edema": np.arange(100.0)}, {"Edema": {"threshold": 50.0}})
    assert "; at or above the threshold 50.0000" in standing.sentence("Edema", 50.0)
    assert "; below the threshold" in standing.sentence("Edema", np.nextafter(50.0, 0))
    ordinals = [standing.sentence("Edema", value - 0.5).split()[0] for value in (0, 1, 2, 3, 4, 11, 12, 13, 21, 22, 23)]
    assert ordinals == ["0th", "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd"]
    assert standing.sentence("Edema", 1e9).startswith("99th") and standing.sentence("Mass", 1.0) == ""
    assert standing.percentile("Edema", [0.0, 50.0]).tolist() == [0.5, 50.5]  # ties count one half
    called = standing.table(pd.DataFrame({"image": ["a", "b"], "Edema": [49.9, 50.0]}))["called"]
    assert called.tolist() == [False, True]
