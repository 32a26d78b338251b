"""Assemble the evaluation's report: its sections in order, and the other files written with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from chexzero.common.files import write_json, write_text
from chexzero.common.labels import LABELS
from chexzero.common.markup import without_folders
from chexzero.evaluation.calibration import platt
from chexzero.evaluation.checkpoint_choice import Choice
from chexzero.evaluation.measure import Measured, predict
from chexzero.evaluation.named_sets import IDENTITY, NamedSet, score_choices, summarise
from chexzero.evaluation.prompt_choice import OWN, ask_sets
from chexzero.evaluation.prompts import upstream_prompts
from chexzero.evaluation.readers import Reader, read_reader
from chexzero.evaluation.results import SetResult, evaluate_set
from chexzero.evaluation.sets import read_set, units
from chexzero.evaluation.settings import EvaluationSettings
from chexzero.evaluation.trained_images import trained_images
from chexzero.report import charts, checklist, provenance, sanity, scores
from chexzero.report.beside import paper, readers
from chexzero.report.beside.baseline import baseline_section, checkpoints_in
from chexzero.report.cases import thumbnails_section
from chexzero.report.image_checks import frontal_images_lie, image_checks
from chexzero.report.named_sets import add_choices, named_set_section, overview_section, prompt_choice_section
from chexzero.report.sections import Section
from chexzero.report.summary import banner, facts, summary
from chexzero.report.write import Report, frame_csv, shareable, write_report
from chexzero.runs.evidence import Claim, training_claim


@dataclass(frozen=True)
class Others:
    """The readers and models that the run is compared with."""

    radiologists: list[Reader]
    supervised: list[Reader]
    baseline: list[Path]


def read_others(settings: EvaluationSettings, data_dir: Path) -> Others:
    """Read the comparison files, before anything is predicted, so that a wrong file fails early."""
    baseline = checkpoints_in(settings.baseline) if settings.baseline else []
    if not settings.radiologists and not settings.supervised:
        return Others([], [], baseline)
    studies = list(units(read_set(data_dir, "test", settings.pixel_range), settings.level).table["study_id"])
    return Others(
        [read_reader(path, studies, binary=True) for path in settings.radiologists],
        [read_reader(path, studies, binary=False) for path in settings.supervised],
        baseline,
    )


def write_results(
    settings: EvaluationSettings,
    choice: Choice,
    found: Measured,
    others: Others,
    reads: list[dict],
    more: Sequence[Section],
    out: Path,
    more_checks: Sequence[sanity.Check] = (),
) -> list[sanity.Check]:
    """Write the report, its figures and tables, the predictions and `metrics.json` into `out`, an empty folder.

    Returns the checks that failed.
    """
    claim = training_claim(
        choice.run,
        {one.checkpoint: one.sha256 for one in found.predictors},
        found.data_dir,
        {one.images.name: one.images_sha256 for one in found.sets},
    )
    checks = [*run_checks(choice, found, claim), *more_checks]
    alarms = sanity.alarms_of(checks)
    kept = provenance.record(choice.run, settings.flags(), found.predictors, found.sets)
    told = {check.name: check.detail for check in alarms}
    if not settings.full_paths:
        kept, told = without_folders(kept), without_folders(told)
    sections = [
        *main_sections(settings, choice, found, others, reads, checks, out / "figures"),
        *more,
        *closing_sections(settings, choice, found, claim, out / "figures"),
        checklist.write_reporting(
            checklist.Records(choice, found.build, claim, found.valid, found.test, alarms, kept),
            out,
            settings.full_paths,
        ),
    ]
    for result in (found.valid, found.test):
        write_predictions(out / f"predictions_{result.name}.csv", result)
    report = Report(
        f"Zero-shot evaluation of {choice.name}",
        summary(choice, found.valid, found.test, found.drawn, alarms, claim),
        banner(choice, found.drawn, alarms),
        facts(choice, found.valid, found.test, found.data_dir),
        sections,
    )
    report = report if settings.full_paths else shareable(report)
    write_json(
        out / "metrics.json",
        {
            "model_name": choice.name,
            "drawn": found.drawn,
            "selected": choice.selected,
            "alarms": told,
            "provenance": kept,
            "level": settings.level,
            "n_bootstrap": settings.n_bootstrap,
            "valid": found.valid.metrics(),
            "test": found.test.metrics(),
            "sections": {section.key: section.metrics for section in report.sections if section.metrics},
        },
    )
    write_report(report, out)
    return alarms


def run_checks(choice: Choice, found: Measured, claim: Claim) -> list[sanity.Check]:
    """Every check of the data and the model that this evaluation allows."""
    recorded = choice.run.recorded(choice.selected["step"]) if choice.run and len(choice.checkpoints) == 1 else {}
    training = choice.run.settings.get("cxr_filepath") if choice.run else None
    return [
        *sanity.label_checks(found.valid, found.test),
        *sanity.shared_cases(*found.sets),
        *image_checks(found.sets[0], found.sets[1], Path(training) if isinstance(training, str) else None),
        sanity.trained_elsewhere(claim),
        sanity.as_built(found.build, found.sets),
        sanity.as_recorded(recorded, found.by_image[0][:, : len(LABELS)], found.sets[0].truth),
    ]


def main_sections(
    settings: EvaluationSettings,
    choice: Choice,
    found: Measured,
    others: Others,
    reads: list[dict],
    checks: list[sanity.Check],
    figures: Path,
) -> list[Section]:
    """The sections about the 14 labels, most important first."""
    run, valid, test = choice.run, found.valid, found.test
    curves = [draw(run, figures) for draw in (charts.validation_curve, charts.training_loss) if run]
    scaled = platt(valid.truth, valid.probability, test.probability)
    sections = [
        paper.paper_section(test, found.drawn, charts.beside_paper(test, figures)),
        scores.areas_section(
            valid,
            test,
            [charts.roc(valid, test, others.radiologists, figures), charts.precision_recall(valid, test, figures)],
        ),
        provenance.selection_section(
            run, choice.selected, [curve for curve in curves if curve], reads, valid, len(found.by_image[0])
        ),
        sanity.sanity_section(checks),
    ]
    if others.baseline:
        (by_image,), _ = predict(others.baseline, found.sets[1:], upstream_prompts(), settings)
        theirs = evaluate_set("test", test.units, test.units.reduce(by_image), test.at, settings.n_bootstrap)
        sections.append(baseline_section(test, theirs, [path.name for path in others.baseline], figures))
    if others.radiologists:
        sections.append(readers.radiologist_section(test, others.radiologists, settings.n_bootstrap))
    if others.supervised:
        sections.append(readers.supervised_section(test, others.supervised))
    return [
        *sections,
        scores.operating_section(valid, test),
        scores.calibration_section(valid, test, scaled, charts.calibration(test, scaled, figures)),
        scores.prompts_section(found.prompts, valid, test, found.scores[0], found.scores[1], settings.n_bootstrap),
    ]


def closing_sections(
    settings: EvaluationSettings, choice: Choice, found: Measured, claim: Claim, figures: Path
) -> list[Section]:
    """The most confident cases (with `--thumbnails`), the overlap audit, the data and the provenance."""
    images, pixel_range = found.sets[1].images, settings.pixel_range
    cases = [thumbnails_section(found.test, images, figures, pixel_range)] if settings.thumbnails else []
    return [
        *cases,
        provenance.overlap_section(found.data_dir, claim),
        provenance.data_section(found.data_dir, found.sets, choice.run),
        provenance.provenance_section(choice.run, settings.flags(), found.predictors, found.sets),
    ]


def score_sets(
    settings: EvaluationSettings, choice: Choice, sets: Sequence[NamedSet], data_dir: Path, out: Path
) -> tuple[list[Section], list[sanity.Check]]:
    """Score the evaluation sets by name: an overview, a comparison of prompt wordings, and one section per set.

    Predictions go to `predictions_<name>.csv`. The checks say which sets the run was trained on.
    """
    if not sets:
        return [], []
    ways = ask_sets(settings, choice, sets, data_dir)
    known = trained_images(choice.run, data_dir, settings.splits)
    sections, results, checks = [], [], []
    for one, asked in zip(sets, ways, strict=True):
        scores = asked.scores[OWN]
        summaries = summarise(one, scores)
        results.append((one, summaries))
        trained = sanity.not_trained_on(one.name, len(one.table), known, known.found_in(one))
        checks += [trained, frontal_images_lie(one.name, one.images, one.table, settings.pixel_range)]
        section = named_set_section(one, scores, summaries, out / "figures")
        if one.protocol.one_of:
            add_choices(section, {way: score_choices(one, values) for way, values in asked.probability.items()})
        if trained.verdict == sanity.LOOK:
            section.text.insert(0, f"Warning: {trained.detail}; these figures do not describe unseen images.")
        sections.append(section)
        table = one.table[[name for name in IDENTITY if name in one.table]]
        predicted = pd.DataFrame(asked.probability[OWN], columns=one.findings, index=table.index)
        write_text(out / f"predictions_{one.name}.csv", frame_csv(pd.concat([table, predicted], axis=1)))
    return [overview_section(results), prompt_choice_section(ways), *sections], checks


def write_predictions(path: Path, result: SetResult) -> None:
    """`id, patient_id, study_id, view` and the 14 probabilities of each case."""
    table = result.units.table.copy()
    for i, label in enumerate(LABELS):
        table[label] = result.probability[:, i]
    write_text(path, frame_csv(table))
