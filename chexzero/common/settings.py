"""Settings from a YAML file and from flags: one parser for both, and flags win."""

import argparse
from collections.abc import Sequence

import shtab
import yaml

from chexzero.common.errors import EXIT_CODES, UserError
from chexzero.common.files import require_file

PATHS = {"FILE", "DIR", "FOLDER"}


def parse_with_config(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse `argv`; with `--config FILE` the file's keys (flag names without dashes) become the defaults.

    The file may be a run's `config.json`: its settings are taken.

    Values pass through the same types and choices as on the command line. An unknown key, a file that is
    not a mapping, or a value the flag would refuse raises `UserError`.
    """
    group = parser.add_argument_group("settings file and shell completion")
    group.add_argument(
        "--config", metavar="FILE", help="YAML file with flags as keys, or a run's config.json; flags given here win"
    )
    shtab.add_argument_to(
        group, "--print-completion", parent=parser, help="print a completion script for a shell, and leave"
    )
    complete_paths(parser)
    parser.usage, parser.epilog = "%(prog)s [flags]", EXIT_CODES
    known, _ = parser.parse_known_args(argv)
    if known.config:
        parser.set_defaults(**_read_config(parser, known.config))
    return parser.parse_args(argv)


def complete_paths(parser: argparse.ArgumentParser) -> None:
    """Let shell completion offer paths for the flags whose value is called FILE, DIR or FOLDER in the help."""
    for action in parser._actions:
        if PATHS & set(str(action.metavar).split("|")):
            action.complete = shtab.FILE  # folders too


def _read_config(parser: argparse.ArgumentParser, path: str) -> dict:
    require_file(path, "name a YAML file with --config")
    with open(path, encoding="utf-8") as handle:
        try:
            values = yaml.safe_load(handle) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one `flag: value` a line; correct it")
    if isinstance(values.get("settings"), dict):  # a run's config.json; how that run was started is not repeated
        values = {
            key: value for key, value in values["settings"].items() if key not in ("config", "resume", "overwrite")
        }
    actions = {action.dest: action for action in parser._actions}
    unknown = sorted(str(key) for key in values if key not in actions or key in ("config", "help"))
    if unknown:
        raise UserError(f"{path} has keys that are no flags ({', '.join(unknown)}); see --help")
    return {key: _convert(parser, actions[key], value, path) for key, value in values.items()}


def _convert(parser: argparse.ArgumentParser, action: argparse.Action, value: object, path: str) -> object:
    if value is None:
        return None
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{path}: {action.dest} must be true or false; correct it")
        return value
    many = action.nargs in ("+", "*") or isinstance(action.nargs, int)
    words = value if many and isinstance(value, list) else [value]
    try:
        converted = [parser._get_value(action, word if isinstance(word, str) else str(word)) for word in words]
        for item in converted:
            parser._check_value(action, item)
    except argparse.ArgumentError as error:
        raise UserError(f"{path}: {error}") from error
    return converted if many else converted[0]
