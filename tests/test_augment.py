"""Image augmentation: compared with torchvision's, and determined by seed, epoch and row alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import functional as peer
from training_corpus import flags, write_corpus

import run_train
from chexzero.common.errors import UserError
from chexzero.imaging.normalise import MEAN, prepare
from chexzero.training.augment import NUMBERS, PRESETS, STRENGTHS, Augmentation, augment, canonical, strengths
from chexzero.training.config import parse_config

MIDDLE = {name: 0.5 for name in NUMBERS}


@pytest.fixture
def images():
    small = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(1)) * 255
    return functional.interpolate(small, size=(96, 96), mode="bilinear").squeeze(1).round().to(torch.uint8)


def numbers(count=3, **of):
    """Random numbers that change nothing, except the named ones."""
    return torch.tensor([list((MIDDLE | of).values())]).expand(count, -1)


def test_without_strengths_the_images_are_those_that_prepare_makes(images):
    for resolution in (96, 64, 40):
        found = prepare(augment(images, torch.rand(3, len(NUMBERS)), {}, resolution), resolution)
        assert torch.allclose(found, prepare(images, resolution), atol=1e-4)


def test_each_strength_at_the_middle_of_its_numbers_changes_nothing(images):
    plain = augment(images, numbers(), {}, 96)
    for name in ("rotate", "shear", "shift", "gamma", "contrast", "brightness"):
        assert torch.allclose(augment(images, numbers(), {name: STRENGTHS[name][0] / 4}, 96), plain, atol=1e-2), name


@pytest.mark.parametrize(
    "by, of, theirs",
    [
        ({"rotate": 20}, {"rotate": 1.0}, {"angle": -20}),
        ({"rotate": 20}, {"rotate": 0.25}, {"angle": 10}),
        ({"shift": 0.125}, {"shift": 1.0}, {"translate": [0, -12]}),
        ({"shift": 0.125}, {"shift_x": 0.0}, {"translate": [12, 0]}),
        ({"shear": 10}, {"shear": 1.0}, {"shear": [10.0, 0.0]}),
    ],
)
def test_turns_moves_and_slants_are_torchvisions(images, by, of, theirs):
    ours = augment(images, numbers(**of), by, 96)
    wanted = peer.affine(
        images.float()[:, None],
        **({"angle": 0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | theirs),
        interpolation=peer.InterpolationMode.BILINEAR,
    ).squeeze(1)
    inner = np.s_[:, 24:-24, 24:-24]  # bicubic and bilinear, and the two treatments of the border, differ a little
    assert (ours - wanted)[inner].abs().mean() < 1.0
    assert (augment(images, numbers(), {}, 96) - wanted)[inner].abs().mean() > 4


@pytest.mark.parametrize(("crop", "side"), [(1.0, 48), (0.5, 72)])
def test_a_crop_is_torchvisions_resized_crop(images, crop, side):
    ours = augment(images, numbers(crop=crop, crop_x=0.0, crop_y=1.0), {"crop": 0.5}, 96)
    wanted = peer.resized_crop(
        images[:, None].float(), 96 - side, 0, side, side, [96, 96], peer.InterpolationMode.BICUBIC, antialias=False
    ).squeeze(1)
    assert (ours - wanted)[:, 4:-4, 4:-4].abs().max() < 0.1


def test_gamma_contrast_brightness_and_blur_are_torchvisions(images):
    plain = (images / 255)[:, None]
    cases = [
        ({"gamma": 0.5}, {"gamma": 1.0}, peer.adjust_gamma(plain, float(np.exp(0.5)))),
        ({"brightness": 0.2}, {"brightness": 1.0}, (plain + 0.2).clamp(0, 1)),
        ({"blur": 1.5}, {"blur": 1.0, "blurred": 0.0}, peer.gaussian_blur(plain, [11, 11], [1.5, 1.5])),
        ({"blur": 1.5}, {"blur": 0.5, "blurred": 0.0}, peer.gaussian_blur(plain, [11, 11], [0.75, 0.75])),
        ({"blur": 1.5}, {"blur": 1.0, "blurred": 0.9}, plain),
        ({"brightness": 0.2}, {"brightness": 0.25}, (plain - 0.1).clamp(0, 1)),
    ]
    cases.append(({"contrast": 0.5}, {"contrast": 0.0}, peer.adjust_contrast(plain, 0.5)))
    for by, of, wanted in cases:
        found = augment(images, numbers(**of), by, 96) / 255
        assert torch.allclose(found[:, 8:-8, 8:-8], wanted.squeeze(1)[:, 8:-8, 8:-8], atol=3e-3), by


def test_noise_has_its_deviation_and_differs_between_images():
    grey = torch.full((2, 64, 64), 128, dtype=torch.uint8)
    of = torch.stack([numbers(1, noise=share, noise_y=y)[0] for share, y in ((1.0, 0.1), (0.5, 0.7))])
    found = augment(grey, of, {"noise": 0.1}, 64)
    assert torch.allclose((found / 255).std((1, 2)), torch.tensor([0.1, 0.05]), atol=0.01)
    assert abs(np.corrcoef(found.flatten(1).numpy())[0, 1]) < 0.1


def test_cutout_covers_a_square_with_the_mean_grey(images):
    found = augment(images, numbers(cutout=1.0), {"cutout": 0.25}, 96)
    covered = found == MEAN
    assert abs(float(covered.float().mean()) - 0.0625) < 0.006
    assert torch.allclose(found[~covered], images[~covered].float(), atol=1e-3)
    rows, columns = (torch.arange(96)[:, None] - 24, torch.arange(96) - 72)
    covered = augment(images, numbers(cutout=0.5, cutout_y=0.25, cutout_x=0.75), {"cutout": 0.25}, 96) == MEAN
    assert torch.equal(covered[0], (rows.abs() < 6) & (columns.abs() < 6))


def test_what_lies_outside_is_black_and_nothing_leaves_the_range():
    white = torch.full((1, 32, 32), 255, dtype=torch.uint8)
    found = augment(white, numbers(1, shift_x=1.0), {"shift": 0.25}, 32)
    assert torch.equal(found[0, :, 24:], torch.zeros(32, 8)) and (found[0, :, :24] > 254).all()
    strong = {name: most for name, (most, _) in STRENGTHS.items()}
    found = augment(torch.randint(0, 256, (16, 64, 64)), torch.rand(16, len(NUMBERS)), strong, 32)
    assert found.min() >= 0 and found.max() <= 255


def test_the_flip_mirrors_about_half_of_the_images_and_only_when_asked(images):
    of = torch.stack([numbers(1, flip=flip)[0] for flip in (0.1, 0.9, 0.4)])
    plain, flipped = augment(images, of, {}, 96), augment(images, of, {}, 96, flip=True)
    assert torch.allclose(flipped, torch.stack([plain[0].flip(-1), plain[1], plain[2].flip(-1)]), atol=1e-3)
    assert not any("flip" in preset for preset in PRESETS.values())


def test_an_image_depends_on_seed_epoch_and_row_alone(images):
    def change(seed=1):
        return Augmentation("medium", flip=False, rows=50, seed=seed, resolution=48)

    rows, one = torch.tensor([7, 3, 49]), change()
    whole = one(images, 2, rows)
    assert torch.equal(change()(images[[2, 0]], 2, rows[[2, 0]]), whole[[2, 0]])  # another rank, another batch
    one(images, 3, rows)
    assert torch.equal(one(images, 2, rows), whole)  # an earlier epoch again, as in a resumed run
    others = [one(images, 3, rows), change(seed=2)(images, 2, rows), one(images, 2, rows + torch.tensor([1, 1, -1]))]
    assert all((other - whole).abs().mean() > 1 for other in others)
    assert whole.shape == (3, 48, 48) and whole.dtype == torch.float32


def test_strengths_are_read_and_refused():
    assert canonical("crop=0.2, rotate=10") == "crop=0.2,rotate=10"
    assert canonical("light") == canonical(canonical("light"))
    assert strengths("medium,crop=0") == PRESETS["medium"] | {"crop": 0}
    assert strengths("crop=0.9") == {"crop": 0.9}
    for text, words in [
        ("crop=-0.1", "0 to 0.9"),
        ("light=1", "neither"),
        ("heavy", "neither"),
        ("crop=2", "0 to 0.9"),
        ("crop", "0 to 0.9"),
        ("crop=nan", "0 to 0.9"),
    ]:
        with pytest.raises(ValueError, match=words):
            strengths(text)


def test_the_contact_sheet_shows_what_the_model_sees_and_leaves(tmp_path, capsys):
    corpus, sheet = write_corpus(tmp_path, train=12), tmp_path / "sheet.png"
    argv = flags(corpus, "none", "--augment", "light", "--show_batch", str(sheet), "--batch_size", "3")
    run_train.model_pipeline(run_train.parse_args(argv))
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and np.asarray(picture.convert("L")).std() > 20
    assert not (corpus / "runs").exists()
    with pytest.raises(UserError, match="must end with .png"):
        run_train.model_pipeline(run_train.parse_args([*argv[:-4], "--show_batch", "sheet.txt"]))


def test_a_wrong_strength_ends_with_exit_code_2(capsys):
    with pytest.raises(SystemExit) as left:
        parse_config("", ["--augment", "crop=7"])
    assert left.value.code == 2 and "crop must be a number of 0 to 0.9, not '7'" in capsys.readouterr().err
