"""Means of checkpoints: the mean of linear models gives the mean of their outputs, and different models are refused."""

import json

import pytest
import torch

from chexzero import average
from chexzero.common.errors import UserError
from chexzero.models.checkpoints import load_model, read_state_dict
from chexzero.models.towers import create_model
from tests.small_clip import state_dict


@pytest.fixture
def two(tmp_path):
    first = state_dict()
    generator = torch.Generator().manual_seed(0)
    second = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in first.items()}
    paths = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for path, state in zip(paths, (first, second), strict=True):
        torch.save(state, path)
    return paths


def test_the_ends_of_an_interpolation_are_the_checkpoints_and_its_middle_is_their_soup(two):
    first, second = map(read_state_dict, two)
    for weights, expected in (([1, 0], first), ([0, 1], second)):
        found = average.average(two, weights)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    soup = average.average(two)
    for name in soup:
        torch.testing.assert_close(soup[name], torch.stack([first[name], second[name]]).mean(0), rtol=1e-6, atol=1e-7)
    assert not torch.equal(soup["text_projection"], first["text_projection"])


def test_a_soup_of_equal_checkpoints_is_that_checkpoint_to_the_last_bit(two):
    found, one = average.average([two[1]] * 3), read_state_dict(two[1])
    assert all(torch.equal(found[name], one[name]) for name in one)


def test_checkpoints_that_saw_different_numbers_of_batches_are_of_one_model(tmp_path):
    options = dict.fromkeys(("vision_weights", "text_weights"), "random") | {"text_encoder": "tiny"}
    model, paths = create_model("dinov3_tiny_hybrid", image_resolution=64, **options), []
    for number in (1, 2):
        model.train().encode_image(torch.randn(4, 3, 64, 64))
        paths.append(tmp_path / f"{number}.pt")
        torch.save(model.state_dict(), paths[-1])
    first, second, soup = *map(read_state_dict, paths), average.average(paths)
    name = "visual.trunk.patch_embed.backbone.bn1"
    assert [int(one[f"{name}.num_batches_tracked"]) for one in (first, second, soup)] == [1, 2, 1]
    torch.testing.assert_close(
        soup[f"{name}.running_mean"], (first[f"{name}.running_mean"] + second[f"{name}.running_mean"]) / 2
    )


def test_the_mean_of_a_layer_is_the_mean_of_its_outputs(two):
    """Features are linear in the text projection alone, so there the mean has a known answer."""
    first, second = map(read_state_dict, two)
    only = {**first, "text_projection": second["text_projection"]}
    torch.save(only, two[1])
    torch.save(average.average(two, [0.25, 0.75]), two[0].with_name("mean.pt"))
    tokens = torch.tensor([[1, 5, 9, 2, 0], [1, 7, 2, 0, 0]])
    with torch.no_grad():
        one, other, mean = (
            load_model(two[0].with_name(f"{name}.pt")).encode_text(tokens) for name in ("one", "two", "mean")
        )
    torch.testing.assert_close(mean, 0.25 * one + 0.75 * other, rtol=1e-4, atol=1e-5)


def test_the_command_writes_a_checkpoint_and_what_it_is_made_of(two, tmp_path, capsys):
    average.main([*map(str, two), "--weights", "0.3", "0.7", "--out", str(tmp_path / "wise.pt")])
    load_model(tmp_path / "wise.pt")
    record = json.loads((tmp_path / "wise.json").read_text())
    assert [part["weight"] for part in record["mean_of"]] == [0.3, 0.7]
    assert "--checkpoint" in capsys.readouterr().out


def test_a_run_gives_its_best_checkpoints_by_validation(two, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "selection.json").write_text(json.dumps({"metric": "mean_13", "checkpoint": "checkpoint_20.pt"}))
    (run / "metrics.csv").write_text("step,mean_13\n10,0.5\n20,0.9\n30,0.8\n")
    for step, source in ((10, two[0]), (20, two[0]), (30, two[1])):
        (run / f"checkpoint_{step}.pt").write_bytes(source.read_bytes())
    args = average.parse_args(["--run", str(run), "--top", "2", "--out", "soup.pt"])
    assert [path.name for path in average.chosen(args)] == ["checkpoint_20.pt", "checkpoint_30.pt"]


def _with(state, **changed):
    return {**state, **changed}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {name: value for name, value in state.items() if name != "ln_final.bias"},
            "lacks ln_final.bias",
        ),
        (lambda state: _with(state, text_projection=state["text_projection"][:, :-1]), "of another shape"),
        (lambda state: _with(state, text_projection=state["text_projection"] * torch.nan), "not finite"),
        (lambda state: _with(state, extra=torch.tensor(3)), "has unknown extra"),
    ],
)
def test_checkpoints_of_different_models_are_refused_in_one_sentence(two, change, words):
    torch.save(change(read_state_dict(two[1])), two[1])
    with pytest.raises(UserError, match=words):
        average.average(two)


def test_another_image_resolution_is_another_model(two):
    for path, resolution in zip(two, (224, 320), strict=True):
        torch.save(_with(read_state_dict(path), **{"visual.image_resolution": torch.tensor(resolution)}), path)
    with pytest.raises(UserError, match="image_resolution 320 instead of 224"):
        average.average(two)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.pt"], "name either checkpoints"),
        (["a.pt", "--run", "r", "--top", "2", "--out", "x.pt"], "name either checkpoints"),
        (["--run", "r", "--out", "x.pt"], "name either checkpoints"),
        (["a.pt", "--out", "x.pt"], "two checkpoints or more"),
        (["a.pt", "b.pt", "--weights", "1", "--out", "x.pt"], "has 1 numbers for 2"),
        (["a.pt", "b.pt", "--weights", "0.9", "0.9", "--out", "x.pt"], "sum to 1"),
        (["a.pt", "b.pt", "--weights", "nan", "1", "--out", "x.pt"], "0..1"),
        (["a.pt", "b.pt", "--out", "x.bin"], "must end with .pt"),
        (["a.pt", "b.pt", "--out", "x.pt"], "a.pt does not exist"),
    ],
)
def test_what_makes_no_mean_is_refused(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        average.main(words)


def test_an_existing_file_is_not_overwritten(two):
    with pytest.raises(UserError, match="exists already"):
        average.main([*map(str, two), "--out", str(two[0])])
