"""Other readers of the same test studies, from their files: radiologists' calls, supervised models' predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from chexzero.errors import UserError
from chexzero.evaluation import SetResult, number
from chexzero.files import read_table
from chexzero.labels import COMPETITION_LABELS, LABELS
from chexzero.operating_points import Rates, bootstrap_rates, rates
from chexzero.reported import reported_figures
from chexzero.sections import Section, Table
from chexzero.statistics import auroc, mean_over_labels, paired_difference, percentile_interval, resample_counts
from chexzero.wording import interval, p_text, signed, signed_interval


@dataclass(frozen=True)
class Reader:
    """One file of another reader or model, joined to our test studies: values (N, L) for `labels`."""

    name: str
    labels: list[str]
    values: np.ndarray


def study_key(text: str) -> str:
    """`patient64741/study1` of any spelling of a CheXpert study or image; other ids stay as they are."""
    parts = text.strip().strip("/").split("/")
    for i, part in enumerate(parts[:-1]):
        if part.startswith("patient") and parts[i + 1].startswith("study"):
            return f"{part}/{parts[i + 1]}"
    return text.strip()


def read_reader(path: str | Path, studies: Sequence[str], *, binary: bool) -> Reader:
    """Read a CSV with a column `Study` and one a label (by name, in any order), one row for each of `studies`.

    `binary`: calls, each 0 or 1; else scores, any finite number. Raises `UserError` for missing, repeated or blank
    rows and for values that are not allowed. Studies of the file that are not ours are ignored.
    """
    path = Path(path)
    table = read_table(path, ["Study"], remedy="name a CSV with `Study` and one column a label")
    labels = [label for label in LABELS if label in table]
    if not labels:
        raise UserError(f"{path} has none of the labels as a column; name a CSV with `Study` and one column a label")
    keys = [study_key(str(value)) for value in table["Study"]]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{path} has more than one row for the study {twice!r}; keep one")
    table.index = pd.Index(keys)
    wanted = [study_key(study) for study in studies]
    missing = [study for study in wanted if study not in table.index]
    if missing:
        raise UserError(f"{path} has no row for {len(missing)} of our {len(wanted)} test studies (the first is "
                        f"{missing[0]!r}); name the file that belongs to this test set")
    values = np.column_stack([pd.to_numeric(table.loc[wanted, label], errors="coerce") for label in labels])
    bad = np.argwhere(~(np.isin(values, (0, 1)) if binary else np.isfinite(values)))
    if len(bad):
        i, j = bad[0]
        raise UserError(f"{path}, study {wanted[i]!r}, column {labels[j]}: {table[labels[j]][wanted[i]]!r} is not "
                        f"{'0 or 1' if binary else 'a number'} ({len(bad)} such cells); correct the file")
    return Reader(path.stem, labels, values.astype(np.float64))


def mean_rates(truth: np.ndarray, readers: Sequence[Reader], labels: Sequence[str] = COMPETITION_LABELS,
               counts: np.ndarray | None = None) -> Rates:
    """Rates of several readers, averaged over them: each (len(labels),), or (S, len(labels)) with resample counts.

    truth: (N, 14). Readers that lack one of `labels` raise `UserError`.
    """
    columns = [LABELS.index(label) for label in labels]
    each = []
    for reader in readers:
        lacking = [label for label in labels if label not in reader.labels]
        if lacking:
            raise UserError(f"the radiologists' file {reader.name} lacks the column {lacking[0]}; name a whole file")
        called = reader.values[:, [reader.labels.index(label) for label in labels]]
        each.append(rates(truth[:, columns], called, counts))
    return Rates(*(np.mean([getattr(one, name) for one in each], axis=0)
                   for name in ("f1", "mcc", "sensitivity", "specificity")))


def radiologist_section(test: SetResult, readers: Sequence[Reader], n_bootstrap: int) -> Section:
    """MCC and F1 at the thresholds chosen on validation, beside the radiologists' mean, with a paired bootstrap."""
    columns = [LABELS.index(label) for label in COMPETITION_LABELS]
    counts = resample_counts(len(test), n_bootstrap)
    theirs = mean_rates(test.truth, readers)
    drawn_theirs = mean_rates(test.truth, readers, counts=counts)
    drawn_ours = bootstrap_rates(test.truth, test.probability, test.at, n_bootstrap)
    rows, metrics = [], {}
    for name, title in (("mcc", "MCC"), ("f1", "F1")):
        ours, others = getattr(test.rates, name)[columns], getattr(theirs, name)
        a, b = getattr(drawn_ours, name)[:, columns], getattr(drawn_theirs, name)
        a, b = np.column_stack([a, a.mean(1)]), np.column_stack([b, b.mean(1)])
        low, high = percentile_interval(a)
        diff_low, diff_high, p = paired_difference(a, b)
        values = np.append(ours, ours.mean()), np.append(others, others.mean())
        for i, label in enumerate([*COMPETITION_LABELS, "Mean of the five"]):
            rows.append([title, label, number(values[0][i]), interval(low[i], high[i]), number(values[1][i]),
                         signed(values[0][i] - values[1][i]), signed_interval(diff_low[i], diff_high[i]),
                         p_text(p[i])])
        metrics[f"mean_{name}"] = {"ours": number(values[0][-1]), "radiologists": number(values[1][-1])}
        metrics[f"{name}_radiologists"] = dict(zip(COMPETITION_LABELS, map(number, others), strict=True))
    figures = reported_figures()["chexpert_test_radiologists"]
    text = [f"Ours at the threshold that maximises MCC on the validation set; theirs is the mean of {len(readers)} "
            f"readers. On the 500 studies of the CheXpert test set the three benchmark radiologists reach a mean MCC "
            f"of {figures['mean_mcc']:.3f} and a mean F1 of {figures['mean_f1']:.3f} ({figures['source']})."]
    table = Table("Ours and the radiologists on the same test studies", ["Measure", "Label", "Ours", "95 % interval",
                  "Radiologists", "Difference", "95 % interval (difference)", "p"], rows)
    return Section("radiologists", "Beside radiologists", text, [table], [], metrics)


def supervised_section(test: SetResult, models: Sequence[Reader]) -> Section:
    """AUROCs of models whose predictions for the same studies are given."""
    rows, metrics = [], {}
    for model in models:
        areas = np.full(len(LABELS), np.nan)
        columns = [LABELS.index(label) for label in model.labels]
        areas[columns] = auroc(test.truth[:, columns], model.values)
        mean, used = mean_over_labels(areas, COMPETITION_LABELS)
        rows.append([model.name, *(number(areas[LABELS.index(label)]) for label in COMPETITION_LABELS), number(mean)])
        metrics[model.name] = {"mean_5": number(mean), "labels": used}
    ours = test.mean("mean_5")
    rows.append(["this run", *(number(test.auroc[LABELS.index(label)]) for label in COMPETITION_LABELS),
                 number(ours.value)])
    table = Table("AUROC on the same test studies", ["Model", *COMPETITION_LABELS, "Mean"], rows)
    return Section("supervised", "Beside supervised models", ["Computed here from the predictions that were given."],
                   [table], [], metrics)
