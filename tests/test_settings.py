"""Flags from a settings file and from the command line, in one parser."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

import run_train
from chexzero.common.errors import UserError
from chexzero.common.settings import parse_with_config
from chexzero.evaluation.settings import ensemble_size
from data_prep.__main__ import main as data_prep

ROOT = Path(__file__).resolve().parents[1]


def parse(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--wandb", action="store_true")
    parser.add_argument("--suite", nargs="+", default=[])
    return parse_with_config(parser, argv)


def test_a_file_sets_defaults_and_flags_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lr: 0.5\nwandb: true\nsuite: [a, b]\n")
    args = parse(["--config", str(path), "--lr", "2e-3"])
    assert (args.lr, args.wandb, args.suite, args.optimizer) == (2e-3, True, ["a", "b"], "sgd")


@pytest.mark.parametrize(
    "text, word",
    [
        ("learning_rate: 1", "not flags"),
        ("lr: fast", "lr"),
        ("optimizer: adamw", "adamw"),
        ("wandb: 3", "true or false"),
        ("- a", "flag: value"),
        ("a: [", "YAML"),
        ("config: x.yaml", "not flags"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, text, word):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=word):
        parse(["--config", str(path)])


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_settings_file_of_ours_is_understood(name, tmp_path, monkeypatch):
    """The command accepts the file and stops only at the missing data."""
    monkeypatch.chdir(tmp_path)
    argv = ["--config", str(ROOT / "configs" / name), "--cxr_filepath", str(tmp_path / "none.h5")]
    with pytest.raises(UserError, match="data_prep build"):
        run_train.model_pipeline(run_train.parse_args(argv))


@pytest.mark.parametrize(
    "module, argv, first",
    [
        ("run_train", ["--help"], "CheXzero's flags"),
        ("run_zero_shot", ["--help"], "what to evaluate"),
        ("data_prep.__main__", ["build", "--help"], "where the releases are"),
        ("chexzero.export.__main__", ["--help"], "what to export"),
        ("chexzero.explore.__main__", ["--help"], "what to show"),
    ],
)
def test_help_is_grouped_and_says_the_exit_codes(module, argv, first, capsys):
    command = importlib.import_module(module)
    with pytest.raises(SystemExit) as stopped:
        (command.main if module == "data_prep.__main__" else command.parse_args)(argv)
    text = capsys.readouterr().out
    alone = text.split("options:\n")[1].split(first)[0].split()
    assert stopped.value.code == 0 and alone[:2] == ["-h,", "--help"] and len(alone) < 12  # no other flag
    assert "exit codes: 0 done; 2 a wrong input" in text
    assert "(default: None)" not in text and "(default: False)" not in text
    if module in ("run_train", "run_zero_shot"):
        about = text.split("  --batch_size ")[1].split("\n  --")[0]
        assert about.count("default:") == 1 and f"(default: {16 if module == 'run_train' else 64})" in about


def test_every_step_of_data_prep_is_completed(capsys):
    with pytest.raises(SystemExit):
        data_prep(["--print-completion", "bash"])
    assert "--on_overlap" in (script := capsys.readouterr().out) and "chexpert-test" in script


def test_completion_is_printed(run_module, capsys):
    assert run_module("run_train", "--print-completion", "bash") == 0
    assert "--vision" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "size"), [("1", 1), ("10", 10), ("top 3", 3)])
def test_an_ensemble_is_a_number_or_top_and_a_number(words, size):
    assert ensemble_size(words.split()) == size


@pytest.mark.parametrize(
    "words", ["0", "-1", "three", "top", "top 0", "top three", "best 3", "3 top", "top 3 4", "1.5"]
)
def test_another_ensemble_is_refused(words):
    with pytest.raises(UserError, match=f"--ensemble {words} is not understood"):
        ensemble_size(words.split())


@pytest.mark.parametrize(
    ("called", "shown"),
    [("/usr/bin/chexzero-data", "chexzero-data build"), ("data_prep/__main__.py", "python -m data_prep build")],
)
def test_help_names_the_command_as_it_was_called(called, shown, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [called])
    with pytest.raises(SystemExit):
        data_prep(["build", "--help"])
    assert capsys.readouterr().out.startswith(f"usage: {shown} ")
