"""The versions of this code and of the packages it runs on, for records."""

import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ["torch", "open_clip_torch", "timm", "transformers", "numpy", "pandas", "h5py", "scikit-learn"]


def git_revision() -> str | None:
    """The commit of this code, with `+changes` where tracked files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
