"""Fixtures that several test files use."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with upstream's recorded results and real radiographs; it is not part of the repository."""
    if not (SHARED / "goldens").is_dir():
        pytest.skip("the shared reference folder is not beside this checkout")
    return SHARED
