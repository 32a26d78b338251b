"""`python -m chexzero.compare` through the command: two runs, the test set and evaluation sets by name."""

import json
import shutil

import numpy as np
import pytest
from evaluation_run import write_run
from test_named_sets import write_set

from chexzero.common.errors import UserError
from chexzero.common.files import sha256_of
from chexzero.compare.__main__ import main
from chexzero.evaluation.named_sets import mean_difference, read_named_set, score_findings


def test_two_runs_on_three_sets_through_the_command(tmp_path, run_module, capsys):
    data, run = write_run(tmp_path)
    other = tmp_path / "checkpoints" / "untrained"
    shutil.copytree(run, other)
    shutil.copy(run / "checkpoint_0.pt", other / "checkpoint_20.pt")
    write_set(data)
    shutil.copy(data / "little.h5", data / "padchest.h5")
    shutil.copy(data / "little_labels.csv", data / "padchest_labels.csv")
    words = [run, other, "--out", tmp_path / "results", "--device", "cpu", "--data", data]
    assert run_module("chexzero.compare", *words, "--sets", "little", "padchest") == 0
    folder = tmp_path / "results" / "comparison"
    found = json.loads((folder / "metrics.json").read_text())
    assert found["models"]["small"]["means"]["mean_13"] > found["models"]["untrained"]["means"]["mean_13"] + 0.2
    apart = found["sets"]["little"]
    values = [apart[name]["mean_auroc"] for name in ("small", "untrained")]
    assert apart["untrained"]["difference"] == pytest.approx(values[1] - values[0], abs=2e-6)
    assert apart["untrained"]["p"] <= apart["untrained"]["p_holm"]
    page = (folder / "report.html").read_text()
    assert "RadZero-224 0.879" in page and "untrained" in page  # the rarest 20 have a published best mean
    assert (folder / "figures/sets.png").is_file() and (folder / "figures/sets.pdf").is_file()
    capsys.readouterr()
    assert run_module("chexzero.compare", *words, "--sets", "nowhere") == 2
    said = capsys.readouterr().err
    assert "evaluation-set nowhere" in said and len(said.splitlines()) == 1


def test_a_run_that_was_moved_is_not_compared_on_other_data(tmp_path, caplog):
    """A run whose recorded `data/` now has another validation set is refused, unless --data names the folder."""
    data, run = write_run(tmp_path)
    other = tmp_path / "checkpoints" / "moved"
    shutil.copytree(run, other)
    files = {str(data / "valid.h5"): {"sha256": sha256_of(data / "valid.h5")}}
    for folder, recorded in ((run, files), (other, {name: {"sha256": "0" * 64} for name in files})):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"data": {"files": recorded}}))
    words = ["--out", str(tmp_path / "results"), "--device", "cpu"]
    for runs in ((run, other), (other, run)):
        with pytest.raises(UserError, match=f"{other} was validated on .* with --data") as error:
            main([*map(str, runs), *words])
        assert "\n" not in str(error.value)
    assert not (tmp_path / "results" / "comparison").exists()
    main([str(run), str(other), *words, "--data", str(data)])
    assert f"is not the file that {other} was validated on" in caplog.text and f"that {run} was" not in caplog.text


def test_differences_on_a_set_agree_with_resampling(tmp_path):
    write_set(tmp_path, n=80)
    data = read_named_set(tmp_path, "little")
    random = np.random.default_rng(2)
    scores = [np.nan_to_num(data.truth) * gain + random.normal(size=data.truth.shape) for gain in (1.5, 0.5)]
    one, two = (score_findings(data.truth, values) for values in scores)
    value, lower, upper, p = mean_difference(one, two, range(4))
    assert value == pytest.approx((one.auroc - two.auroc).mean()) and lower < value < upper and 0 < p < 0.05
    drawn = []
    for seed in range(300):
        rows = np.random.default_rng(seed).integers(0, 80, 80)
        areas = []
        for values in scores:
            known = [np.isfinite(data.truth[rows, j]) for j in range(4)]
            truth = [data.truth[rows, j][k] for j, k in enumerate(known)]
            drawn_scores = [values[rows, j][k] for j, k in enumerate(known)]
            pairs = [np.greater.outer(s[t == 1], s[t == 0]) for t, s in zip(truth, drawn_scores, strict=True)]
            areas.append(np.mean([each.mean() for each in pairs]))  # no ties: the scores are continuous
        drawn.append(areas[0] - areas[1])
    assert (upper - lower) / (2 * 1.96) == pytest.approx(np.std(drawn), rel=0.25)
