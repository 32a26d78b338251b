"""The overlap audit's input and output."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Role:
    """The images of one role as the audit sees them.

    `images[a:b]` gives uint8 (b - a, side, side); `rows` has one row per image, in the same order, with the columns
    `id, source, split, patient_id, patient_id_column, study_id, view, report, file_sha256, pixel_sha256`.
    `patient_id` comes from the image's path, `patient_id_column` from the release's table, both spelled as in
    the ids; `report` is the training text, or in an evaluation set the text that would be ("" if unknown).
    """

    images: Any
    rows: "pd.DataFrame"


@dataclass
class Audit:
    """What the audit found: the training images to leave out, why, and the summary for `build.json`."""

    drop_ids: set[str]
    summary: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)
