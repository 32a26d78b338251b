"""Settings: the fields of a frozen dataclass are the flags of a command, and the keys of its YAML file."""

import argparse
import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import shtab

from chexzero.common.errors import EXIT_CODES, UserError
from chexzero.common.files import read_yaml

PATHS = {"FILE", "DIR", "FOLDER"}
#: Keys of a run's config.json that --config does not take over: they say how that run was started.
NOT_REPEATED = ("config", "print_completion", "resume", "overwrite")
Config = TypeVar("Config")


def setting(
    default: Any,
    help: str,  # noqa: A002 (argparse's word)
    *,
    group: str,
    metavar: str | None = None,
    choices: Collection[str] | None = None,
    parse: Callable[[str], Any] | None = None,
    least: float | None = None,
    most: float | None = None,
    free: bool = False,
) -> Any:
    """A field of a configuration that is also the flag `--<name>`.

    Its type is the field's annotation, or that of `parse(word)`; a bool is a flag without a value (with `--no-<name>`
    if the default is True). least, most: the smallest and largest value allowed. free: whether a resumed run may have
    another value.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "group": group,
            "metavar": metavar,
            "choices": choices,
            "parse": parse,
            "least": least,
            "most": most,
            "free": free,
        },
    )


def add_settings(parser: argparse.ArgumentParser, config: type) -> None:
    """Add a flag for every field of `config` that `setting` made, in groups, in the fields' order."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    hints = typing.get_type_hints(config)
    for one in dataclasses.fields(config):
        about = one.metadata
        group = groups.get(about["group"]) or parser.add_argument_group(about["group"])
        groups[about["group"]] = group
        shown = "" if one.default in (None, False) or "default:" in about["help"] else " (default: %(default)s)"
        options: dict[str, Any] = {"default": one.default, "help": about["help"] + shown}
        if hints[one.name] is bool:
            options["action"] = argparse.BooleanOptionalAction if one.default else "store_true"
        else:
            options |= {
                "type": about["parse"] or _value_type(hints[one.name]),
                "choices": about["choices"],
                "metavar": about["metavar"],
            }
        group.add_argument(f"--{one.name}", **options)


def _value_type(hint: Any) -> type:
    """`int` for `int | None`."""
    if isinstance(hint, types.UnionType):
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
    return hint


def from_namespace(config: type[Config], args: argparse.Namespace) -> Config:
    """Build the configuration from the parsed flags; a value outside its bounds raises `UserError`."""
    fields = dataclasses.fields(config)  # type: ignore[arg-type]
    for one in fields:
        value = getattr(args, one.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{one.name} {value} is not a finite number; choose another value")
        least, most = one.metadata["least"], one.metadata["most"]
        if least is not None and value is not None and not value >= least:
            raise UserError(f"--{one.name} {value} must be at least {least}; choose another value")
        if most is not None and value is not None and not value <= most:
            raise UserError(f"--{one.name} {value} must be at most {most}; choose another value")
    return config(**{one.name: getattr(args, one.name) for one in fields})


def parse_with_config(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse `argv`; with `--config FILE` the file's keys (flag names without dashes) become the defaults.

    The file may be a run's `config.json`, whose settings are used. Values pass through the same types and choices as
    on the command line. An unknown key, a file that is not a mapping, or a value the flag would refuse raises
    `UserError`.
    """
    group = parser.add_argument_group("settings file and shell completion")
    group.add_argument(
        "--config", metavar="FILE", help="YAML file with flags as keys, or a run's config.json; flags given here win"
    )
    shtab.add_argument_to(
        group, "--print-completion", parent=parser, help="print a completion script for a shell, and exit"
    )
    complete_paths(parser)
    parser.usage, parser.epilog = "%(prog)s [flags]", EXIT_CODES
    known, _ = parser.parse_known_args(argv)
    if known.config:
        parser.set_defaults(**_read_config(parser, known.config))
    return _with_home(parser, parser.parse_args(argv))


def _with_home(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """Expand a leading `~` in paths: a shell does not expand the one in `--out=~/x`."""

    def expanded(value: Any) -> Any:
        if isinstance(value, list):
            return [expanded(one) for one in value]
        return type(value)(os.path.expanduser(value)) if isinstance(value, str | Path) else value

    for action in parser._actions:
        if PATHS & set(str(action.metavar).split("|")) and hasattr(args, action.dest):
            setattr(args, action.dest, expanded(getattr(args, action.dest)))
    return args


def complete_paths(parser: argparse.ArgumentParser) -> None:
    """Let shell completion offer paths for the flags whose value is called FILE, DIR or FOLDER in the help."""
    for action in parser._actions:
        if PATHS & set(str(action.metavar).split("|")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # what shtab reads; folders too


def _read_config(parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    values = read_yaml(path, "correct it, or name another with --config") or {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one `flag: value` per line; correct it")
    if isinstance(values.get("settings"), dict):  # a run's config.json
        values = {key: value for key, value in values["settings"].items() if key not in NOT_REPEATED}
    known = vars(parser.parse_args([]))
    unknown = sorted(str(key) for key in values if key not in known or key == "config")
    if unknown:
        raise UserError(f"{path} has keys that are not flags ({', '.join(unknown)}); see --help")
    return {key: _checked(parser, key, value, known[key], path) for key, value in values.items()}


def _checked(parser: argparse.ArgumentParser, key: str, value: Any, default: Any, path: str) -> Any:
    """Parse a value of the file as the flag `key` would."""
    if isinstance(default, bool) != isinstance(value, bool) and value is not None:
        raise UserError(f"{path}: {key} must {'' if isinstance(default, bool) else 'not '}be true or false; correct it")
    if value is None and default is not None:
        raise UserError(f"{path}: {key} has no value; give it one, or remove the line")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: {key} is {value}, not a finite number; correct it")
    if isinstance(value, dict):
        raise UserError(f"{path}: {key} must be one value, not `name: value` lines; correct it")
    if value is None or isinstance(value, bool):
        return value
    words = [f"--{key}", *map(str, value)] if isinstance(value, list) else [f"--{key}={value}"]
    parser.exit_on_error = False
    try:
        return getattr(parser.parse_args(words), key)
    except argparse.ArgumentError as error:
        raise UserError(f"{path}: {error}; correct it") from error
    finally:
        parser.exit_on_error = True
