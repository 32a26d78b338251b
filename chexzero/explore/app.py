"""A page to try a model on one image: `python -m chexzero.explore --run checkpoints/<name>`.

Flask serves it on the loopback address only; images stay in memory and nothing is written.
"""

import base64
import importlib.util
import io
import logging
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import waitress
from flask import Flask, Request, abort, jsonify, render_template, request
from werkzeug.exceptions import HTTPException

from chexzero.common.errors import UserError
from chexzero.common.files import read_table, sha256_of
from chexzero.common.formats import read_build
from chexzero.common.labels import FINDINGS
from chexzero.common.resample import RESOLUTION
from chexzero.evaluation.standing import Standing, read_standing
from chexzero.explore.heatmap import patch_similarity
from chexzero.imaging.decode import decode, prepare_pixels
from chexzero.imaging.image_files import UNREADABLE, reason
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP
from chexzero.models.checkpoints import load_model
from chexzero.runs.run_folder import read_run
from chexzero.zero_shot import embed_images, embed_texts, pair_probabilities

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
MAX_UPLOAD = 256 * 2**20  # bytes; a 16-bit PNG of 50 megapixels has at most 100 MiB of pixels
TOO_LARGE = f"the file is too large; choose one of at most {MAX_UPLOAD >> 20} MiB"
MAX_LABELS = 50
MAX_LABEL_LENGTH = 200
N_NEAREST = 5

#: Limits on the load that other programs can cause: threads that answer, connections at a time (each may hold one
#: upload in memory), and seconds that a connection may stay silent.
THREADS, CONNECTIONS, SILENCE = 4, 32, 30


@dataclass
class Explorer:
    """A model, the reports that images are compared with, and the model's values on the validation images if known.

    It handles one request at a time.
    """

    model: CLIP
    name: str
    drawn: bool
    reports: list[str]
    report_features: np.ndarray
    image_size: int = RESOLUTION
    standing: Standing | None = None

    def __post_init__(self):
        self.lock = threading.Lock()

    def analyse(self, data: bytes, filename: str, labels: list[str]) -> dict:
        """Probabilities, heat maps and nearest reports for one image file's bytes."""
        with self.lock:  # also while decoding, because a large picture takes as much memory as the model
            try:
                image = prepare_pixels(decode(data), size=self.image_size).copy()  # Pillow's memory is read-only
            except UNREADABLE as error:
                raise UserError(f"{filename}: {reason(error)}; choose a radiograph as PNG, JPEG or DICOM") from error
            features = embed_images(self.model, image[None])
            texts = embed_texts(self.model, labels + [f"no {label}" for label in labels])
            maps = patch_similarity(
                self.model,
                prepare(torch.from_numpy(image[None]), self.model.image_resolution, self.model.normalisation),
                torch.from_numpy(texts),
            )[0].numpy()
        n = len(labels)
        probabilities = pair_probabilities(features, texts[:n], texts[n:])[0]
        nearest = np.argsort(-(self.report_features @ features[0]))[:N_NEAREST] if self.reports else np.array([], int)
        return {
            "image": _data_uri(image),
            "findings": [
                {
                    "label": label,
                    "probability": float(p),
                    "heat": _data_uri(_heat(pos - neg)),
                    "stands": self.stands(label, p),
                }
                for label, p, pos, neg in zip(labels, probabilities, maps[:n], maps[n:], strict=True)
            ],
            "reports": [self.reports[i] for i in nearest],
        }

    def stands(self, label: str, probability: float) -> str:
        """A sentence on a value's percentile among the validation images and on the threshold; "" if not known."""
        if self.standing is None:
            return ""
        return self.standing.sentence(label, probability)


def parse_labels(text: str) -> list[str]:
    """Parse one finding per line, in order, without repeats; `UserError` for none, too many or too long ones."""
    labels = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not labels:
        raise UserError("no finding is given; type one per line")
    if len(labels) > MAX_LABELS:
        raise UserError(f"{len(labels)} findings are too many; give at most {MAX_LABELS}, one per line")
    longest = max(map(len, labels))
    if longest > MAX_LABEL_LENGTH:
        raise UserError(f"a finding of {longest} characters is too long; give at most {MAX_LABEL_LENGTH} per line")
    return labels


class _InMemory(Request):
    """A request that keeps uploads in memory (Flask would put a large one into a temporary file)."""

    def _get_file_stream(self, *_: object, **__: object) -> io.BytesIO:
        return io.BytesIO()


def create_app(explorer: Explorer) -> Flask:
    """Create the page (`GET /`) and its one service (`POST /analyse`); nothing else is served."""
    app = Flask(__name__, static_folder=None, template_folder="templates")
    app.request_class = _InMemory
    app.config.update(MAX_CONTENT_LENGTH=MAX_UPLOAD, TRUSTED_HOSTS=["127.0.0.1", "localhost"])

    @app.before_request
    def from_this_page():
        if request.headers.get("Origin") not in (None, request.host_url.rstrip("/")):
            abort(403, "the request comes from another page; use this server's own")

    @app.get("/")
    def page():
        nonce = secrets.token_urlsafe(16)
        html = render_template(
            "explore.html",
            name=explorer.name,
            drawn=explorer.drawn,
            labels=FINDINGS,
            nonce=nonce,
            n_reports=len(explorer.reports),
            most=MAX_UPLOAD,
            too_large=TOO_LARGE,
            standing=explorer.standing is not None,
            dicom=importlib.util.find_spec("pydicom") is not None,
            no_reports="No reports were given; name a CSV with --reports.",
        )
        policy = (
            f"default-src 'none'; img-src data:; connect-src 'self'; script-src 'nonce-{nonce}'; "
            f"style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return html, {"Content-Security-Policy": policy}

    @app.post("/analyse")
    def analyse():
        upload = request.files.get("image")
        if upload is None:
            raise UserError("the request has no image; choose one")
        labels = parse_labels(request.form.get("labels", ""))
        return jsonify(explorer.analyse(upload.read(), upload.filename or "image", labels))

    @app.errorhandler(UserError)
    def wrong_input(error):
        return jsonify(error=str(error)), 400

    @app.errorhandler(HTTPException)
    def refused(error):
        message = f"{TOO_LARGE} (or shorten the list of findings)" if error.code == 413 else error.description
        return jsonify(error=message), error.code

    @app.after_request
    def harden(response):
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    return app


def make_server(app: Flask, port: int) -> "waitress.server.BaseWSGIServer":
    """A server on the loopback address, not yet running. One thread reads all requests, however slowly they arrive."""
    logging.getLogger("waitress").setLevel(logging.ERROR)
    return waitress.create_server(
        app,
        host=HOST,
        port=port,
        threads=THREADS,
        connection_limit=CONNECTIONS,
        channel_timeout=SILENCE,
        cleanup_interval=SILENCE // 3,
        max_request_body_size=MAX_UPLOAD,
        inbuf_overflow=2 * MAX_UPLOAD,  # no upload reaches the disk
        outbuf_overflow=2 * MAX_UPLOAD,
        clear_untrusted_proxy_headers=True,
        ident=None,
    )


def load_explorer(
    run: Path, checkpoint: Path | None, reports: Path | None, max_reports: int, results: Path = Path("results")
) -> Explorer:
    """Load the run's selected checkpoint and embed the reports that images are compared with.

    Percentiles and thresholds come from `<results>/<run's name>`, if that is an evaluation of the same weights.

    Without `reports`, those of the run's training set are used if they are drawn; real reports are shown only if their
    file is named.
    """
    folder = read_run(run)
    weights = checkpoint or folder.selected()
    model = load_model(weights)
    evaluated = results / run.resolve().name
    known = weights.is_file() and (evaluated / "metrics.json").is_file()
    standing = read_standing(evaluated, sha256_of(weights)) if known else None
    training = Path(folder.settings.get("txt_filepath") or "")
    drawn = folder.drawn or bool(read_build(training.parent).get("drawn"))
    if reports is None and drawn and training.is_file():
        if folder.recorded_sha256("txt_filepath") in (None, sha256_of(training)):
            reports = training
        else:  # it may hold real reports now instead of drawn ones
            log.warning("%s is not the file that %s was trained on; its reports are not shown", training, run)
    texts = [] if reports is None else _distinct_reports(reports, max_reports)
    features = embed_texts(model, texts) if texts else np.zeros((0, 0))
    return Explorer(model, run.name, drawn, texts, features, folder.image_size(), standing)


def _distinct_reports(path: Path, limit: int) -> list[str]:
    table = read_table(path, ["impression"], all_columns=False)
    texts = table["impression"].dropna().drop_duplicates()
    if len(texts) > limit:
        texts = texts.sample(limit, random_state=0)
    return pd.Series(texts).tolist()


def _heat(difference: np.ndarray) -> np.ndarray:
    """(h, w) cosine differences -> 320 x 320 BGR heat map, scaled to the map's own range."""
    low, high = float(difference.min()), float(difference.max())
    scaled = (255 * (difference - low) / max(high - low, 1e-12)).astype(np.uint8)
    smooth = cv2.resize(scaled, (320, 320), interpolation=cv2.INTER_CUBIC)
    colour = cv2.applyColorMap(smooth, cv2.COLORMAP_INFERNO)
    return (colour * 0.75).astype(np.uint8)


def _data_uri(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", image)[1].tobytes()).decode()
