"""The recorded code revision: this project's commit or None, never another project's."""

import errno
import subprocess

import pytest

from chexzero.common import versions


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A project with one commit that stands for ours; in it `installed`, a folder for packages."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "installed").mkdir()
    (tmp_path / "code.py").write_text("a = 1\n")
    for words in (["init", "-q"], ["add", "code.py"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    return tmp_path


def test_a_checkout_is_named_with_its_changes(checkout):
    commit = versions.git_revision()
    assert commit is not None and len(commit) == 40
    (checkout / "code.py").write_text("a = 2\n")
    assert versions.git_revision() == f"{commit}+changes"


def test_a_package_inside_another_project_has_no_commit(checkout, monkeypatch):
    monkeypatch.setattr(versions, "ROOT", checkout / "installed")
    assert versions.git_revision() is None


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file", "git"), subprocess.TimeoutExpired("git", 60), None]
)
def test_a_git_that_fails_is_said(checkout, monkeypatch, caplog, error):
    def fail(*_, **__):
        raise error or subprocess.CalledProcessError(128, "git", stderr="fatal: detected dubious\nownership")

    monkeypatch.setattr(subprocess, "run", fail)
    assert versions.git_revision() is None
    assert "is not recorded" in caplog.text and ("dubious ownership" in caplog.text) == (error is None)


def test_a_machine_that_starts_no_process_is_no_missing_checkout(checkout, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(OSError, match="Too many"):
        versions.git_revision()
