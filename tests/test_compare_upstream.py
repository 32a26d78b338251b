"""The comparison: our results against upstream's recorded results, the verdicts, the list of differences."""

import ast
import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from small_clip import GOLDEN, recorded

from chexzero import zero_shot
from chexzero.common.errors import UserError
from tests.parity import __main__ as compare_upstream
from tests.parity import child, interface

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def signatures():
    return json.loads((GOLDEN / "upstream_signatures.json").read_text())


@pytest.fixture(scope="module")
def differences(signatures):
    return interface.compare(signatures)


def test_our_half_agrees_with_the_recorded_half(tmp_path, monkeypatch):
    monkeypatch.setattr(zero_shot, "load_clip", zero_shot.load_clip)  # restored after the checks replace it
    monkeypatch.setattr(child.sys, "path", list(child.sys.path))
    compare_upstream.inputs.write(tmp_path)
    ours, errors = child.run("ours", tmp_path)
    assert errors == {}
    theirs = recorded()
    hashes = compare_upstream.image_hashes(ours["preprocessing/cxr"])
    assert hashes.tolist() == theirs.pop("preprocessing/sha256").tolist()
    verdicts = compare_upstream.compare_results(ours, {**ours, **theirs}, {})
    assert [one for one in verdicts if not one.good] == []
    assert set(theirs) == set(compare_upstream.LIMITS) - {"preprocessing/cxr", "logits/images"}
    assert [str(ours[key]) for key in compare_upstream.DIFFERENT] == [
        here for _, here, _ in compare_upstream.DIFFERENT.values()
    ]
    upstreams = {key: np.array(there) for key, (_, _, there) in compare_upstream.DIFFERENT.items()}
    assert all(one.good for one in compare_upstream.compare_differences(ours, upstreams))
    assert not any(one.good for one in compare_upstream.compare_differences(ours, ours))


def test_a_result_that_moved_is_bad():
    theirs = recorded()
    ours = dict(theirs)
    ours["zero_shot/pair"] = theirs["zero_shot/pair"] + 2e-6
    ours["tokens/tokens"] = theirs["tokens/tokens"][:, :-1]
    ours["impressions/impression"] = np.where(np.arange(300) == 5, "x", theirs["impressions/impression"])
    ours["training/sgd"] = theirs["training/sgd"] * (1 + 2e-5)
    del ours["thresholds/f1"]
    found = compare_upstream.compare_results(ours, theirs, {"ours": {}, "upstream": {"areas": "a traceback"}})
    verdicts = {one.check: one for one in found}
    assert not verdicts["zero-shot probabilities"].good and verdicts["single-prompt scores"].good
    assert verdicts["tokens of 120 texts"].difference == "inf"
    assert verdicts["impressions of 300 reports"].difference == "1"
    assert not verdicts["six losses of SGD, relative"].good and verdicts["six losses of AdamW, relative"].good
    assert verdicts["AUROC of 14 labels"].difference == "could not run (upstream)"
    assert verdicts["thresholds of best F1"].difference == "missing" and verdicts["thresholds of best MCC"].good


def test_sizes_of_differences():
    difference = compare_upstream.difference
    assert difference(np.array([1.0, np.nan]), np.array([1.5, np.nan])) == 0.5
    assert difference(np.array([1.0, np.nan]), np.array([1.5, 2.0])) == float("inf")
    assert difference(np.array([2.0]), np.array([4.0]), relative=True) == 0.5
    assert difference(np.array(["a", "b"]), np.array(["a", "c"])) == 1


def test_every_function_of_the_interface_is_kept_or_explained(differences):
    assert interface.unexplained(differences) == []
    status = {(one.file, one.name): one.status for one in differences}
    for file, names in KEPT.items():
        for name in names.split():
            assert status[file, name] in ("kept", "changed"), (file, name)


#: Functions that CheXzero's users call; "changed" only means further optional arguments.
KEPT = {
    "run_train.py": "parse_args model_pipeline make train train_batch train_log save",
    "train.py": "CXRDataset load_data load_clip preprocess_text make train_main",
    "zero_shot.py": "CXRTestDataset load_clip zeroshot_classifier predict run_single_prediction process_alt_labels "
    "run_softmax_eval run_experiment make_true_labels make ensemble_models run_zero_shot "
    "run_cxr_zero_shot",
    "eval.py": "compute_mean sigmoid plot_roc choose_operating_point plot_pr evaluate compute_cis bootstrap",
    "metrics.py": "f1_mcc_bootstrap get_best_alt_labels y_true_csv_to_np get_best_p_vals compute_f1 compute_mcc",
    "data_process.py": "get_cxr_paths_list preprocess img_to_hdf5 get_cxr_path_csv write_report_csv",
    "model.py": "CLIP CLIP.forward CLIP.encode_image CLIP.encode_text build_model",
    "clip.py": "available_models load tokenize",
    "simple_tokenizer.py": "SimpleTokenizer SimpleTokenizer.encode SimpleTokenizer.decode",
}


def test_changed_signatures_only_add_optional_arguments(signatures, differences):
    for one in differences:
        if one.status == "changed":
            theirs = signatures[one.file][one.name]
            module = importlib.import_module(interface.MODULES[one.file])
            ours = interface.our_signature(module, one.name)
            assert interface._same(theirs, ours[: len(theirs)]), one
            assert all(len(argument) == 2 for argument in ours[len(theirs) :]), one


def test_the_document_is_up_to_date(differences):
    written = (ROOT / "docs" / "UPSTREAM.md").read_text(encoding="utf-8")
    assert written == interface.markdown(differences), "write it again: see its second line"


def test_reasons_name_functions_that_exist(signatures):
    stale = [key for key in interface.REASONS if key[1] not in signatures[key[0]]]
    assert stale == []


def test_a_change_without_a_reason_is_found(signatures):
    changed = json.loads(json.dumps(signatures))
    changed["eval.py"]["new_curve"] = [["x"]]
    changed["eval.py"]["sigmoid"] = [["y"]]
    found = interface.unexplained(interface.compare(changed))
    assert [(one.name, one.status) for one in found] == [("sigmoid", "changed"), ("new_curve", "left out")]


def test_signatures_are_read_without_running_the_file():
    code = (
        "raise SystemExit\ndef f(a, b=2, c=print): pass\nclass CLIP:\n def __init__(self, d, e=None): pass\n"
        " def forward(self, x): pass\ndef _hidden(): pass\n"
    )
    found = dict(interface._definitions(ast.parse(code).body))
    assert found == {
        "f": [["a"], ["b", 2], ["c", {"code": "print"}]],
        "CLIP": [["d"], ["e", None]],
        "CLIP.forward": [["x"]],
    }
    assert interface.text(found["f"]) == "(a, b=2, c=print)"


def test_a_folder_that_is_no_checkout(tmp_path):
    with pytest.raises(UserError, match="lacks run_train.py, .*name the folder of a CheXzero checkout"):
        compare_upstream.main([str(tmp_path)])


def test_code_that_cannot_be_run_is_named(tmp_path):
    for file in interface.MODULES:
        (tmp_path / file).write_text("import a_package_nobody_has\nassert False, 'broken'\n")
    (tmp_path / "inputs").mkdir()
    with pytest.raises(UserError, match="upstream's code in .* cannot be run: AssertionError: broken"):
        compare_upstream._run_child("upstream", tmp_path / "inputs", tmp_path)


@pytest.mark.long
def test_against_a_checkout(capsys):
    """Run with CHEXZERO_CHECKOUT=<folder> make test-long."""
    if "CHEXZERO_CHECKOUT" not in os.environ:
        pytest.skip("set CHEXZERO_CHECKOUT to a folder of upstream's repository")
    assert compare_upstream.main([os.environ["CHEXZERO_CHECKOUT"]]) == 0
    assert "0 bad" in capsys.readouterr().out
