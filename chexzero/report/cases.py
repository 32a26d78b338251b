"""Contact sheets of the most confident right and wrong cases per label. They show patients: off by default."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas

from chexzero.common.formats import grey_images, open_images
from chexzero.common.labels import LABELS
from chexzero.evaluation.results import SetResult
from chexzero.report.charts import save
from chexzero.report.sections import Figure, Section, Table

PER_KIND = 3
#: Title -> (the case is positive, sort by descending probability).
KINDS = {
    "right: present": (True, True),
    "right: absent": (False, False),
    "wrong: called present": (False, True),
    "wrong: missed": (True, False),
}


def thumbnails_section(test: SetResult, images: Path, folder: Path, pixel_range: str | None = None) -> Section:
    """One figure per label with the model's most confident cases, right and wrong."""
    first = np.unique(test.units.members, return_index=True)[1]
    rows = test.units.rows[first]
    labels = [label for label in range(len(LABELS)) if np.isfinite(test.auroc[label])]
    chosen = {label: {title: _cases(test, label, *kind) for title, kind in KINDS.items()} for label in labels}
    with open_images(images) as handle:
        shown = grey_images(handle, pixel_range)
        figures = [_sheet(test, label, chosen[label], shown, rows, folder) for label in labels]
    rows_shown = [
        [LABELS[label], title, float(test.probability[case, label]), *ids]
        for label, kinds in chosen.items()
        for title, cases in kinds.items()
        for case in cases
        for ids in [test.units.table.loc[case, ["id", "patient_id"]]]
    ]
    table = Table("The cases shown", ["Label", "Kind", "Probability", "Id", "Patient"], rows_shown)
    return Section(
        "cases",
        "Most confident cases",
        [
            "These are images and ids of patients (shown because --thumbnails was given): keep this report only where "
            "the images may be kept. At study level the first view is shown."
        ],
        [table],
        figures,
    )


def _cases(test: SetResult, label: int, positive: bool, falling: bool) -> list[int]:
    cases = np.flatnonzero(test.truth[:, label] == positive)
    order = cases[np.argsort(test.probability[cases, label], kind="stable")]
    return [int(case) for case in (order[::-1] if falling else order)[:PER_KIND]]


def _sheet(test: SetResult, label: int, chosen: dict[str, list[int]], images, rows: np.ndarray, folder: Path) -> Figure:
    canvas = Canvas(figsize=(1.5 * PER_KIND * 2, 3.7))
    canvas.subplots_adjust(left=0, right=1, bottom=0, top=0.93, wspace=0.03, hspace=0.2)
    cells = canvas.subplots(2, PER_KIND * 2)
    for axes in cells.ravel():
        axes.set_axis_off()
    for kind, (title, cases) in enumerate(chosen.items()):
        for place, case in enumerate(cases):
            axes = cells[kind // 2, (kind % 2) * PER_KIND + place]
            axes.imshow(np.asarray(images[int(rows[case])])[::2, ::2], cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"{title}\np = {test.probability[case, label]:.3f}", fontsize=7)
    name = LABELS[label]
    return save(
        canvas,
        folder,
        f"cases_{name.lower().replace(' ', '_')}",
        f"{name}: the {PER_KIND} most confident cases of each kind.",
        kinds=["png"],
    )
