"""Make text of unknown origin safe for shared documents: escape markup, and remove the machine's folders."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: An absolute path of at least two parts, inside a longer text; URLs and `a/b` do not match.
_PATH = re.compile(r"(?<![\w:/~])(?<!(?<![a-z])\.)/(?:[^/\s,;:()'\"“”]+/)+[^/\s,;:()'\"“”]*")


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it literally: one line, no markup, no HTML, no new table cell."""
    return re.sub(r"([\\`*\[\]|~#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def without_folders(value: Any) -> Any:
    """Shorten the absolute paths in a text, or in nested lists and mappings, so that they do not show the machine.

    A path below the working folder becomes relative to it; of any other only the name is kept.
    """
    if isinstance(value, Path):
        return without_folders(str(value))
    if isinstance(value, str):
        return _short(value) if _is_path(value) else _PATH.sub(lambda found: _short(found[0]), value)
    if isinstance(value, Mapping):
        shorter: dict[Any, Any] = {}
        for key, inner in value.items():
            name = without_folders(key)
            same = sum(one == name or str(one).startswith(f"{name} (") for one in shorter)
            shorter[f"{name} ({same + 1})" if same else name] = without_folders(inner)
        return shorter
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_folders, value))
    return value


def _is_path(text: str) -> bool:
    return text.startswith("/") and "\n" not in text and len(Path(text).parts) > 2


def _short(path: str) -> str:
    cwd = Path.cwd()
    return str(Path(path).relative_to(cwd)) if Path(path).is_relative_to(cwd) else Path(path).name
