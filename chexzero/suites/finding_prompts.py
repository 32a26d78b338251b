"""Prompts for findings: a YAML file of names, synonyms and templates, and the probabilities they give."""

from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from chexzero.common.errors import UserError
from chexzero.suites.context import EvaluationContext
from chexzero.suites.tables import read_description

PROMPTS = Path(__file__).with_name("cxr_lt.yaml")
KEYS = ("templates", "aliases", "task2", "unseen", "critical", "findings")


def read_prompts(path: str | Path = PROMPTS) -> dict[str, Any]:
    """Read a prompt file. A mistake (a missing key, a finding without phrases, a template without `{}`, a group that
    names an unknown finding) raises `UserError`."""
    prompts = read_description(path, KEYS)
    findings = prompts["findings"]
    if not isinstance(findings, dict) or not findings:
        raise UserError(f"{path}: findings must map each name to its phrases; correct it")
    for name, entry in findings.items():
        unknown = set(entry) - {"phrases", "negative"} if isinstance(entry, dict) else {"no mapping"}
        lists = [entry.get("phrases"), entry.get("negative", ["-"])] if isinstance(entry, dict) else []
        if not isinstance(name, str) or unknown or not all(_is_texts(texts) for texts in lists):
            raise UserError(
                f"{path}: the finding {name} must be `phrases: [text, ...]`, optionally with "
                f"`negative: [text, ...]`; correct it"
            )
    for sign in ("positive", "negative"):
        templates = prompts["templates"].get(sign) if isinstance(prompts["templates"], dict) else None
        if (
            templates is None
            or not _is_texts(templates)
            or any(_fields(template) != [("", "", None)] for template in templates)
        ):
            raise UserError(f"{path}: templates.{sign} must be a list of texts with one {{}} each; correct it")
    for group in ("task2", "unseen", "critical"):
        if not isinstance(prompts[group] or [], list):
            raise UserError(f"{path}: {group} must be a list of findings; correct it")
        strange = [name for name in prompts[group] or [] if str(name) not in findings]
        if strange:
            raise UserError(f"{path}: {group} names {strange[0]!r}, which is not among the findings; correct it")
    if not isinstance(prompts["aliases"] or {}, dict):
        raise UserError(f"{path}: aliases must map other spellings to findings; correct it")
    astray = [f"{old}: {new}" for old, new in (prompts["aliases"] or {}).items() if str(new) not in findings]
    if astray:
        raise UserError(f"{path}: the alias {astray[0]!r} leads to no finding; correct it")
    return prompts


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)


def _fields(template: str) -> list[tuple[str, str | None, str | None]]:
    """Name, format and conversion of each `{}` of a template; empty if its braces do not match."""
    try:
        return [(field, form, as_) for _, field, form, as_ in Formatter().parse(template) if field is not None]
    except ValueError:
        return []


def spelled(name: str, prompts: dict[str, Any]) -> str:
    """The finding that a column names: aliases resolved, upper and lower case ignored if nothing matches exactly."""
    known = {**{finding: finding for finding in prompts["findings"]}, **(prompts["aliases"] or {})}
    return known.get(name) or {other.lower(): finding for other, finding in known.items()}.get(name.lower(), name)


def canonical(columns: list[str], prompts: dict[str, Any], path: str | Path) -> list[str]:
    """The findings that `columns` name, aliases resolved; `UserError` for one the prompt file does not know."""
    names = [spelled(column, prompts) for column in columns]
    unknown = [column for column, name in zip(columns, names, strict=True) if name not in prompts["findings"]]
    if unknown:
        raise UserError(
            f"{path}: the column {unknown[0]!r} is no finding of the prompt file ({len(unknown)} such "
            f"columns); remove it, or give a prompt file that has it with --cxr_lt_prompts"
        )
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise UserError(f"{path} has two columns for {double[0]!r}; remove one of them")
    return names


def predict(
    context: EvaluationContext, features: np.ndarray, findings: list[str], prompts: dict[str, Any]
) -> np.ndarray:
    """Probabilities (N, L) of the findings: exp(p) / (exp(p) + exp(n)) of the cosines with averaged prompts."""

    def texts(name: str, sign: str) -> list[str]:
        entry = prompts["findings"][name]
        if sign == "negative" and "negative" in entry:
            return entry["negative"]
        return [form.format(phrase) for form in prompts["templates"][sign] for phrase in entry["phrases"]]

    return context.probabilities(features, [(texts(name, "positive"), texts(name, "negative")) for name in findings])
