"""The training step: the loss, its gradient, precision, schedule."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.loss import SigLipLoss
from torch import nn
from torch.nn import functional

from chexzero.clip import trim_padding
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP
from chexzero.train import pair_loss, train_batch
from chexzero.training.config import TrainConfig
from chexzero.training.loss import LOSSES, ContrastiveLoss, SigmoidLoss, equal_pairs, text_codes
from chexzero.training.step import Towers, Updates, bare, begin_logits, for_training, lr_factor

DEFAULTS = TrainConfig()


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(3)
    return CLIP(16, 32, 2, 64, 16, 20, 200, 64, 1, 2)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (6, 48, 48), generator=generator, dtype=torch.uint8)
    texts = torch.randint(1, 190, (6, 20), generator=generator)
    for row, length in enumerate((5, 9, 12, 5, 7, 3)):
        texts[row, length] = 199
        texts[row, length + 1 :] = 0
    return images, texts


def loss_of(model, images, texts, criterion=None) -> torch.Tensor:
    criterion = criterion or ContrastiveLoss()
    return pair_loss(*model(images, texts), criterion.matches(texts), criterion)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in bare(model).named_parameters()}


def by_definition(clip, images, texts) -> torch.Tensor:
    """The loss by its formula, with each pair encoded on its own."""
    image_features = torch.cat([clip.encode_image(prepare(one[None], 32)) for one in images])
    text_features = torch.cat([clip.encode_text(one[None]) for one in texts])
    image_features = image_features / image_features.norm(dim=1, keepdim=True)
    text_features = text_features / text_features.norm(dim=1, keepdim=True)
    logits = clip.logit_scale.exp() * image_features @ text_features.T
    rows = -logits.log_softmax(1).diag().mean()
    columns = -logits.log_softmax(0).diag().mean()
    return (rows + columns) / 2


@pytest.mark.parametrize("chunks", [1, 2, 4, 6])
def test_loss_and_gradient_are_the_formulas_in_any_number_of_parts(clip, batch, chunks):
    images, texts = batch
    expected = by_definition(clip, images, texts)
    wanted = gradients(clip, expected)
    model = Towers(clip, chunks=chunks)
    loss = loss_of(model, images, trim_padding(texts))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for name, gradient in gradients(model, loss).items():
        assert (gradient - wanted[name]).abs().max() <= 1e-5 * max(1, wanted[name].abs().max()), name


def test_padding_to_a_few_lengths_changes_nothing(clip, batch, monkeypatch):
    images, texts = batch
    seen = []
    encode = clip.encode_text
    monkeypatch.setattr(clip, "encode_text", lambda texts: seen.append(texts.shape[1]) or encode(texts))
    short, long = trim_padding(texts), torch.cat([texts[:, :12], texts[:, :3].clamp(max=150), texts[:, 15:]], 1)
    exact = torch.nn.functional.pad(short, (0, 3))
    for padded in (short, long, exact):
        expected = loss_of(Towers(clip), images, padded).item()
        assert loss_of(Towers(clip, text_lengths=(16, 20)), images, padded).item() == pytest.approx(expected, abs=1e-6)
    assert seen == [13, 16, 20, 20, 16, 16]


def test_parts_keep_few_activations(clip, batch):
    images, texts = (one.repeat(8, *[1] * (one.ndim - 1)) for one in batch)

    def kept(chunks: int) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
            loss_of(Towers(clip, chunks=chunks), images, texts)
        return sum(sizes)

    assert kept(8) < kept(1) / 10


def test_train_batch_takes_upstreams_model_criterion_and_optimizer(clip, batch):
    images, texts = batch
    prepared = prepare(images, 32)
    optimizer = torch.optim.SGD(clip.parameters(), lr=0.1, momentum=0.9)
    before = by_definition(clip, images, texts)
    loss = train_batch(prepared, texts, clip, torch.device("cpu"), nn.CrossEntropyLoss(), optimizer)
    assert loss.item() == pytest.approx(before.item(), abs=1e-6)
    assert by_definition(clip, images, texts).item() < before.item()


def test_equal_texts_as_positives(clip, batch):
    images, texts = batch
    criterion, model = ContrastiveLoss("positive"), Towers(clip)
    assert loss_of(model, images, texts, criterion).item() == pytest.approx(
        loss_of(model, images, texts).item(), abs=1e-6
    )  # without equal texts it is upstream's loss
    texts[3], texts[5] = texts[1], texts[1]
    labels = criterion.matches(trim_padding(texts))
    assert labels[1].tolist() == labels[5].tolist() == [False, True, False, True, False, True]
    assert labels[0].tolist() == [True] + [False] * 5
    logits = model(images, texts)[0].detach()
    by_hand = []
    for z in (logits, logits.T):
        rows = [
            [
                math.log1p(sum(math.exp(z[i, k] - z[i, j]) for k in range(6) if not labels[i, k]))
                for j in range(6)
                if labels[i, j]
            ]
            for i in range(6)
        ]
        by_hand.append(sum(sum(row) / len(row) for row in rows) / 6)
    positive = loss_of(model, images, texts, criterion).item()
    assert positive == pytest.approx(sum(by_hand) / 2, abs=1e-6)
    assert positive < loss_of(model, images, texts).item() - 0.1
    same = loss_of(model, images, texts[:1].repeat(6, 1), criterion)  # no negative: nothing to learn
    same.backward()
    assert same.item() == 0 and all(p.grad.isfinite().all() for p in clip.parameters())


def test_the_sigmoid_loss_is_open_clips_in_any_number_of_parts(clip, batch):
    images, texts = batch
    begin_logits(clip, replace(DEFAULTS, loss="siglip"))
    assert float(clip.logit_bias) == -10 and float(clip.logit_scale.exp()) == pytest.approx(10)
    features = Towers(clip).encode(images, texts)
    theirs = SigLipLoss()(*features, clip.logit_scale.exp(), clip.logit_bias)
    wanted = gradients(clip, theirs)
    for chunks in (1, 3):
        loss = loss_of(Towers(clip, chunks=chunks), images, texts, LOSSES["siglip"].criterion())
        assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
        for name, gradient in gradients(clip, loss).items():
            assert (gradient - wanted[name]).abs().max() <= 1e-5 * max(1, wanted[name].abs().max()), name
    trained = nn.Parameter(torch.tensor(-3.0))
    clip.logit_bias = trained
    begin_logits(clip, replace(DEFAULTS, loss="siglip"))
    assert clip.logit_bias is trained  # weights trained with this loss keep their bias


def test_equal_texts_are_positives_of_the_sigmoid_loss():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    equal = torch.tensor([[True, True], [True, True]])
    by_hand = sum(math.log1p(math.exp(-z)) for z in logits.flatten().tolist()) / 2
    assert SigmoidLoss("positive")(logits, equal).item() == pytest.approx(by_hand)
    own = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5)) + math.log1p(math.exp(-3))
    assert SigmoidLoss()(logits, torch.arange(2)).item() == pytest.approx(own / 2)


def test_equal_shares_of_one_softmax_would_be_upstreams_loss(clip, batch):
    images, texts = batch
    texts[3], texts[5] = texts[1], texts[1]
    shares = ContrastiveLoss("positive").matches(texts).float()
    shares = shares / shares.sum(1, keepdim=True)
    soft = sum(functional.cross_entropy(logits, shares) for logits in Towers(clip)(images, texts)) / 2
    assert soft.item() == pytest.approx(loss_of(Towers(clip), images, texts).item(), abs=1e-5)


def test_text_codes_know_equal_texts_and_no_others():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 49408, (5000, 77)).astype(np.uint16)
    tokens[:, 40:] = 0
    tokens[17] = tokens[4000]
    tokens[18, :2] = tokens[19, 1::-1]  # the same tokens in another order
    codes = text_codes(torch.from_numpy(tokens.astype(np.int64)))
    assert torch.equal(codes, text_codes(torch.from_numpy(tokens[:, :40].astype(np.int64))))
    assert equal_pairs(codes.numpy()) == 1 and codes[17] == codes[4000]
    assert equal_pairs(np.array([1, 1, 1, 2, 2, 3])) == 4
    factors = text_codes(torch.eye(77, dtype=torch.int64))
    assert factors.dtype == torch.int64 and 0.3 < (factors < 0).double().mean() < 0.7
    assert (factors.abs() > 2**60).double().mean() > 0.5  # they fill the 63 bits


def test_low_precision_is_close_and_float16_steps_are_taken(clip, batch):
    images, texts = batch
    exact = float(loss_of(Towers(clip), images, texts))
    for precision in ("bf16", "fp16"):
        model = Towers(clip, precision)
        logits, _ = model(images, texts)
        assert logits.dtype == torch.float32
        assert float(loss_of(model, images, texts)) == pytest.approx(exact, abs=0.05)
        assert all(parameter.dtype == torch.float32 for parameter in clip.parameters())
    device = torch.device("cpu")
    optimizer = Updates(
        torch.optim.SGD(clip.parameters(), lr=0.05),
        model,
        replace(DEFAULTS, precision="fp16", clip_grad_norm=1.0),
        10,
        device,
    )
    losses = [float(train_batch(images, texts, model, device, ContrastiveLoss(), optimizer)) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.05
    assert optimizer.state_dict()["scaler"]["scale"] > 1


def test_clipping_and_limits(clip, batch):
    images, texts = batch
    device, model = torch.device("cpu"), Towers(clip)
    config = replace(DEFAULTS, clip_grad_norm=1e-3, clip_logit_scale=5.0)
    optimizer = Updates(torch.optim.SGD(clip.parameters(), lr=1.0), model, config, 10, device)
    before = {name: parameter.detach().clone() for name, parameter in clip.named_parameters()}
    train_batch(images, texts, model, device, ContrastiveLoss(), optimizer)
    moved = sum(
        float((parameter.detach() - before[name]).square().sum())
        for name, parameter in clip.named_parameters()
        if name != "logit_scale"
    )
    assert math.sqrt(moved) <= 1.001e-3
    assert float(clip.logit_scale.exp()) == pytest.approx(5.0)


def test_schedule():
    assert [lr_factor(step, 4, 100, "constant") for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert lr_factor(0, 0, 100, "constant") == lr_factor(0, 0, 100, "cosine") == 1
    assert lr_factor(50, 0, 100, "cosine") == pytest.approx(0.5)
    assert lr_factor(52, 4, 100, "cosine") == pytest.approx(0.5)
    assert lr_factor(100, 4, 100, "cosine") == lr_factor(200, 4, 100, "cosine") == pytest.approx(0)


def test_the_rate_of_each_group_follows_the_schedule(clip):
    weight, bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 1.0}, {"params": [bias], "lr": 0.1}])
    updates = Updates(optimizer, clip, replace(DEFAULTS, warmup_steps=2), 10, torch.device("cpu"))
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
    functional.mse_loss(weight + bias, torch.zeros(2)).backward()
    updates.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_torchs_with_and_without_equal_texts(smoothing):
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([1, 0, 4, 2, 8, 3])
    wanted = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert ContrastiveLoss("negative", smoothing)(logits, labels) == wanted
    same = functional.one_hot(labels, 9).bool()
    assert torch.allclose(ContrastiveLoss("positive", smoothing)(logits, same), wanted)


def test_only_whole_parts_that_are_trained_on_run_compiled(clip, batch, monkeypatch):
    """The compiler, which takes a minute per shape, is replaced here; `test_train_long` really compiles."""
    met: list[tuple[int, ...]] = []

    def compile_(encode, dynamic):
        assert dynamic is False
        return lambda part: (met.append(tuple(part.shape)), encode(part))[1]

    monkeypatch.setattr(torch, "compile", compile_)
    images, texts = batch
    model = for_training(clip, torch.device("cpu"), TrainConfig(batch_size=6, grad_accum=2, compile=True))
    for rows, whole in ((6, 2), (5, 1), (3, 0)):  # in parts of 3 and 3, of 3 and 2, of 2 and 1
        met.clear()
        logits = model(images[:rows], trim_padding(texts[:rows]))[0]
        assert torch.allclose(logits, Towers(clip)(images[:rows], texts[:rows])[0], atol=1e-5)
        assert met == [(3, 3, 32, 32)] * whole + [(3, 20)] * whole
    met.clear()
    with torch.no_grad():
        model(images[:3], texts[:3])
    assert not met
