"""Pairs of pictures side by side, for a person to judge."""

import base64
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from chexzero.common.files import write_text
from data_prep.overlap import near, verify
from data_prep.overlap.checks import IMAGE_KINDS, NAMES, Check, ImageResults
from data_prep.overlap.contract import Role

KEY_FILE = "overlap_report.key"
MAX_FOUND = 200
MAX_REJECTED = 8


@dataclass
class Card:
    """Two pictures as data URLs: `b` (evaluation), `a` aligned with it, and the difference; with the measurements."""

    a_role: str
    a_id: str
    b_role: str
    b_id: str
    kinds: list[str]
    score: float | None
    alignment: str
    pictures: list[tuple[str, str]]


def read_key(folder: Path) -> bytes:
    """Read the secret key of the ids' hashes in the shared report, created on first use; it stays with the data.

    Ids are few and have a known form, so without a key anyone could try all of them against a hash.
    """
    path = folder / KEY_FILE
    if not path.is_file():
        write_text(path, secrets.token_hex(32) + "\n")
        path.chmod(0o600)
    return path.read_bytes().strip()


def short_hash(image_id: str, key: bytes) -> str:
    """Twelve hexadecimal digits (HMAC-SHA-256); only a holder of the key can match them to an id."""
    return hmac.new(key, image_id.encode(), "sha256").hexdigest()[:12]


def found(roles: dict[str, Role], checks: list[Check], images: ImageResults) -> list[Card]:
    """A card for each pair of images that any check called equal; the first `MAX_FOUND`."""
    kinds: dict[tuple[str, str, str, str], list[str]] = {}
    for check in checks:
        for match in check.matches if check.kind in IMAGE_KINDS else ():
            kinds.setdefault((match.a_role, match.a_id, match.b_role, match.b_id), []).append(check.kind)
    return [
        _card(roles, *pair, names, images.pairs.get((pair[1], pair[3])))
        for pair, names in list(kinds.items())[:MAX_FOUND]
    ]


def rejected(roles: dict[str, Role], images: ImageResults) -> list[Card]:
    """The pairs that came closest to being called near-equal and were not."""
    closest = sorted(
        ((pair.score, ids) for ids, pair in images.pairs.items() if not pair.same and pair.comparison),
        key=lambda item: (-item[0], item[1]),
    )[:MAX_REJECTED]
    return [_card(roles, _role_of(roles, a), a, _role_of(roles, b), b, [], images.pairs[a, b]) for _, (a, b) in closest]


def _role_of(roles: dict[str, Role], image_id: str) -> str:
    return next(name for name, role in roles.items() if (role.rows["id"] == image_id).any())


def _card(
    roles: dict[str, Role], a_role: str, a_id: str, b_role: str, b_id: str, kinds: list[str], pair: near.Pair | None
) -> Card:
    a, b = _image(roles[a_role], a_id), _image(roles[b_role], b_id)
    comparison = pair.comparison if pair else verify.compare(verify.prepare_poses(b), verify.prepare(a))
    if comparison is None:
        pictures = [(NAMES[b_role], _url(b)), (NAMES[a_role], _url(a))]
        return Card(a_role, a_id, b_role, b_id, kinds, None, "not aligned", pictures)
    moved = verify.aligned(a, comparison)
    scale = np.sqrt(abs(np.linalg.det(comparison.matrix[:, :2])))
    angle = np.degrees(np.arctan2(comparison.matrix[1, 0], comparison.matrix[0, 0]))
    text = (
        f"size × {scale:.3f}, rotated {abs(angle):.1f}°, stretched {comparison.stretch - 1:.1%}, overlap "
        + (f"{comparison.overlap:.0%}")
        + (", mirrored" if comparison.mirrored else "")
        + (", inverted" if comparison.inverted else "")
        + f", {comparison.inliers} features agree"
    )
    return Card(
        a_role,
        a_id,
        b_role,
        b_id,
        kinds,
        round(comparison.score, 4),
        text,
        [
            (NAMES[b_role], _url(b)),
            (f"{NAMES[a_role]}, aligned", _url(moved)),
            ("difference", _url(_difference(b, moved))),
        ],
    )


def _image(role: Role, image_id: str) -> np.ndarray:
    row = int(np.flatnonzero(role.rows["id"].to_numpy() == image_id)[0])
    return verify.at_size(np.asarray(role.images[row : row + 1])[0])


def _difference(b: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The difference after mean and contrast are matched where both have content; 0 is mid-grey."""
    common = (b > 0) & (moved > 0)
    if common.sum() < 100:
        return np.full_like(b, 128)
    x, y = b.astype(np.float32), moved.astype(np.float32)
    level = (y - y[common].mean()) / (y[common].std() + 1) * x[common].std() + x[common].mean()
    return np.where(common, np.clip(128 + (x - level) / 2, 0, 255), 128).astype(np.uint8)


def _url(image: np.ndarray) -> str:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def shared_texts(roles: dict[str, Role], checks: list[Check]) -> list[dict[str, str]]:
    """The telling reports that two sets share, cut to 600 characters; the first `MAX_FOUND`."""
    texts = []
    for check in checks:
        for match in check.matches if check.kind == "report" else ():
            rows = roles[match.a_role].rows
            text = str(rows["report"].iloc[int(np.flatnonzero(rows["id"].to_numpy() == match.a_id)[0])])
            text = "".join(c if c.isprintable() else " " for c in text)  # no marks that change the writing direction
            texts.append(
                {
                    "a_role": match.a_role,
                    "a_id": match.a_id,
                    "b_role": match.b_role,
                    "b_id": match.b_id,
                    "text": " ".join(text.split())[:600],
                }
            )
    return texts[:MAX_FOUND]
