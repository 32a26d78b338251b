"""Fixtures that several test files use."""

import chexzero.common.interrupts  # noqa: F401

import copy
import gc
import hashlib
import runpy
import signal
import sys
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest

import data_prep.overlap.features  # noqa: F401  (the command imports it when it is called)

signal.signal(signal.SIGINT, signal.default_int_handler)  # imported commands leave Ctrl-C to pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_finish() -> None:
    """Exclude objects that libraries created at import from garbage collection: they live to the end."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("this machine has no GPU")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with upstream's recorded results and real radiographs; it is not part of the repository."""
    if not (SHARED / "goldens").is_dir():
        pytest.skip("the shared reference folder is not beside this checkout")
    return SHARED


@pytest.fixture
def run_module(monkeypatch) -> Callable[..., int]:
    """Run `python -m <module> <words>` in this process, which has imported it already; return the exit code."""

    def run(module: str, *words: object) -> int:
        monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__")
        return stopped.value.code

    return run


def _architecture(clip: Any) -> Hashable:
    named = [(name, *one.shape, one.requires_grad) for name, one in clip.named_parameters()]
    return clip.image_resolution, type(clip.visual), *named


def _picture(image: Any, *options: int) -> Hashable:
    return hashlib.sha256(image.tobytes()).digest(), image.shape, *options


#: (module, function) -> key of its arguments: what tests compute again and again for the same few models and images.
REMEMBERED = {
    ("chexzero.training.pace", "flops_per_pair"): _architecture,
    ("data_prep.overlap.features", "extract"): _picture,
}


@pytest.fixture(scope="session", autouse=True)
def remembered() -> Iterator[None]:
    """Compute pure functions that take long once per input in a session; their own tests use the functions as they are."""
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), key in REMEMBERED.items():
            if module in sys.modules:
                patch.setattr(sys.modules[module], name, _once(getattr(sys.modules[module], name), key))
        yield


def _once(function: Callable, key: Callable[..., Hashable]) -> Callable:
    known: dict[Hashable, Any] = {}

    def once(*arguments: Any) -> Any:
        found = known.get(at := key(*arguments))
        if found is None:
            if len(known) > 2000:  # 100 MB of features
                known.clear()
            found = known[at] = function(*arguments)
        return copy.copy(found)

    return once


@pytest.fixture
def blank_figures(monkeypatch) -> None:
    """Write figures as empty files: rendering them takes most of an evaluation's time.

    For tests of other things; `test_run_zero_shot` checks rendered figures.
    """
    from matplotlib.figure import Figure

    paint = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **options: paint(Figure(figsize=(1, 1)), path, **options))


@pytest.fixture(scope="session")
def demo_releases(tmp_path_factory) -> Path:
    """A tiny drawn corpus: a folder with `chexpert_plus`, `chexpert` and `rexgradient`; read-only.

    36 training images (18 in each release), 30 validation images, 28 test studies.
    """
    from data_prep.demo.corpus import write_corpus

    root = tmp_path_factory.mktemp("demo_releases")
    write_corpus(root, train=36, valid=30, test=28, seed=11, workers=1)
    return root
