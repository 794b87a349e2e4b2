"""The base model that methods customize, behind one interface.

What trains and what samples asks a `Base` for three things: what a text tells it (`condition`),
what it predicts (`predict`) and what it should have predicted (`target`).
"""

from __future__ import annotations

import hashlib
import json
import platform
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.common.errors import BenchError
from pipeline.common.files import sha256
from pipeline.models.arithmetic import (
    arithmetic,
    attention_for,
    computing_in,
    full_float32,
)
from pipeline.models.crossattn import texts_by_layer
from pipeline.models.tokens import ModifierEmbedding
from pipeline.settings.profile import BaseParams, is_hub_id

COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NOISE, VELOCITY = "epsilon", "v_prediction"  # as schedulers' configurations call them


@dataclass(frozen=True)
class Condition:
    """What texts tell the UNet."""

    # Features [n, context, d]: last hidden states after the final norm, of the dtype that
    # weights are stored in. If tokens differ by layer of cross-attention, [n, layers, context, d].
    text: Tensor

    @cached_property
    def by_layer(self) -> list[Tensor]:
        """What each layer sees, [n, context, d]; always the same tensors, as caches go by that."""
        return [part.contiguous() for part in self.text.unbind(1)]

    def split(self) -> list[Condition]:
        """One for each text."""
        return [Condition(row) for row in self.text.split(1)]

    @staticmethod
    def joined(parts: Sequence[Condition]) -> Condition:
        """Of the texts of all parts, in their order."""
        return Condition(torch.cat([part.text for part in parts]))


@dataclass
class Base:
    """A frozen text-to-image latent diffusion model in Stable Diffusion's format.

    All that its methods take and give is float32, but for conditions. So are its weights, or they
    are stored in bfloat16 (see `store`): then what trains has a master in float32 elsewhere.
    """

    path: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    resolution: int
    device: torch.device
    revision: str | None = None  # of a hub id
    dtype: torch.dtype = torch.float32  # what convolutions and matrix products compute with
    stored: torch.dtype = torch.float32  # what weights are kept in
    gradient_checkpointing: bool = False  # gradients take less memory and more time
    compiled: bool = False  # see `pipeline.models.compiling`

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        side = self.resolution // self.downsampling
        return (self.vae.config.latent_channels, side, side)

    @property
    def downsampling(self) -> int:
        """Pixels per latent pixel, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @cached_property
    def hash(self) -> str:
        """Identifies the weights that adapters change and depend on: the UNet's and the text's."""
        folder = Path(self.path)
        if not folder.is_dir():
            return f"{self.path}@{self.revision}" if self.revision else self.path
        files = [
            p for c in ("unet", "text_encoder") for p in sorted((folder / c).glob("*.safetensors"))
        ]
        return hashlib.sha256("".join(sha256(p) for p in files).encode()).hexdigest()[:16]

    def store(self, dtype: torch.dtype) -> None:
        """Keeps all weights in this dtype, in which models then compute throughout.

        Without autocast nothing is cast from layer to layer, and half of the memory is read.
        """
        for model in (self.unet, self.vae, self.text_encoder):
            nn.Module.to(model, dtype)  # diffusers' own warns of what these models do not have
        self.dtype = self.stored = dtype

    @contextmanager
    def precise(self) -> Iterator[None]:
        """In it, models compute in float32, on whatever hardware: what merges and squares need.

        The weights are the same numbers as outside. No modifier token may be there yet.
        """
        was = self.dtype, self.stored
        with full_float32():
            self.store(torch.float32)
            try:
                yield
            finally:
                self.store(was[1])
                self.dtype = was[0]

    def autocast(self) -> AbstractContextManager[None]:
        """In it, models whose weights are float32 compute with the base's dtype."""
        if self.stored is not torch.float32:
            return nullcontext()
        return computing_in(self.dtype, self.device)

    def add_modifier_tokens(self, rows: dict[str, Tensor]) -> ModifierEmbedding:
        """Teaches the tokenizer and the text encoder these tokens; the table itself stays as is.

        Args:
            rows: the embedding [d] of each modifier token, or those [layers, d] of all of them.

        Returns:
            The layer that now embeds tokens; its `rows` [n, d] or [n, layers, d] are theirs.
        """
        table = self.text_encoder.get_input_embeddings()
        if isinstance(table, ModifierEmbedding):
            table = table.table
        self.tokenizer.add_tokens(list(rows))
        ids = self.tokenizer.convert_tokens_to_ids(list(rows))
        embedding = ModifierEmbedding(table, ids, torch.stack(list(rows.values())))
        self.text_encoder.set_input_embeddings(embedding.to(self.device))
        return embedding

    def embedding_row(self, token_id: int) -> Tensor:
        """A copy of the input embedding, float32 [d], of a token of the original vocabulary."""
        table = self.embedding_table()
        size = table.shape[0]
        if not 0 <= token_id < size:
            raise BenchError(
                f"params.yaml: base.modifier_token_ids: {token_id} is not in the vocabulary of "
                f"{self.path}, which has {size} tokens"
            )
        return table[token_id].clone()

    def embedding_table(self) -> Tensor:
        """The input embeddings, float32 [vocabulary, d], of the original vocabulary."""
        table = self.text_encoder.get_input_embeddings()
        table = table.table if isinstance(table, ModifierEmbedding) else table
        return table.weight.detach().float()

    @property
    def context(self) -> int:
        """Tokens of an encoded text, begin, end and padding among them."""
        # A tokenizer that does not know its length says a huge number.
        places = self.text_encoder.config.max_position_embeddings
        return int(min(self.tokenizer.model_max_length, places))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 [n, context], padded and truncated."""
        return self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        ).input_ids.to(self.device)

    def condition(self, texts: Sequence[str]) -> Condition:
        """What these texts tell the UNet; gradients reach modifier tokens through it."""
        ids, embedding = self.tokenize(texts), self.text_encoder.get_input_embeddings()
        if not (isinstance(embedding, ModifierEmbedding) and embedding.layers):
            return Condition(self.text_encoder(ids)[0])
        found = []
        for layer in range(embedding.layers):
            embedding.layer = layer
            found.append(self.text_encoder(ids)[0])
        return Condition(torch.stack(found, 1))

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor | int,
        condition: Condition,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """What the UNet makes of noisy scaled latents, float32 [n, c, h, w].

        Args:
            noisy: float32 [n, c, h, w].
            timesteps: int64 [n], or one for all.
            condition: of n texts.
            weights: some that the UNet has instead of its own, by name.

        Returns:
            An estimate of `target`.
        """
        with self.autocast(), self._saving_memory(condition), self.seeing(condition) as text:
            arguments = (noisy.to(self.stored), timesteps, text.to(self.stored))
            if weights is None:
                predicted: Tensor = self.unet(*arguments).sample
            else:
                predicted = torch.func.functional_call(self.unet, dict(weights), arguments).sample
        return predicted.float()

    @contextmanager
    def seeing(self, condition: Condition) -> Iterator[Tensor]:
        """In it, each layer of the UNet sees its own text, if a condition has one for each.

        Yields:
            What to give to the UNet, [n, context, d].
        """
        if condition.text.ndim == 3:
            yield condition.text
            return
        with texts_by_layer(self.unet, condition.by_layer):
            yield condition.by_layer[0]

    @contextmanager
    def _saving_memory(self, condition: Condition) -> Iterator[None]:
        """In it, gradients take less memory, if that is wanted.

        A backward pass calls blocks once more, when `predict` has long returned: what they see is
        as it was then.
        """
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            yield
            return

        @contextmanager
        def again() -> Iterator[None]:
            with attention_for(self.dtype, self.stored, self.device), self.seeing(condition):
                yield

        def checkpointed(block: nn.Module, *inputs: Any) -> Any:
            contexts = (nullcontext(), again())  # of the first call and of the second
            return checkpoint(
                block.__call__, *inputs, use_reentrant=False, context_fn=lambda: contexts
            )

        self.unet.enable_gradient_checkpointing(checkpointed)
        try:
            yield
        finally:
            self.unet.disable_gradient_checkpointing()

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` should give, float32 [n, c, h, w]: noise, or the velocity.

        The velocity at a timestep is sqrt(a) noise - sqrt(1 - a) clean, where the noisy latents
        are sqrt(a) clean + sqrt(1 - a) noise (Salimans and Ho, 2022).

        Args:
            clean: scaled latents float32 [n, c, h, w].
            noise: float32 [n, c, h, w].
            timesteps: int64 [n].
        """
        if self.scheduler.config.prediction_type == NOISE:
            return noise
        velocity: Tensor = self.scheduler.get_velocity(clean, noise, timesteps)
        return velocity

    @torch.no_grad()
    def encode_images(self, images: Tensor, batch: int = 32) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [n, c, h, w] of the latents of images [n, 3, H, W].

        Images are in [-1, 1]; latents are not scaled yet (see `scale`).
        """
        means, deviations = [], []
        for part in images.split(batch):
            with self.autocast():
                posterior = self.vae.encode(part.to(self.device, self.stored)).latent_dist
            means.append(posterior.mean.float())
            deviations.append(posterior.std.float())
        return torch.cat(means), torch.cat(deviations)

    @property
    def scale(self) -> float:
        """What latents are multiplied by before the UNet sees them."""
        return float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images [n, 3, H, W], roughly in [-1, 1], of scaled latents [n, c, h, w]."""
        with self.autocast():
            images: Tensor = self.vae.decode((latents / self.scale).to(self.stored)).sample
        return images.float()


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size as float32 [n, 3, h, w] in [-1, 1]."""
    return normalized(to_pixels(images))


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size as bytes [n, h, w, 3]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def normalized(pixels: Tensor) -> Tensor:
    """Bytes [n, h, w, 3] as float32 [n, 3, h, w] in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor of the CPU on a device; what asks for it does not wait for a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Images of [n, 3, h, w] in [-1, 1]; what is beyond is cut off."""
    pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return [Image.fromarray(p) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def load_base(params: BaseParams, device: torch.device | None = None) -> Base:
    """Loads the base model, frozen, in evaluation mode, from a folder or from the hub.

    On a GPU its weights are stored in bfloat16, elsewhere in float32.

    The scheduler is DDIM with the base's betas, no clipping of the predicted image, offset 1 and
    leading spacing, whatever scheduler the base comes with: with eta 1 that is what the paper
    calls DDPM sampling.

    Raises:
        BenchError: a component is missing or not what its configuration says, the hub cannot be
            reached, or it is no such model: it predicts neither noise nor velocity, or its parts
            do not fit each other or the resolution.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # A GPU convolves faster in this layout; a CPU takes ten times as long for norms of groups.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    check_base(params)
    where = {"pretrained_model_name_or_path": params.path, "revision": params.revision}
    try:
        scheduler = _scheduler(
            params.path, DDIMScheduler.load_config(**where, subfolder="scheduler")
        )
        models = {
            # What is stored in half precision is used in full.
            name: _loaded(kind, where, name)
            .float()
            .eval()
            .requires_grad_(False)
            .to(device, memory_format=layout)  # no number of a file changes its place
            for name, kind in (
                ("unet", UNet2DConditionModel),
                ("vae", AutoencoderKL),
                ("text_encoder", CLIPTextModel),
            )
        }
        tokenizer = CLIPTokenizer.from_pretrained(**where, subfolder="tokenizer")
    except (OSError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        # The libraries tell in all these ways that weights do not fit their configuration.
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        raise BenchError(
            f"base.path: {params.path!r} could not be loaded ({reason}): download the model to a "
            "folder in diffusers' format and put the folder's path there"
        ) from error
    base = Base(
        path=params.path,
        tokenizer=tokenizer,
        scheduler=scheduler,
        resolution=params.resolution,
        device=device,
        revision=params.revision,
        dtype=arithmetic(device),
        **models,
    )
    _check_parts(base)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # of what is float32 still
        base.store(base.dtype)
    return base


def made_by(base: Base) -> tuple[str, ...]:
    """What rounding depends on beside weights and code: the same gives the same bytes."""
    device = base.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return (str(base.dtype), str(base.stored), device.type, name, torch.__version__)


def _scheduler(path: str, config: dict[str, Any]) -> DDIMScheduler:
    """DDIM with the betas and the prediction type of a base's configuration.

    Raises:
        BenchError: the base predicts neither noise nor velocity.
        KeyError: the configuration has no betas.
    """
    predicts = config.get("prediction_type", NOISE)  # older ones do not say
    if predicts not in (NOISE, VELOCITY):
        raise BenchError(
            f"{path}/scheduler/scheduler_config.json: prediction_type: {predicts!r} is not "
            f"supported: choose a base that predicts {NOISE!r} or {VELOCITY!r}"
        )
    return DDIMScheduler(
        num_train_timesteps=config.get("num_train_timesteps", 1000),
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"],
        trained_betas=config.get("trained_betas"),
        rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
        prediction_type=predicts,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def _check_parts(base: Base) -> None:
    """Finds out whether the components belong together, and can make images of the resolution.

    Raises:
        BenchError: names what does not fit.
    """
    where, unet = f"base.path: {base.path!r}", base.unet.config
    reads, makes = unet.cross_attention_dim, base.text_encoder.config.hidden_size
    if isinstance(reads, int) and reads != makes:
        raise BenchError(
            f"{where}: its unet reads text features of {reads} numbers, and its text_encoder makes "
            f"{makes}: they are parts of different models"
        )
    channels = base.vae.config.latent_channels
    if (unet.in_channels, unet.out_channels) != (channels, channels):
        raise BenchError(
            f"{where}: its unet makes {unet.out_channels} channels of {unet.in_channels}, and "
            f"latents have {channels}: choose a model that makes images of text alone"
        )
    if base.resolution % base.downsampling:
        raise BenchError(
            f"params.yaml: base.resolution: {base.resolution} is no multiple of "
            f"{base.downsampling}, the pixels of a latent pixel of {base.path}"
        )


def _loaded(kind: Any, where: Mapping[str, str | None], name: str) -> Any:
    """A component of a base model with all its weights from the files there."""
    model, found = kind.from_pretrained(
        **where, subfolder=name, use_safetensors=True, output_loading_info=True
    )
    if missing := found["missing_keys"]:  # the libraries fill these with random numbers
        raise ValueError(f"{name} lacks {len(missing)} weights, such as {min(missing)}")
    return model


def check_base(params: BaseParams) -> None:
    """Finds out quickly whether a local base is complete; a hub id is not looked at.

    Raises:
        BenchError: names the missing component, or the revision that a folder cannot have.
    """
    path, folder = params.path, Path(params.path)
    if is_hub_id(path):
        return
    if not folder.is_dir():
        raise BenchError(f"base.path: {path}: no such folder (nor a hub id such as owner/name)")
    if params.revision:
        raise BenchError(
            f"base.revision: {params.revision} is of a hub id, and base.path, {path}, is a folder: "
            "remove it"
        )
    for component in COMPONENTS:
        files = list((folder / component).glob("*.json")) if (folder / component).is_dir() else []
        if not files:
            raise BenchError(f"{folder / component}: the base model lacks its {component}")
        weights = component in ("unet", "vae", "text_encoder")
        if weights and not list((folder / component).glob("*.safetensors")):
            raise BenchError(f"{folder / component}: holds no .safetensors weights")
        for file in files:
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise BenchError(f"{file}: not valid JSON ({error})") from error
            # Weights in several files: what their index names.
            named = content["weight_map"] if file.name.endswith(".index.json") else {}
            for part in sorted(set(named.values())):
                if not (folder / component / part).is_file():
                    raise BenchError(f"{folder / component / part}: missing, {file.name} names it")
