"""`data_prep download` against a small drawn Open-i served on loopback in NLM's layout, and the build that follows."""

import argparse
import http.server
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_datasets import openi
from release_corpus import QUICK_AUDIT

from chexzero.common.errors import UserError
from data_prep import download as download_module
from data_prep.__main__ import main

ROOT = Path(__file__).parents[1]


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """A server that supports range requests, as NLM's does, and can break off in the middle."""

    asked: list = []
    break_off = False

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        RangeHandler.asked.append((path.name, wanted))
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if RangeHandler.break_off and path.name == "NLMCXR_png.tgz":
            RangeHandler.break_off = False
            self.wfile.write(data[start : len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def log_message(self, *args):
        pass


@contextmanager
def nlm_of(root: Path, n: int) -> Iterator[tuple[Path, str]]:
    """The folder with the two archives of n drawn reports, and the address that serves them."""
    openi(root / "drawn", np.random.default_rng(4), n=n)
    served = root / "collections"
    served.mkdir()
    for name, folder, inside in (
        ("NLMCXR_reports.tgz", "ecgen-radiology", "NLMCXR_reports/ecgen-radiology"),
        ("NLMCXR_png.tgz", "NLMCXR_png", "."),
    ):
        with tarfile.open(served / name, "w:gz") as tar:
            tar.add(root / "drawn" / folder, inside)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@pytest.fixture(scope="module")
def nlm(tmp_path_factory):
    with nlm_of(tmp_path_factory.mktemp("nlm"), 80) as served:
        yield served


def download(out, *flags):
    main(["download", "openi", "--out", str(out), *flags])


def test_it_asks_before_gigabytes_resumes_and_checks_counts(nlm, tmp_path, capsys):
    _, address = nlm
    out = tmp_path / "openi"
    with pytest.raises(UserError, match=r"fetch NLMCXR_png.tgz, 1.4 GB, from .*\? Say --yes"):
        download(out, "--from", address)
    RangeHandler.break_off = True
    with pytest.raises(UserError, match="NLMCXR_png.tgz cannot be fetched .* resumes the download"):
        download(out, "--from", address, "--yes")
    with pytest.raises(UserError, match="has 80 .xml files where the dataset has 3,955; .*--any_count"):
        download(out, "--from", address, "--yes")
    rest = [wanted for name, wanted in RangeHandler.asked if name == "NLMCXR_png.tgz"]
    assert rest[0] is None and re.fullmatch(r"bytes=[1-9]\d*-", rest[1]), "the rest was asked for"
    asked = len(RangeHandler.asked)
    download(out, "--from", address, "--any_count")
    assert "80 .xml, 128 .png" in capsys.readouterr().out and len(RangeHandler.asked) == asked, "nothing anew"


def test_what_is_large_enough_is_asked_for(tmp_path):
    allow = partial(download_module._allow, place="here", args=argparse.Namespace(yes=False))
    archive = download_module.Archive("a.tgz", download_module.ASK_FROM, "a", ".png", 1)
    allow(replace(archive, size=archive.size - 1))
    with pytest.raises(UserError, match="fetch a.tgz"):
        allow(archive)


@pytest.mark.parametrize("what", ["archives", "unpacked"])
def test_files_that_are_there_are_taken(what, nlm, tmp_path, capsys):
    served, _ = nlm
    folder = served if what == "archives" else served.parent / "drawn"
    download(tmp_path / "openi", "--from", str(folder), "--any_count")
    assert "80 .xml, 128 .png" in capsys.readouterr().out


def test_a_folder_without_the_files_and_a_damaged_archive(nlm, tmp_path):
    with pytest.raises(UserError, match="neither NLMCXR_reports.tgz nor ecgen-radiology/"):
        download(tmp_path / "out", "--from", str(tmp_path))
    served, _ = nlm
    (tmp_path / "NLMCXR_reports.tgz").write_bytes((served / "NLMCXR_reports.tgz").read_bytes()[:-200])
    with pytest.raises(UserError, match="NLMCXR_reports.tgz is damaged or cut short"):
        download(tmp_path / "out", "--from", str(tmp_path))


def test_the_sets_that_make_real_builds(nlm, tmp_path):
    served, _ = nlm
    download(tmp_path / "openi", "--from", str(served), "--any_count")
    flags = ["--openi", str(tmp_path / "openi"), "--roles", "openi", "--out", str(tmp_path / "data")]
    main(["build", *flags, "--test_views", "all", "--workers", "1", *QUICK_AUDIT])
    tables = [
        pd.read_csv(tmp_path / "data" / name) for name in ("impressions.csv", "valid_labels.csv", "test_labels.csv")
    ]
    patients = [set(table["patient_id"]) for table in tables]
    assert all(patients) and not patients[0] & patients[1] and not (patients[0] | patients[1]) & patients[2]
    assert tables[1].iloc[:, 4:].isin([0, 1]).all(axis=None)
    record = json.loads((tmp_path / "data/build.json").read_text())
    assert record["inputs"]["openi_reports"]["sha256"]


@pytest.mark.long
def test_make_real_ends_in_a_report(tmp_path):
    """Run the whole target as a user would, from the served archives to the report, then again with nothing to do."""
    with nlm_of(tmp_path / "nlm", 300) as (_, address):
        make_real(tmp_path, address)


def make_real(tmp_path: Path, address: str) -> None:
    command = [
        *("make", "-o", ".venv/.ready", f"PY={sys.executable}", f"REAL={tmp_path / 'real'}", "YES=--yes", "real"),
        f"FROM=--from {address} --any_count",
        "BUILD=--audit_copies 5 --audit_unrelated 5 --workers 1",
        "TRAIN=--max_steps 4 --val_interval 2 --batch_size 8 --num_workers 0",
        "EVALUATE=--n_bootstrap 20",
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "CUDA_VISIBLE_DEVICES": ""}
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        report = tmp_path / "real/results/real/report.html"
        assert done.stdout.splitlines()[-1] == f"The report: {report}" and report.is_file()
    assert "no weights can be downloaded, so the small model of the demo is trained" in done.stdout
    assert "already holds this build" in done.stdout
    metrics = pd.read_csv(tmp_path / "real/checkpoints/real/metrics.csv")
    assert metrics["step"].tolist() == [0, 2, 4]
    found = json.loads(report.with_name("metrics.json").read_text())
    assert found["drawn"] is False and found["selected"]["step"] in (0, 2, 4)
