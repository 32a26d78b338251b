"""The versions of this code and of the packages it uses, for records."""

import logging
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger(__name__)

PACKAGES = ["torch", "open_clip_torch", "timm", "transformers", "numpy", "pandas", "h5py", "scikit-learn"]


def git_revision() -> str | None:
    """The commit of this code, with `+changes` where tracked files differ from it; None outside a checkout.

    Also None, with a warning, if git is missing or fails. Raises `OSError` if no process can be started.
    """
    if not (ROOT / ".git").exists():  # an installed package; git would name the commit of an enclosing project
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (FileNotFoundError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        log.warning(
            "the revision of the code is not recorded, because git fails: %s", " ".join(str(said).split())[:200]
        )
        return None


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
