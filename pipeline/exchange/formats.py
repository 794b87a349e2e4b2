"""Adapters in other programs' layouts: three of diffusers and the official code's.

| layout | files |
|---|---|
| `custom-diffusion` | `pytorch_custom_diffusion_weights.safetensors`, one file for each token |
| `textual-inversion` | `learned_embeds.safetensors`, or one file for each of several tokens |
| `lora` | `pytorch_lora_weights.safetensors`, one file for each token |
| `official` | `delta.bin` and, as a pickle is never read here, `delta.safetensors` |

`custom-diffusion` and `official` hold weights, not changes of weights. What is written is what
the sampler uses; reading it back finds changes that give these very bits.

A file of a token is `{token: row}`. Of a base with two text encoders it holds a row for each, by
the names that diffusers' examples have for Stable Diffusion XL's; the token is the file's name.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.common.failures import refuse_failed
from pipeline.common.files import atomic, check_new
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.concepts.concept import checked_noun
from pipeline.models.adapter import (
    FORMAT,
    Adapter,
    Delta,
    LowRank,
    Provenance,
    applied,
    load_adapter,
    save_adapter,
)
from pipeline.models.base import Base, load_base
from pipeline.models.crossattn import key_value_names
from pipeline.models.tokens import natural_order
from pipeline.settings.profile import load_params

MADE_FOR = "concept-bench-base"  # the metadata entry with the hash of the base
LORA_SETTINGS = "lora_adapter_metadata"  # where diffusers' trainers put alpha and rank
CPU = torch.device("cpu")  # where a base's weights are as exact as its files
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKEN = re.compile(r"[^\s/\\]+")  # also a file name
ENCODERS = ("clip_l", "clip_g")  # of Stable Diffusion XL, in files of tokens

# What a key is, and the name of the UNet's parameter or the token that its groups make.
KEYS = (
    ("down", re.compile(r"unet\.(.+)\.(?:lora_A|lora\.down)(\.weight)")),
    ("up", re.compile(r"unet\.(.+)\.(?:lora_B|lora\.up)(\.weight)")),
    ("weight", re.compile(r"(.+)\.processor(\.to_(?:k|v|q|out))_custom_diffusion(\..+)")),
    ("token", re.compile(r"modifier_token\.(.+)")),
    ("weight", re.compile(r"unet\.(.+)")),
)

Tensors = dict[str, Tensor]


def export_adapter(adapter: Adapter, base: Base, layout: str, folder: str | Path) -> list[Path]:
    """Writes the adapter in another program's layout.

    Args:
        base: what the adapter was made for; in the end its weights are what they were.
        layout: a key of `LAYOUTS`.
        folder: made if need be; what is in it is left alone.

    Returns:
        The files.

    Raises:
        BenchError: the layout is unknown or has no place for what the adapter changes, the
            adapter does not fit the base, or one of the files is there already.
    """
    _check_layout(layout)
    if any(row.ndim > 1 for row in adapter.tokens.values()):
        raise BenchError(
            f"{_label(adapter)} has tokens that differ by layer, which no other layout has a place "
            "for: keep the adapter's own file"
        )
    with applied(base, adapter):
        files = LAYOUTS[layout](adapter, base)
    for name in files:
        check_new(Path(folder) / name)
    for name, tensors in files.items():
        with atomic(Path(folder) / name) as temporary:
            if name.endswith(".bin"):
                temporary.write_bytes(_pickled(tensors, base.texts.widths))
            else:
                save_file(tensors, temporary, {MADE_FOR: base.hash})
    return [Path(folder) / name for name in files]


def _check_layout(name: str) -> None:
    if name not in LAYOUTS:
        raise BenchError(f"layout {name!r} is unknown: choose one of {', '.join(LAYOUTS)}")


def import_adapter(path: str | Path, base: Base, subject: str, nouns: Sequence[str]) -> Adapter:
    """Reads an adapter from another program's safetensors files, of any layout that is written.

    Each weight that the files hold becomes the float32 change that gives its very bits when added
    to the base's; where there is none, the nearest, off by at most 2^-23 of the change. There is
    always one for what `export_adapter` wrote. Weights equal to the base's are left out. Low ranks
    stay as they are.

    Args:
        path: a file, or a folder all of whose safetensors files belong to the adapter.
        base: what the files were made for.
        subject: what it was taught, for its provenance.
        nouns: the class noun of each token, in the order of the sorted tokens
            (`<new10>` after `<new2>`).

    Raises:
        BenchError: a file is missing, corrupt, a pickle, of an unknown layout or for another
            base; a key, shape, value or token that does not fit; too few or too many nouns.
    """
    parts: dict[str, dict[str, _Part]] = {"weight": {}, "up": {}, "down": {}, "token": {}}
    for file in _files(Path(path)):
        for kind, name, part in _parts(file, base):
            other = parts[kind].setdefault(name, part)
            if other is not part:
                raise part.error(f"is also in {other.file}: import the files of one layout")
    deltas = _changes(parts["weight"], base) | _low_ranks(parts, base)
    rows = parts["token"]
    tokens = {name: _row(name, rows[name], base) for name in sorted(rows, key=natural_order)}
    if not deltas and not tokens:
        raise BenchError(f"{path}: changes nothing: no token, and all weights are the base's")
    references = _references(path, list(tokens), nouns)
    return Adapter(
        tokens, deltas, Provenance("imported", subject, base.path, base.hash, references)
    )


def export_file(
    source: str | Path, layout: str, folder: str | Path, profile: str = DEFAULT_PROFILE
) -> None:
    """Exports an adapter's file with the profile's base and prints what was written."""
    _check_layout(layout)
    adapter = load_adapter(source)
    for path in export_adapter(adapter, load_base(load_params(profile).base, CPU), layout, folder):
        print(f"export: {path}")


def import_file(
    source: str | Path,
    target: str | Path,
    subject: str,
    nouns: Sequence[str],
    profile: str = DEFAULT_PROFILE,
) -> None:
    """Imports a file or folder with the profile's base into an adapter's file; tells what it did.

    Raises:
        BenchError: as `import_adapter`, and a class noun of other than words.
    """
    nouns = [checked_noun(noun, "--class") for noun in nouns]
    files = _files(Path(source))
    for pickle in _pickles(Path(source)):
        print(f"import: {pickle}: a pickle, which is never read: ignored beside {files[0].name}")
    adapter = import_adapter(source, load_base(load_params(profile).base, CPU), subject, nouns)
    save_adapter(adapter, target)
    named = ", ".join(adapter.provenance.references)
    print(f"import: {named}: {len(adapter.deltas)} changed weights -> {target}")


# --- Writing: the files of each layout, by name. The adapter is applied to the base meanwhile.


def _custom_diffusion(adapter: Adapter, base: Base) -> dict[str, Tensors]:
    weights = _keys_and_values(adapter, base)
    tensors = {
        re.sub(r"\.to_([kv])\.weight$", r".processor.to_\1_custom_diffusion.weight", name): weight
        for name, weight in weights.items()
    }
    # diffusers' loader wants each attention layer named, and takes empty for unchanged.
    changed = {key.split(".to_")[0] for key in tensors}
    tensors |= {name: torch.zeros(0) for name in base.unet.attn_processors if name not in changed}
    return {"pytorch_custom_diffusion_weights.safetensors": tensors, **_token_files(adapter, base)}


def _textual_inversion(adapter: Adapter, base: Base) -> dict[str, Tensors]:
    if adapter.deltas or not adapter.tokens:
        has = "changes weights" if adapter.deltas else "has no token"
        raise BenchError(f"{_label(adapter)} {has}: layout textual-inversion holds tokens alone")
    files = _token_files(adapter, base)
    # The name that diffusers looks for; a file can hold no more than one.
    if len(files) == len(base.texts.models) == 1:
        return {"learned_embeds.safetensors": next(iter(files.values()))}
    return files


def _lora(adapter: Adapter, base: Base) -> dict[str, Tensors]:
    low: dict[str, LowRank] = {}
    for name, delta in adapter.deltas.items():
        if isinstance(delta, LowRank):
            low[name] = delta
        elif delta.ndim == 2:
            raise BenchError(
                f"{_label(adapter)} has a dense change of {name}, and layout lora holds low ranks "
                "alone: run `bench adapter compress` first, with a rank or a share below 1"
            )
        else:
            raise BenchError(
                f"{_label(adapter)} changes {name} {list(delta.shape)}, and layout lora holds "
                "matrices alone: keep the adapter's own file"
            )
    if not low:
        raise BenchError(f"{_label(adapter)} changes no weights: export as textual-inversion")
    # diffusers takes one module's rank as the scale of all, so all get the same: zeros add nothing.
    rank = max(delta.down.shape[0] for delta in low.values())
    tensors: Tensors = {}
    for name, delta in low.items():
        module, more = name.removesuffix(".weight"), rank - delta.down.shape[0]
        tensors[f"unet.{module}.lora_A.weight"] = F.pad(_copy(delta.down), (0, 0, 0, more))
        tensors[f"unet.{module}.lora_B.weight"] = F.pad(_copy(delta.up), (0, more))
    return {"pytorch_lora_weights.safetensors": tensors, **_token_files(adapter, base)}


def _official(adapter: Adapter, base: Base) -> dict[str, Tensors]:
    tensors = {f"unet.{name}": weight for name, weight in _keys_and_values(adapter, base).items()}
    tensors |= {f"modifier_token.{token}": _copy(row) for token, row in adapter.tokens.items()}
    return {"delta.bin": tensors, "delta.safetensors": tensors}


LAYOUTS: dict[str, Callable[[Adapter, Base], dict[str, Tensors]]] = {
    "custom-diffusion": _custom_diffusion,
    "textual-inversion": _textual_inversion,
    "lora": _lora,
    "official": _official,
}


def _keys_and_values(adapter: Adapter, base: Base) -> Tensors:
    """All keys and values of cross-attention [out, in], changed or not."""
    names = key_value_names(base.unet)
    others = [name for name in adapter.deltas if name not in names]
    if others:
        raise BenchError(
            f"{_label(adapter)} changes {len(others)} weights, such as {others[0]}, that this "
            "layout has no place for, as it holds keys and values of cross-attention alone: keep "
            "the adapter's own file, or compress it and export it as lora if all are matrices"
        )
    weights = dict(base.unet.named_parameters())
    return {name: _copy(weights[name]) for name in names}


def _token_files(adapter: Adapter, base: Base) -> dict[str, Tensors]:
    """A file for each token."""
    for token in adapter.tokens:
        if not TOKEN.fullmatch(token):
            raise BenchError(f"{_label(adapter)}: token {token!r} cannot be a file's name")
    files = {}
    for token, row in adapter.tokens.items():
        rows = [_copy(part)[None] for part in row.split(base.texts.widths)]
        names = ENCODERS if len(rows) > 1 else (token,)
        files[f"{token}.safetensors"] = dict(zip(names, rows, strict=True))
    return files


def _pickled(tensors: Tensors, widths: Sequence[int]) -> bytes:
    """`part.name` keys as a dict for each part, in the official code's file format.

    A token is its row, or a list of one for each text encoder, of these widths.
    """
    content: dict[str, dict[str, Tensor | list[Tensor]]] = {"unet": {}, "modifier_token": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        several = part == "modifier_token" and len(widths) > 1
        content[part][name] = [_copy(p) for p in tensor.split(widths)] if several else tensor
    buffer = io.BytesIO()  # to a path, it would put the temporary file's name into the file
    torch.save(content, buffer)
    return buffer.getvalue()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().float().contiguous().clone()


def _label(adapter: Adapter) -> str:
    return f"adapter {adapter.provenance.method}/{adapter.provenance.subject}"


# --- Reading: files -> parts -> tokens and changes.


@dataclass(frozen=True)
class _Part:
    """One tensor of a file: float32 and finite."""

    file: Path
    key: str
    tensor: Tensor

    def error(self, message: str) -> BenchError:
        return BenchError(f"{self.file}: {self.key}: {message}")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BenchError(f"{path}: no such file or folder")
    if files := sorted(path.glob("*.safetensors")):
        return files
    if pickles := _pickles(path):
        raise _pickle(pickles[0])
    raise BenchError(f"{path}: holds no .safetensors file")


def _pickles(path: Path) -> list[Path]:
    """The pickles in a folder; none if it is a file."""
    return sorted(p for p in path.glob("*") if p.suffix in PICKLES)


def _pickle(file: Path) -> BenchError:
    return BenchError(
        f"{file}: is a pickle, which can run code when it is opened: convert it to safetensors as "
        "docs/adapters.md shows and import that"
    )


def _read(file: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a safetensors file, and its metadata."""
    refuse_failed(file)
    try:
        with safe_open(file, "pt") as opened:
            keys: list[str] = list(opened.keys())
            return {key: opened.get_tensor(key) for key in keys}, opened.metadata() or {}
    except SafetensorError as error:
        with open(file, "rb") as stream:
            start = stream.read(4)
        # What torch.save begins with, now and before it wrote zip archives.
        if start.startswith((b"PK\x03\x04", b"\x80")) or file.suffix in PICKLES:
            raise _pickle(file) from error
        raise BenchError(f"{file}: not a readable safetensors file ({error})") from error
    except OSError as error:
        raise BenchError(f"{file}: could not be read: {error.strerror or error}") from error


def _parts(file: Path, base: Base) -> list[tuple[str, str, _Part]]:
    """What the file's tensors are: (kind, name of the parameter or the token, tensor)."""
    tensors, metadata = _read(file)
    if tensors.keys() == set(ENCODERS):
        row = torch.cat([tensors[name].flatten() for name in ENCODERS])
        tensors = {f"modifier_token.{file.stem}": row}
    if FORMAT in metadata.get("adapter", ""):
        raise BenchError(f"{file}: is an adapter of this project: use it as it is")
    if metadata.get(MADE_FOR, base.hash) != base.hash:
        raise BenchError(
            f"{file}: was made for base {metadata[MADE_FOR]}, not for {base.path} ({base.hash}): "
            "import it with the base it was made for"
        )
    scale = _lora_scale(file, metadata)
    parts = []
    for key, tensor in tensors.items():
        if key.endswith(".processor") and not tensor.numel():
            continue  # an attention layer without changes
        part = _Part(file, key, tensor.float())
        if not tensor.is_floating_point() or not part.tensor.isfinite().all():
            raise part.error("holds what is not a finite floating-point number: export it again")
        matches = ((kind, pattern.fullmatch(key)) for kind, pattern in KEYS)
        kind, name = next(((k, "".join(m.groups())) for k, m in matches if m), ("", ""))
        if not kind and len(tensors) == 1:
            kind, name = "token", key  # Textual Inversion's file: nothing but {token: row}
        if not kind:
            raise part.error(
                f"belongs to none of the layouts {', '.join(LAYOUTS)}: remove it, or convert the "
                "file as docs/adapters.md shows"
            )
        if kind == "up" and scale != 1:
            part = _Part(file, key, part.tensor * scale)
        parts.append((kind, name, part))
    return parts


def _lora_scale(file: Path, metadata: dict[str, str]) -> float:
    """What a LoRA file's products are multiplied by: alpha / rank, 1 if it does not say."""
    try:
        settings = json.loads(metadata.get(LORA_SETTINGS, "{}"))
        ratio = settings.get("unet.lora_alpha", 1) / settings.get("unet.r", 1)
    except (ValueError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise BenchError(f"{file}: metadata {LORA_SETTINGS}: cannot be read ({error})") from error
    for name in ("alpha_pattern", "rank_pattern", "use_dora", "use_rslora"):
        if settings.get(f"unet.{name}"):
            raise BenchError(
                f"{file}: metadata {LORA_SETTINGS}: unet.{name} is not supported: fuse it into "
                "plain LoRA matrices of one rank first"
            )
    if not math.isfinite(ratio):
        raise BenchError(f"{file}: metadata {LORA_SETTINGS}: alpha / rank is {ratio}")
    return float(ratio)


def _original(name: str, part: _Part, base: Base, shape: tuple[int, ...]) -> Tensor:
    """The base's weight that this part is about."""
    weight = dict(base.unet.named_parameters()).get(name)
    if weight is None:
        raise part.error(f"the base {base.path} has no weight {name}: import it with its own base")
    if weight.shape != shape:
        raise part.error(
            f"is for a weight {list(shape)}, and {name} of the base {base.path} is "
            f"{list(weight.shape)}: import it with the base it was made for"
        )
    return weight.detach().cpu()


def _changes(parts: dict[str, _Part], base: Base) -> dict[str, Delta]:
    """Weights as changes; none for a weight that is the base's."""
    changes: dict[str, Delta] = {}
    for name, part in sorted(parts.items()):
        original = _original(name, part, base, tuple(part.tensor.shape))
        change = difference(part.tensor, original)
        if change.any():
            changes[name] = change
    return changes


def difference(weight: Tensor, original: Tensor) -> Tensor:
    """The float32 change for which `original + change` is `weight`, to the bit.

    There is one wherever `weight` came from such a sum: the rounded difference, or, in rare ties,
    a neighbour of it. Where there is none, which takes a weight much smaller than the original,
    it is the rounded difference.
    """
    change = weight - original
    for end in (-math.inf, math.inf):
        neighbour = torch.nextafter(change, torch.tensor(end))
        better = (original + change != weight) & (original + neighbour == weight)
        change = torch.where(better, neighbour, change)
    return change


def _low_ranks(parts: dict[str, dict[str, _Part]], base: Base) -> dict[str, Delta]:
    """Pairs of matrices as changes, without the rows and columns of zeros that fill a rank up."""
    ups, downs = parts["up"], parts["down"]
    changes: dict[str, Delta] = {}
    for name in sorted({*ups, *downs}):
        if name not in ups or name not in downs:
            lone, half = (ups[name], "down") if name in ups else (downs[name], "up")
            raise lone.error(f"has no matrix for {half} beside it: export it again")
        if name in parts["weight"]:
            raise ups[name].error(
                f"{name} is also in {parts['weight'][name].file}: import the files of one layout"
            )
        up, down = ups[name].tensor, downs[name].tensor
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise ups[name].error(
                f"{list(up.shape)} does not fit {downs[name].key} {list(down.shape)}: only "
                "matrices [out, rank] and [rank, in] can be imported"
            )
        _original(name, ups[name], base, (up.shape[0], down.shape[1]))
        used = (up.any(0) | down.any(1)).nonzero()
        rank = int(used.max()) + 1 if len(used) else 0
        if rank:
            changes[name] = LowRank(up[:, :rank].contiguous(), down[:rank].contiguous())
    return changes


def _row(token: str, part: _Part, base: Base) -> Tensor:
    """A token's embedding [d]."""
    width = base.texts.width
    if tuple(part.tensor.shape) not in ((width,), (1, width)):
        raise part.error(
            f"{list(part.tensor.shape)} is no embedding of the base {base.path}, which are "
            f"[{width}] or [1, {width}]: import it with the base it was made for"
        )
    tokenizer = base.texts.tokenizer
    vocabulary, size = tokenizer.get_vocab(), tokenizer.vocab_size
    # Ids behind the vocabulary belong to tokens that adapters added.
    is_word = any(vocabulary.get(word, size) < size for word in (token, f"{token}</w>"))
    if is_word or not TOKEN.fullmatch(token):
        raise part.error("is a word or cannot be a token: rename it, to `<new1>` for example")
    return part.tensor.reshape(width)


def _references(path: str | Path, tokens: list[str], nouns: Sequence[str]) -> tuple[str, ...]:
    """What stands for each concept in a prompt."""
    if not tokens and nouns:
        return tuple(nouns)
    if len(nouns) != len(tokens) or not nouns:
        raise BenchError(
            f"{path}: has the tokens {', '.join(tokens) or '(none)'} and was given the class "
            f"nouns {', '.join(nouns) or '(none)'}: give one for each token, in this order"
        )
    return tuple(f"{token} {noun}" for token, noun in zip(tokens, nouns))
