"""The page answers with the model's probabilities, survives what people drop on it, and serves nothing else."""

import base64
import io
import shutil
import subprocess
import threading

import cv2
import numpy as np
import pytest
import torch
from werkzeug.serving import make_server

from chexzero.errors import UserError
from chexzero.explore import MAX_LABELS, Explorer, create_app, parse_labels
from chexzero.heatmap import patch_features
from chexzero.images import prepare
from chexzero.inference import embed_texts, predict_labels
from chexzero.model import CLIP

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


@pytest.mark.parametrize("data, labels, word", [
    (b"just text", "edema", "PNG"), (b"", "edema", "empty"), (png(picture())[:2000], "edema", "short"),
    (png(np.zeros((64, 64), np.uint8)), "edema", "constant"), (png(picture()), " \n ", "no finding"),
    (png(picture()), "x" * 10_000, "too long"), (png(picture()), "\n".join(map(str, range(3000))), "too many"),
])
def test_wrong_input_is_one_sentence(explorer, data, labels, word):
    answer = ask(create_app(explorer).test_client(), data, labels)
    assert answer.status_code == 400 and word in answer.get_json()["error"]


def test_a_picture_of_50_megapixels_is_answered(explorer):
    answer = ask(create_app(explorer).test_client(), png(np.tile(picture(500, 500), (14, 14))))
    assert answer.status_code == 200


def test_nothing_else_is_served(explorer):
    client = create_app(explorer).test_client()
    for path in ("/static/explore.html", "/../chexzero/explore.py", "/%2e%2e/etc/passwd", "/templates/explore.html",
                 "/analyse"):
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
    torch.testing.assert_close(model.encode_image(pixels), whole)  # asking for patches leaves the model as it was
    pixels[:, :, 16:32, 48:64] = -pixels[:, :, 16:32, 48:64]  # the patch in row 1, column 3
    change = (patch_features(model, pixels) - features).norm(dim=-1)[0]
    assert change.argmax() == 1 * 4 + 3


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_works_in_a_browser(explorer, tmp_path):
    """Chromium loads the page with scripts and styles allowed by its own policy, and its title is there."""
    server = make_server("127.0.0.1", 0, create_app(explorer), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        page = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--v=0", "--dump-dom",
             f"http://127.0.0.1:{server.server_port}/"], capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        thread.join()
    assert "Explore run &lt;b&gt;" in page.stdout and "Drop a" in page.stdout
    assert "Content Security Policy" not in page.stderr
