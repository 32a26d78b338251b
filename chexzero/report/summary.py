"""The report's front matter (banner, summary, facts) and the table that the command prints."""

from collections.abc import Sequence
from pathlib import Path

from chexzero.common.labels import LABELS
from chexzero.evaluation.checkpoint_choice import Choice
from chexzero.evaluation.results import Mean, SetResult, number
from chexzero.report.beside.published import is_chexpert_test, reported_figures
from chexzero.report.format import interval, unit_name
from chexzero.report.provenance import model_words
from chexzero.report.sanity import Check
from chexzero.report.scores import MEAN_NAMES, positives
from chexzero.runs.evidence import Claim


def banner(choice: Choice, drawn: bool, alarms: Sequence[Check]) -> list[str]:
    """The report's banner: failed checks, then a notice if the data were drawn by a program."""
    failed = [f"{check.name}: FAILED. {check.detail}{'' if check.detail.endswith('?') else '.'}" for check in alarms]
    if failed:
        failed.insert(0, f"{_failed(alarms)}: trust no number below before they are explained.")
    if not drawn:
        return failed
    return [
        *failed,
        "This corpus was drawn by a program. No number in this report is a clinical result.",
        f"The images are chest phantoms and the reports were composed; the model is "
        f"{model_words(choice.run)}, trained on them to show that the whole pipeline runs. CheXzero's "
        f"figures come from real radiographs.",
    ]


def _failed(alarms: Sequence[Check]) -> str:
    return f"{len(alarms)} check{'s' * (len(alarms) != 1)} of the data or the model failed"


def summary(
    choice: Choice, valid: SetResult, test: SetResult, drawn: bool, alarms: Sequence[Check], claim: Claim
) -> list[str]:
    """The result in one sentence, how the checkpoint was selected, and what is known of its training data."""
    mean, findings = test.mean("mean_5"), test.mean("mean_13")
    paper = reported_figures()["chexzero"]["test_mean_auroc_5"]
    beside = (
        ""
        if drawn or len(mean.used) < 5 or not is_chexpert_test(list(test.units.table["study_id"]), test.truth)
        else (f"; CheXzero's ensemble reported {paper:.3f} (difference {mean.value - paper:+.3f})")
    )
    warning = f"{_failed(alarms)} ({', '.join(check.name for check in alarms)}). " if alarms else ""
    return [
        f"{warning}On the {'drawn ' if drawn else ''}test set ({len(test)} {unit_name(test)}) the mean zero-shot AUROC is "
        f"{say(mean)} over the {'five' if len(mean.used) == 5 else f'{len(mean.used)} defined of the five'} "
        f"competition labels{beside}, and {say(findings)} over {len(findings.used)} of the 13 findings. On the "
        f"validation set ({len(valid)}) it is {say(valid.mean('mean_5'))} and {say(valid.mean('mean_13'))}.",
        choice.selected["reason"],
        claim.text,
    ]


def say(mean: Mean) -> str:
    return "n/a" if not mean.used else f"{mean.value:.3f} (95 % interval {interval(*mean.interval)})"


def facts(choice: Choice, valid: SetResult, test: SetResult, data_dir: Path) -> dict[str, str]:
    """The facts listed under the summary."""
    return {
        "Model": model_words(choice.run),
        "Checkpoint": ", ".join(choice.selected.get("ensemble", [choice.selected["checkpoint"]])),
        "Data": f"{data_dir}: {len(valid)} validation, {len(test)} test cases ({unit_name(test)})",
        "Intervals": f"95 %, Newcombe's, which also hold with few positive cases; those marked “as CheXzero” are "
        f"percentiles of {len(test.samples)} resamples of the cases",
    }


def print_alarms(alarms: Sequence[Check]) -> None:
    """Print the checks that failed."""
    if alarms:
        print(f"\n{_failed(alarms)}:")
    for check in alarms:
        print(f"  LOOK HERE  {check.name}: {check.detail}")


def print_table(valid: SetResult, test: SetResult) -> None:
    print(f"{'':28}{'validation':>12}{'test':>8}{'95 % interval':>16}{'positive':>10}")
    for i, label in enumerate(LABELS):
        print(
            f"{label:28}{shown(valid.auroc[i]):>12}{shown(test.auroc[i]):>8}"
            f"{interval(*(end[i] for end in test.newcombe)) or 'n/a':>16}{positives(test, i):>10}"
        )
    for key, title in MEAN_NAMES.items():
        mean = test.mean(key)
        print(
            f"{title:32}{shown(valid.mean(key).value):>8}{shown(mean.value):>8}"
            f"{interval(*mean.interval) or 'n/a':>16}{f'{len(mean.used)} labels':>10}"
        )


def shown(value: float) -> str:
    return "n/a" if number(value) is None else f"{value:.3f}"
