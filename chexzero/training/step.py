"""The training step: mixed precision, gradient caching, clipping, schedule. Default flags give upstream's plain step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from chexzero.common.errors import UserError
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP, PRECISIONS
from chexzero.training import distributed, finetune
from chexzero.training.config import TrainConfig
from chexzero.training.loss import LOSSES, all_pairs


class Towers(nn.Module):
    """A CLIP wrapped for training: stored images and tokens in, logits against the pairs of all ranks out.

    `precision` is the type that the towers compute in (weights, features and logits stay float32). With `chunks` > 1
    the batch goes through the towers in this many parts, whose activations are not kept: the backward pass recomputes
    them, part by part, from the cached features' gradients. The loss still sees every pair of the batch (Gao et al.
    2021, gradient cache), and memory is that of one part. `compiled` is the number of rows for which code is compiled
    (0: none): parts of another size, such as an epoch's last, and passes without gradients run uncompiled, since the
    compiler takes a minute per shape. `text_lengths`: texts are padded to the next of these lengths for the same
    reason; padding after a text changes nothing.
    """

    def __init__(
        self,
        clip: CLIP,
        precision: str = "fp32",
        chunks: int = 1,
        *,
        alone: bool = False,
        compiled: int = 0,
        text_lengths: Sequence[int] = (),
    ):
        super().__init__()
        self.clip, self.precision, self.chunks, self.alone = clip, precision, chunks, alone
        self.compiled, self.text_lengths = compiled, text_lengths
        names = ("encode_image", "encode_text") if compiled else ()
        self._compiled = {name: torch.compile(getattr(clip, name), dynamic=False) for name in names}

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two logit matrices (b, b x ranks).

        images: (b, H, W) as stored, prepared (b, 3, R, R), or a locked tower's features (b, width) before the
        projection. texts: tokens (b, T).
        """
        images, texts = self.encode(images, texts)
        return all_pairs(images, texts, self.clip.logit_scale.exp(), self.clip.logit_bias, alone=self.alone)

    def encode(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of images and texts, float32 (b, D), rows of length 1."""
        return self._in_chunks(self._image_features, images), self._in_chunks(self._text_features, texts)

    def _image_features(self, images: torch.Tensor) -> torch.Tensor:
        if images.ndim == 3:
            images = prepare(images, self.clip.image_resolution, self.clip.normalisation)
        with self._autocast(images.device):
            encode = self.clip.visual.head if images.ndim == 2 else self._encoder("encode_image", images)
            features = encode(images)
        return functional.normalize(features.float(), dim=-1)

    def _text_features(self, texts: torch.Tensor) -> torch.Tensor:
        length = texts.shape[1]
        texts = functional.pad(texts, (0, next((n for n in self.text_lengths if n >= length), length) - length))
        with self._autocast(texts.device):
            features = self._encoder("encode_text", texts)(texts)
        return functional.normalize(features.float(), dim=-1)

    def _encoder(self, name: str, part: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        compiled = len(part) == self.compiled and torch.is_grad_enabled()
        return self._compiled[name] if compiled else getattr(self.clip, name)

    def _in_chunks(self, encode: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        if self.chunks == 1 or not torch.is_grad_enabled():
            return encode(batch)
        return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in batch.chunk(self.chunks)])

    def _autocast(self, device: torch.device) -> torch.autocast:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(device.type, dtype, enabled=dtype is not None)


def begin_logits(clip: CLIP, config: TrainConfig) -> None:
    """Set the initial logit scale and bias of `--loss`, unless the weights come from a training with that loss."""
    loss = LOSSES[config.loss]
    if loss.bias is None:
        clip.logit_bias = None
    elif clip.logit_bias is None:
        clip.logit_bias = nn.Parameter(torch.tensor(loss.bias))
        if loss.log_scale is not None:
            clip.logit_scale.data.fill_(loss.log_scale)


def for_training(clip: CLIP, device: torch.device, config: TrainConfig) -> nn.Module:
    """Put a CLIP on its device and wrap it as `config` asks: precision, parts, compilation, ranks."""
    if any(isinstance(module, _BatchNorm) for module in clip.modules()):
        clip = _with_whole_batches(clip, device, config)
    part = math.ceil(config.batch_size // distributed.world_size() / config.grad_accum)
    model = Towers(
        clip.to(device).train(),
        config.precision,
        config.grad_accum,
        compiled=part if config.compile else 0,
        text_lengths=(clip.context_length // 2, clip.context_length) if config.compile else (),
    )
    if distributed.world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def _with_whole_batches(clip: CLIP, device: torch.device, config: TrainConfig) -> CLIP:
    """Synchronise batch normalisation over the ranks. Raises `UserError` for settings that rule it out."""
    why = f"{config.vision} normalises by the statistics of the batch"
    if config.grad_accum > 1:
        raise UserError(f"{why}, which differ in its parts; leave out --grad_accum, or take another --vision")
    if config.freeze_blocks:
        raise UserError(
            f"{why}, so frozen blocks would still change; leave out --freeze_blocks, or take another --vision"
        )
    if distributed.world_size() == 1:
        return clip
    if device.type != "cuda":
        raise UserError(f"{why}, which ranks can share only on GPUs; train with one process, or take another --vision")
    return nn.SyncBatchNorm.convert_sync_batchnorm(clip)


def bare(model: nn.Module) -> CLIP:
    """Return the CLIP inside the result of `for_training`; any other model as it is."""
    inner: Any = getattr(model, "module", model)
    return getattr(inner, "clip", inner)


class Updates:
    """An optimiser with loss scaling, clipping, learning-rate schedule and an average of the weights."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        config: TrainConfig,
        total_steps: int,
        device: torch.device,
    ):
        self.optimizer, self.model, self.config = optimizer, model, config
        self.total_steps, self.steps = total_steps, 0
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        # The decay rises to --ema as 1 - t^(-2/3) at update t, so that the initial weights are soon forgotten.
        self.average = (
            ModelEmaV3(bare(model), config.ema, use_warmup=True, exclude_buffers=True) if config.ema else None
        )
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._set_lr()

    @property
    def lr(self) -> float:
        """Learning rate of the next step (of the first group)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients; with fp16 those of the scaled loss, so that small ones do not underflow."""
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        finetune.set_frozen(bare(self.model), self.steps, self.config)
        if self.config.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.config.clip_logit_scale:
            with torch.no_grad():
                bare(self.model).logit_scale.clamp_(max=math.log(self.config.clip_logit_scale))
        self.steps += 1
        if self.average:
            self.average.update(bare(self.model), self.steps)
        self._set_lr()

    def _set_lr(self) -> None:
        factor = lr_factor(self.steps, self.config.warmup_steps, self.total_steps, self.config.lr_schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def state_dict(self) -> dict[str, Any]:
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "steps": self.steps}
        return state | ({"average": self.average.module.state_dict()} if self.average else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.steps = state["steps"]
        self._set_lr()


def lr_factor(step: int, warmup_steps: int, total_steps: int, schedule: str) -> float:
    """Return the factor on the learning rate at update `step` (from 0).

    Linear over the first `warmup_steps` updates, then constant, or half a cosine down to 0 at `total_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
