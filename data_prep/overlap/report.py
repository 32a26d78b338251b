"""The audit's report: one document as JSON (everything), Markdown (no id, no picture) and HTML (with pictures)."""

import html
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from chexzero.common.files import write_json, write_text
from chexzero.common.versions import git_revision, version
from data_prep.overlap import near, near_reports, nominate, verify
from data_prep.overlap.cards import MAX_FOUND, Card, read_key, short_hash
from data_prep.overlap.checks import IMAGE_KINDS, KINDS, NAMES, Check, ImageResults
from data_prep.overlap.disguise import DISGUISES
from data_prep.roles import ROLES

NAME = "overlap_report"
WORDS = {
    "patient": ("patient", "patients"),
    "study": ("study", "studies"),
    "bytes": ("pair of equal files", "pairs of equal files"),
    "pixels": ("pair of equal images", "pairs of equal images"),
    "near": ("pair of near-equal images", "pairs of near-equal images"),
    "report": ("pair of near-equal reports", "pairs of near-equal reports"),
}


def document(
    facts: dict[str, dict],
    checks: list[Check],
    images: ImageResults,
    reasons: dict[str, str],
    left_out: dict[str, Any],
    *,
    on_overlap: str,
    finished: bool,
    drawn: bool,
    earlier: list[str],
    seed: int,
    files: dict[str, str],
) -> dict[str, Any]:
    """Return the report as a JSON-ready dictionary; `build.json` stores its `summary`."""
    leaks = [check for check in checks if check.a_role == "train"]
    between = [check for check in checks if check.a_role != "train"]
    alarmed = [list(ids) for ids, pair in zip(images.unrelated_ids, images.unrelated, strict=True) if pair.same]
    measured = {
        "planted": near.measured_recall(images.copies),
        "unrelated": near.measured_false_alarms(images.unrelated) | {"called_near_equal": alarmed},
    }
    found = {kind: sum(len(check.matches) for check in leaks if check.kind == kind) for kind in KINDS}
    found_between = {kind: sum(len(check.matches) for check in between if check.kind == kind) for kind in KINDS}
    done = _done(left_out, on_overlap, finished)
    sentence = _sentence(found, found_between, left_out, done, facts)
    dropped = left_out["images"] if on_overlap == "drop" and not finished else 0
    planted, alarms = measured["planted"]["recall"], measured["unrelated"]["false_alarms"]
    summary = {
        "status": _status(found, found_between, facts),
        "sentence": sentence,
        **{f"n_checked_{name}": facts.get(name, {}).get("images", 0) for name in NAMES if name in {*ROLES, *facts}},
        "image_pairs_compared": images.compared,
        "found": found,
        "found_valid_test": found_between,
        "found_all": sum(found.values()) + sum(found_between.values()),
        "action": on_overlap,
        "dropped": dropped,
        "dropped_patients": left_out["patients"] if dropped else 0,
        "matching_patients_images": left_out["images"],
        "recall": planted["rate"],
        "recall_lower_95": planted["lower_95"],
        "weak_at": measured["planted"]["weak_at"],
        "false_alarm_rate": alarms["rate"],
        "false_alarm_upper_95": alarms["upper_95"],
        "method": "ids from path and table, SHA-256 of files and of preprocessed images, word shingles of reports, near-equal "
        "images in two stages (visual words nominate; local features under one affine map and texture decide)",
        "report": f"{NAME}.html",
    }
    return {
        "title": "Overlap of training, validation and test",
        "code": git_revision(),
        "drawn": drawn,
        "finished": finished,
        "summary": summary,
        "earlier": earlier,
        "roles": facts,
        "checks": [_check(check) for check in sorted(checks, key=_order)],
        "done": done,
        "left_out": left_out,
        "left_out_images": [{"id": image, "reason": reason} for image, reason in reasons.items()],
        "method": method(seed),
        "limits": LIMITS,
        "measured": measured,
        "thresholds": {
            "keep_shared": nominate.KEEP_SHARED,
            "keep": nominate.KEEP,
            "min_consistent": nominate.MIN_CONSISTENT,
            "same": [list(pair) for pair in verify.SAME],
            "min_overlap": verify.MIN_OVERLAP,
            "max_stretch": verify.MAX_STRETCH,
            "near_reports": near_reports.NEAR,
            "weak": near.WEAK,
        },
        "made_by": {"opencv": cv2.__version__, "numpy": version("numpy")},
        "audited_files_sha256": files,
    }


def _order(check: Check) -> tuple[int, int, int]:
    return list(KINDS).index(check.kind), list(NAMES).index(check.a_role), list(NAMES).index(check.b_role)


def _check(check: Check) -> dict[str, Any]:
    told = ("a_id", "b_id", "key", "score")
    matches = [
        {name: value for name in told if (value := getattr(match, name)) not in ("", None)} for match in check.matches
    ]
    return {
        "kind": check.kind,
        "title": KINDS[check.kind],
        "roles": [check.a_role, check.b_role],
        "compared": [check.a, check.b],
        "found": len(matches),
        "note": check.note,
        "matches": matches,
    }


def _status(found: dict[str, int], between: dict[str, int], facts: dict[str, dict]) -> str:
    if len(facts) < 2:
        return "nothing to compare"
    return "overlap found" if sum(found.values()) + sum(between.values()) else "no overlap found"


def _sentence(
    found: dict[str, int], between: dict[str, int], left_out: dict[str, Any], done: str, facts: dict[str, dict]
) -> str:
    if len(facts) < 2:
        return "Fewer than two sets were given, so nothing was compared."

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{n:,} {WORDS[kind][n != 1]}" for kind, n in counts.items() if n)

    parts = [
        f"Training and evaluation sets share {listed(found)}. {done}"
        if left_out["images"]
        else "No training image, patient or report was found in an evaluation set."
    ]
    if listed(between):
        parts.append(
            f"Validation and test share {listed(between)}; both sets are fixed by their releases and were not changed."
        )
    return " ".join(parts)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _done(left_out: dict[str, Any], on_overlap: str, finished: bool) -> str:
    if not left_out["images"]:
        return "Nothing had to be left out of the training set."
    rest = left_out["images"] - left_out["matching"]
    which = f"{left_out['matching']:,} match, {rest:,} are of the same patients" if rest else "all of which match"
    whose = f" of {_count(left_out['patients'], 'patient')}" if left_out["patients"] else ""  # none known: images alone
    what = f"{_count(left_out['images'], 'training image')}{whose} ({which})"
    if finished:
        return (
            f"The files are finished and were not changed. Still in the training set: {what}; leave "
            f"them out of it, or build again, which drops them."
        )
    return {
        "drop": f"Dropped from the training set: {what}.",
        "keep": f"Kept in the training set because of --on_overlap keep: {what}.",
        "stop": f"The build was stopped because of --on_overlap stop; affected: {what}.",
    }[on_overlap]


def method(seed: int) -> list[str]:
    """How the audit works, with its constants."""
    return [
        "Patients and studies: ids from the image's path and from the release's table are compared, in the numbering "
        "that CheXpert and CheXpert-Plus share and in ReXGradient's own. Case, leading zeros, decimals and the prefix "
        "of a number are normalised where the numbering is known.",
        "Files and preprocessed images: equal SHA-256 of the file, and of the stored grey image.",
        "Near-equal images: every training image is compared with every evaluation image, and every validation image "
        "with every test image, in two stages.",
        f"First stage (nomination): {nominate.WORDS} local features (SIFT) of each image are quantised into visual "
        f"words. For each evaluation image, the geometry of the {nominate.KEEP_SHARED} images that share most words "
        f"with it, weighted by rarity, is checked; the best {nominate.KEEP} with at least {nominate.MIN_CONSISTENT} "
        f"words consistent with one affine map are nominated. Evaluation images are searched for unchanged, mirrored, "
        f"inverted, with local contrast enhanced, and zoomed in.",
        f"Second stage (decision): {verify.POINTS} features of each image are matched, an affine map is fitted with "
        f"RANSAC, and the texture of the aligned images (band-pass {verify.FINE_SIGMA:g} to {verify.COARSE_SIGMA:g} "
        f"pixels of 320) is correlated in tiles of {verify.TILE} pixels. Two images are called near-equal if "
        + " or ".join(
            f"at least {inliers} features{f' ({share:.0%} of those matched)' if share else ''} agree with the map and "
            f"the median tile correlation is {score:g} or more"
            for inliers, score, share in verify.SAME
        )
        + f", and at least {verify.MIN_OVERLAP:.0%} of the smaller picture is shared.",
        f"Reports: near-equal if their sets of {near_reports.WORDS}-word shingles, without numbers and masked words, "
        f"have a Jaccard index of {near_reports.NEAR:g} or more. Telling if they also share at least "
        f"{near_reports.TELLING_SHINGLES} shingles, outside normal phrases, that occur in fewer than "
        f"{near_reports.COMMON_STUDIES} training studies (or {near_reports.COMMON_SHARE:.2%} of them, whichever is "
        f"more), and at most {near_reports.MAX_STUDIES} training studies are near-equal to the report.",
        "Consequence of a match: a match of any kind is taken to mean that the evaluation patient and the training "
        "patient are the same person, so all training images of that patient are affected, not only the one that "
        "matches.",
        f"Recall: disguised copies of the evaluation images (a published list of {len(DISGUISES)} disguises, seed "
        f"{seed}) go through both stages as additional training images; a disguise with fewer than {near.WEAK:.0%} of "
        f"its copies found is named beside the recall. False alarms: the pairs of images of different patients within "
        f"one evaluation set that the first stage ranks most similar go through the second, whatever their first "
        f"score. Intervals are exact (Clopper-Pearson), 95 %.",
    ]


LIMITS = [
    "Two different exposures of one patient are not near-equal. Across releases, where ids cannot match, only a "
    "shared image or a shared report can show that two patients are the same person.",
    "Pictures with a distortion that is not affine, stretched by more than a third, or mostly hidden are not looked "
    "for. Two exposures of one patient taken moments apart are the most likely false alarm.",
    "The disguised copies are made from the preprocessed 320-pixel images; the original files are not read again.",
]


def write(
    out_dir: Path, report: dict[str, Any], found: list[Card], rejected: list[Card], texts: list[dict[str, str]]
) -> None:
    """Write the three files, each atomically; the key of the hashed ids is stored beside them."""
    write_json(out_dir / f"{NAME}.json", report)
    context = _context(report, found, rejected, texts)
    key = read_key(out_dir)
    for ending, autoescape in (("md", False), ("html", True)):
        template = _environment(autoescape, key).get_template(f"report.{ending}.j2")
        write_text(out_dir / f"{NAME}.{ending}", template.render(context))


def _environment(autoescape: bool, key: bytes) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "count": lambda n: f"{n:,}",
        "hash": lambda image_id: short_hash(image_id, key),
        "cell": _cell,
    }
    return environment


def _context(
    report: dict[str, Any], found: list[Card], rejected: list[Card], texts: list[dict[str, str]]
) -> dict[str, Any]:
    n_pairs = len(
        {(m["a_id"], m["b_id"]) for check in report["checks"] for m in check["matches"] if check["kind"] in IMAGE_KINDS}
    )
    return {
        "r": report,
        "names": NAMES,
        "kinds": KINDS,
        "found": found,
        "rejected": rejected,
        "texts": texts,
        "n_pairs": n_pairs,
        "table": _table(report["checks"]),
        "max_found": MAX_FOUND,
        "bars": _bars(report),
        "same": verify.SAME[0][1],
    }


def _table(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """Checks by kind (rows) and pair of sets (columns)."""
    columns = list(dict.fromkeys(tuple(check["roles"]) for check in checks))
    kinds = list(dict.fromkeys(check["kind"] for check in checks))
    place = {(check["kind"], tuple(check["roles"])): check for check in checks}
    return {
        "columns": [" / ".join(NAMES[role] for role in pair) for pair in columns],
        "rows": [(KINDS[kind], [place[kind, pair] for pair in columns]) for kind in kinds],
    }


def _percent(rate: dict[str, Any]) -> str:
    if rate["rate"] is None:
        return "not measured"
    interval = f"95 %: {rate['lower_95']:.1%}–{rate['upper_95']:.1%}"
    return f"{rate['rate']:.1%} ({rate['hits']:,} of {rate['of']:,}; {interval})"


def _cell(text: object) -> str:
    """A string safe inside a Markdown table."""
    return html.escape(str(text)).replace("|", "\\|").replace("\n", " ").replace("`", "'")


def _bars(report: dict[str, Any]) -> list[dict[str, float]]:
    """Shares of the planted and the unrelated scores in 24 bins from -0.2 to 1, for the figure."""
    edges = np.linspace(-0.2, 1.0, 25)
    shares = []
    for name in ("planted", "unrelated"):
        scores = np.clip(report["measured"][name]["scores"], -0.2, 1.0)
        shares.append(np.histogram(scores, edges)[0] / max(len(scores), 1))
    return [
        {"left": float(edge), "planted": float(p), "unrelated": float(u)}
        for edge, p, u in zip(edges[:-1], *shares, strict=True)
    ]
