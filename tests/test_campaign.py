"""A short sample of the campaign (`make campaign`), and a check that its fault injector works."""

import errno
import os

import pytest

from tests.campaign.__main__ import Trial, campaign, read, table
from tests.campaign.faults import Fault, Injector


@pytest.mark.long
def test_a_sample_of_kills_signals_and_faults(tmp_path):
    """Nothing differs, nothing is mixed, no traceback; and every disturbance occurred."""
    wanted = {"kill": {"demo": 3, "train": 3}, "fault": {"demo": 2, "train": 2}, "signal": {"train": 2}}
    campaign(tmp_path, wanted, seed=3, seconds=300)
    done = read(tmp_path / "trials.jsonl")
    assert {one["outcome"] for one in done} == {"sound", "equal"}, table(done)
    counts = {
        (kind, job): sum(one["outcome"] == "sound" and (one["kind"], one["job"]) == (kind, job) for one in done)
        for kind, jobs in wanted.items()
        for job in jobs
    }
    assert all(counts[kind, job] >= number for kind, jobs in wanted.items() for job, number in jobs.items())
    assert Trial("kill", "demo", 1, 3, tmp_path).operations > 20


@pytest.mark.parametrize("at, fails", [(1, "open"), (2, "write"), (3, "rename"), (4, None)])
def test_the_injector_fails_the_nth_operation(tmp_path, at, fails):
    """In a separate process, as it replaces `open`."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            Injector(tmp_path, Fault(at, number=errno.ENOSPC)).install()
            step = "open"
            try:
                with open(tmp_path / "file", "wb", buffering=0) as handle:
                    step = "write"
                    handle.write(b"1234")
                step = "rename"
                os.replace(tmp_path / "file", tmp_path / "other")
                step = None
            except OSError as error:
                assert error.errno == errno.ENOSPC
            size = (tmp_path / "file").stat().st_size if (tmp_path / "file").exists() else None
            code = 0 if step == fails and size == {"open": None, "write": 2, "rename": 4, None: None}[fails] else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
