"""What stands before the sections: the banner, the summary, the facts; and the table that the command prints."""

from pathlib import Path

from chexzero.common.labels import LABELS
from chexzero.evaluation.checkpoint_choice import Choice
from chexzero.evaluation.results import Mean, SetResult, number
from chexzero.report.format import interval, unit_name
from chexzero.report.provenance import model_words
from chexzero.report.published import reported_figures
from chexzero.report.scores import MEAN_NAMES, positives


def banner(choice: Choice, drawn: bool) -> list[str]:
    """What must be read before any number."""
    if not drawn:
        return []
    return [
        "This corpus was drawn by a program. No number in this report is a clinical result.",
        f"The images are chest phantoms and the reports were composed; the model is "
        f"{model_words(choice.run)}, trained on them to show that the whole way works. CheXzero's "
        f"figures come from real radiographs.",
    ]


def summary(choice: Choice, valid: SetResult, test: SetResult, drawn: bool) -> list[str]:
    """The one sentence, and how the checkpoint was selected."""
    mean, findings = test.mean("mean_5"), test.mean("mean_13")
    paper = reported_figures()["chexzero"]["test_mean_auroc_5"]
    beside = (
        ""
        if drawn or len(mean.used) < 5
        else (f"; CheXzero's ensemble reported {paper:.3f} (difference {mean.value - paper:+.3f})")
    )
    return [
        f"On the {'drawn ' if drawn else ''}test set ({len(test)} {unit_name(test)}) the mean zero-shot AUROC is "
        f"{say(mean)} over the {'five' if len(mean.used) == 5 else f'{len(mean.used)} defined of the five'} "
        f"competition labels{beside}, and {say(findings)} over {len(findings.used)} of the 13 findings. On the "
        f"validation set ({len(valid)}) it is {say(valid.mean('mean_5'))} and {say(valid.mean('mean_13'))}.",
        choice.selected["reason"],
    ]


def say(mean: Mean) -> str:
    return "n/a" if not mean.used else f"{mean.value:.3f} (95 % interval {interval(*mean.interval)})"


def facts(choice: Choice, valid: SetResult, test: SetResult, data_dir: Path) -> dict[str, str]:
    """The few facts under the title."""
    return {
        "Model": model_words(choice.run),
        "Checkpoint": ", ".join(choice.selected.get("ensemble", [choice.selected["checkpoint"]])),
        "Data": f"{data_dir}: {len(valid)} validation, {len(test)} test cases ({unit_name(test)})",
        "Intervals": f"95 %, Newcombe's, which hold with few positive cases; those marked “as CheXzero” are the "
        f"percentiles of {len(test.samples)} resamples of the cases",
    }


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
