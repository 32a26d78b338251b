"""The forbidden imports between packages, and the size of the packages (docs/DESIGN.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
UPSTREAM = ("train", "zero_shot", "eval", "metrics", "data_process", "model", "clip", "simple_tokenizer")
PACKAGES = ("chexzero", "data_prep", "dinov3_adapter")

#: (module, module that it must not import), both as prefixes of module names
FORBIDDEN = [
    *((f"chexzero.{name}", f"chexzero.{room}") for name in UPSTREAM
      for room in ("training", "evaluation", "report", "suites", "export")),
    *(("chexzero.training", f"chexzero.{room}") for room in ("evaluation", "report", "suites")),
    *(("chexzero.evaluation", f"chexzero.{room}") for room in ("report", "training")),
    ("chexzero.report", "chexzero.training"),
    ("chexzero.models", "chexzero.clip"),
    ("dinov3_adapter", "chexzero"),
    ("data_prep", "torch"),
    ("data_prep", "dinov3_adapter"),
    *((package, command) for package in PACKAGES for command in ("run_train", "run_zero_shot")),
]  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at any level; `from a import b` gives both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return {name: imported(path) for name, path in modules()}


@pytest.mark.parametrize("who, whom", FORBIDDEN)
def test_no_arrow_runs_back_up(imports, who, whom):
    broken = {name: sorted(one for one in found if is_in(one, whom))
              for name, found in imports.items() if is_in(name, who)}  # fmt: skip
    assert not {name: found for name, found in broken.items() if found}
    assert broken, f"{who} is no module any more: correct the table"


def test_the_common_room_imports_nothing_of_ours_but_itself(imports):
    for name, found in imports.items():
        if is_in(name, "chexzero.common"):
            assert not [one for one in found for package in PACKAGES
                        if is_in(one, package) and not is_in(one, "chexzero.common")], name  # fmt: skip


def test_the_commands_reach_upstreams_modules(imports):
    """The modules that were compared with CheXzero are the ones that run."""
    for command, wanted in (
        ("run_train", {"train", "clip", "model", "simple_tokenizer"}),
        ("run_zero_shot", set(UPSTREAM)),
    ):
        reached, waiting = set(), imported(ROOT / f"{command}.py")
        while waiting:
            name = waiting.pop()
            if name in imports and name not in reached:
                reached.add(name)
                waiting |= imports[name]
        assert {f"chexzero.{name}" for name in wanted} <= reached, command


def test_no_room_is_a_heap():
    folders: dict[Path, int] = {}
    for _, path in modules():
        folders[path.parent] = folders.get(path.parent, 0) + 1
    assert folders.pop(ROOT / "chexzero") <= 14
    assert {folder: count for folder, count in folders.items() if count > 16} == {}
