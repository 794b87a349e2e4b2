"""Methods of other people, from the grid to the images: a file, and a package that is installed.

The file's averages the predictions of two adapters, which no adapter alone can do; the package's
has a loss term, a rate and a hyper-parameter of its own.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from dvc.repo import Repo
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from pipeline.bench.cli import app
from pipeline.bench.closure import rooms
from pipeline.bench.pipelines import write_pipelines
from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes, read_tar, write_tar
from pipeline.methods import check_methods, load_method, method_files, registry
from pipeline.models.adapter import Adapter, applied, dense, load_adapter
from pipeline.models.base import Base, load_base
from pipeline.models.crossattn import key_value_names
from pipeline.settings.profile import load_grid, load_params
from tests.pipeline.tiny import RARE_TOKENS, RESOLUTION, training_set, write_base

PROMPT = "a {0} beside a {1}"
MIXTURE = '''
"""On a composition, the mean of what the two concepts' own models predict."""

from contextlib import contextmanager

import torch

from packing import packed, unpacked
from pipeline.methods import How, Method, Needs
from pipeline.models.adapter import applied


class Mean:
    """A session that asks the base once with each adapter."""

    def __init__(self, base, parts):
        self.base, self.parts = base, parts

    def condition(self, texts):
        found = []
        for part in self.parts:
            with applied(self.base, part):
                found.append(self.base.condition(texts))
        return found

    def predict(self, noisy, timesteps, condition):
        total = torch.zeros_like(noisy)
        for part, own in zip(self.parts, condition):
            with applied(self.base, part):
                total += self.base.predict(noisy, timesteps, own)
        return total / len(self.parts)


class Mixture(How):
    def needs(self, concepts):
        return Needs(adapters=tuple(("custom_diffusion", concept) for concept in concepts))

    def make(self, context):
        return packed(context.parts, context.provenance)

    @contextmanager
    def open(self, base, adapter):
        yield Mean(base, unpacked(adapter))


METHOD = Method(single=None, composition=Mixture())
'''
PACKING = '''
"""Several adapters in the file of one."""

from dataclasses import replace

from pipeline.models.adapter import Adapter


def packed(parts, provenance):
    tokens, deltas, references = {}, {}, []
    for place, part in enumerate(parts, 1):
        ((old, row),) = part.tokens.items()
        tokens[f"<new{place}>"] = row
        deltas |= {f"{place}.{name}": delta for name, delta in part.deltas.items()}
        references.append(part.provenance.references[0].replace(old, f"<new{place}>"))
    return Adapter(tokens, deltas, replace(provenance, references=tuple(references)))


def unpacked(adapter):
    return [_part(adapter, f"{place}.") for place in range(1, len(adapter.tokens) + 1)]


def _part(adapter, prefix):
    own = {name: delta for name, delta in adapter.deltas.items() if name.startswith(prefix)}
    deltas = {name.removeprefix(prefix): delta for name, delta in own.items()}
    return Adapter(adapter.tokens, deltas, adapter.provenance)
'''
FAR = '''
"""Custom Diffusion, drawn away from where it starts."""

from dataclasses import dataclass, replace

from pipeline.methods import TOKENS, Method, Trained
from pipeline.methods.custom_diffusion import TRAINED

from .terms import Away


@dataclass(frozen=True)
class Far(Trained):
    def needs(self, concepts):
        found = super().needs(concepts)
        return replace(found, hyper=(*found.hyper, "weight"))

    def make(self, context):
        how = replace(self, penalty=Away(context.hyper.own["weight"]))
        return context.train(how, context.sets)


def rate(name):
    return 5.0 if name == TOKENS else 1.0


MINE = Method(single=replace(Far(**vars(TRAINED)), rate=rate), composition=None)
'''
TERMS = """
class Away:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, step):
        return -self.weight * (step.rows.sum() + sum(d.sum() for d in step.changes.values()))
"""


@pytest.fixture
def lab(project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> Iterator[Path]:
    """The default profile with a small base and two methods of other people; where they lie."""
    packages = tmp_path_factory.mktemp("packages")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.syspath_prepend(str(packages))
    (packages / "their_lab").mkdir()
    (packages / "their_lab/__init__.py").touch()
    (packages / "their_lab/far.py").write_text(FAR)
    (packages / "their_lab/terms.py").write_text(TERMS)
    info = packages / "their_lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[concept_bench.methods]\nfar = their_lab.far:MINE\n")
    (project / "my_lab").mkdir()
    (project / "my_lab/mixture.py").write_text(MIXTURE)
    (project / "my_lab/packing.py").write_text(PACKING)
    write_base(project / "models/tiny")
    yaml, params, grid = YAML(), project / "params.yaml", project / "grid.yaml"
    content = yaml.load(params)
    content["base"] |= {"path": "models/tiny", "resolution": RESOLUTION}
    content["base"]["modifier_token_ids"] = RARE_TOKENS
    content["methods"]["custom_diffusion"] |= {"steps": 3, "learning_rate": 2e-2}
    content["methods"] |= {
        "mixture": {},
        "far": {"learning_rate": 1e-3, "steps": 1, "own": {"weight": 1e6}},
    }
    content["protocol"] = "smoke-v1"
    content["analyses"] = {}
    yaml.dump(content, params)
    content = yaml.load(grid)
    content["methods"] = ["custom_diffusion", "my_lab/mixture.py", "far"]
    content["concepts"] = {name: {"class_noun": name} for name in ("cat", "chair")}
    content["compositions"] = {"cat+chair": {"first": "cat", "second": "chair"}}
    content["sequences"], content["sequence_concepts"] = {}, {}
    yaml.dump(content, grid)
    (project / "datasets/prompts/cat+chair.txt").write_text(PROMPT)
    (project / "datasets/prompts/cat.txt").write_text("a {} in the snow")
    for seed, name in enumerate(("cat", "chair")):
        write_shard(name, seed)
    yield packages
    for module in ("their_lab", "their_lab.far", "their_lab.terms", "packing"):
        sys.modules.pop(module, None)


def write_shard(concept: str, seed: int) -> None:
    drawn = training_set(concept, concept, seed)
    samples = [("target", image, "") for image in drawn.targets]
    samples += list(zip(["regularization"] * 5, drawn.regularization, drawn.captions))
    samples += [("held_out", drawn.targets[0], f"a {concept}")]
    for folder in ("shards", "regularization"):
        write_tar(
            Path("runs/toyland", folder, f"{concept}.tar"),
            [
                {
                    "__key__": f"{part}-{i:04d}",
                    "png": png_bytes(image),
                    "txt": text,
                    "json": {"part": part},
                }
                for i, (part, image, text) in enumerate(samples)
            ],
        )


def bench(*arguments: str) -> Result:
    result = CliRunner().invoke(app, [*arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def averaged_image(base: Base, parts: list[Adapter], prompt: str, seed: int) -> np.ndarray:
    """DDIM with the mean of the predictions of models that the adapters were written into."""
    params = load_params().sampler(2)
    models = []
    for part in parts:
        model = load_base(load_params().base, torch.device("cpu"))
        with torch.no_grad():
            for name, weight in model.unet.named_parameters():
                if name in part.deltas:
                    weight.add_(dense(part.deltas[name]))
        with model.texts.modifier_tokens(part.tokens):
            models.append((model.unet, model.condition(["", prompt]).text))
    scheduler = DDIMScheduler.from_config(base.scheduler.config)
    scheduler.set_timesteps(params.steps)
    generator = torch.Generator().manual_seed(seed)
    shape = (1, *base.latent_shape)
    latents = torch.randn(shape, generator=generator)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            both = [
                unet(latents.repeat(2, 1, 1, 1), timestep, text).sample for unet, text in models
            ]
            without, given = (torch.stack(both).mean(0)[i : i + 1] for i in (0, 1))
            guided = without + params.guidance_scale * (given - without)
            noise = torch.randn(shape, generator=generator) if params.eta else None
            latents = scheduler.step(
                guided, timestep, latents, eta=params.eta, variance_noise=noise
            ).prev_sample
        pixels = base.vae.decode(latents / base.vae.config.scaling_factor).sample
    return ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()


def test_a_file_in_the_grid_is_trained_and_sampled_with_its_own_session(lab: Path) -> None:
    write_pipelines(["toyland"])
    for concept in ("cat", "chair"):
        bench("train", "custom_diffusion", concept)
    bench("train", "mixture", "cat+chair")
    bench("sample", "mixture", "cat+chair")
    cells, base = Path("runs/toyland/cells"), load_base(load_params().base, torch.device("cpu"))
    made = load_adapter(cells / "mixture/cat+chair/adapter.safetensors")
    assert made.provenance.references == ("<new1> cat", "<new2> chair")
    with pytest.raises(BenchError, match="does not fit the base"), applied(base, made):
        pass
    parts = [
        load_adapter(cells / f"custom_diffusion/{c}/adapter.safetensors") for c in ("cat", "chair")
    ]
    parts = [Adapter(made.tokens, part.deltas, part.provenance) for part in parts]
    (image,) = read_tar(cells / "mixture/cat+chair/samples.tar")
    ours = np.asarray(Image.open(io.BytesIO(image["png"]))).astype(float)
    assert image["json"]["prompt"] == "a <new1> cat beside a <new2> chair"
    wanted = (base, parts, image["json"]["prompt"], image["json"]["seed"])
    assert np.abs(ours - averaged_image(*wanted)).max() <= 1
    for one in parts:
        assert np.abs(ours - averaged_image(base, [one], *wanted[2:])).max() > 5


def test_a_package_with_an_entry_point_is_trained_and_sampled(lab: Path) -> None:
    write_pipelines(["toyland"])
    bench("train", "far", "cat")
    bench("sample", "far", "cat")
    cell = Path("runs/toyland/cells/far/cat")
    assert len(read_tar(cell / "samples.tar")) == 2  # a prompt and a caption
    adapter, base = load_adapter(cell / "adapter.safetensors"), load_base(load_params().base)
    assert set(adapter.deltas) == set(key_value_names(base.unet))
    # Up by the rate, which is five times that of the weights for tokens, less the decay.
    rate, decay = 1e-3, load_params().train.weight_decay
    weights = dict(base.unet.named_parameters())
    for name, delta in adapter.deltas.items():
        torch.testing.assert_close(delta, rate - rate * decay * weights[name], rtol=1e-4, atol=1e-7)
    row = base.texts.embedding_row(RARE_TOKENS[0])
    change = adapter.tokens["<new1>"] - row
    torch.testing.assert_close(change, 5 * (rate - rate * decay * row), rtol=1e-3, atol=1e-6)


def test_dvc_watches_what_methods_are_made_of_and_what_they_need(lab: Path) -> None:
    write_pipelines(["toyland"])
    with Repo.init(no_scm=True) as repo:
        stages = {stage.addressing: stage for stage in repo.index.stages}

    def deps(stage: str) -> dict[str, Any]:
        return {str(dep): dep for dep in stages[stage].deps}

    assert "cells/far/dvc.yaml:train_composition@cat+chair" not in stages
    theirs = [str(lab / "their_lab" / name) for name in ("__init__.py", "far.py", "terms.py")]
    for stage, files in (
        ("mixture/dvc.yaml:{}_composition@cat+chair", ["my_lab/mixture.py", "my_lab/packing.py"]),
        ("far/dvc.yaml:{}@cat", theirs),
    ):
        for kind in ("train", "sample"):
            found = deps(f"cells/{stage.format(kind)}")
            for file in files:
                found[file].save()
                assert not found[file].status()
                before = Path(file).read_text()
                Path(file).write_text(f"{before}# changed")
                assert found[file].status()
                Path(file).write_text(before)
    found = deps("cells/mixture/dvc.yaml:train_composition@cat+chair")
    parts = [f"runs/toyland/cells/custom_diffusion/{c}" for c in ("cat", "chair")]
    made = {f"{part}/adapter.safetensors" for part in parts}
    assert {path for path in found if path.startswith("runs/")} == made
    found = deps("cells/far/dvc.yaml:train@cat")
    assert {path for path in found if path.startswith("runs/")} == {"runs/toyland/shards/cat.tar"}
    assert "pipeline/methods/custom_diffusion.py" in found


def test_a_hyper_parameter_of_its_own_is_asked_for(lab: Path, settings) -> None:
    settings(methods={"far": {"learning_rate": 1e-3, "steps": 1}})
    with pytest.raises(BenchError, match=r"params\.yaml: methods\.far: needs own\.weight$"):
        bench("train", "far", "cat")


def rename(old: str, new: str, file: str = "grid.yaml") -> None:
    path = Path(file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_methods_that_are_nowhere_or_twice_are_refused(lab: Path) -> None:
    for old, new, message in (
        ("- far", "- fra", "method 'fra' is unknown: choose one of .*, textual_inversion, far, or"),
        (
            "my_lab/mixture.py",
            "my_lab/mix.py",
            "method 'mix': my_lab/mix.py: no such file: correct",
        ),
        (
            "my_lab/mixture.py",
            "my_lab/lora.py",
            "method 'lora' is in my_lab/lora.py and in this pr",
        ),
        ("my_lab/mixture.py", "my_lab/far.py", "'far' is there twice: remove one"),
        ("my_lab/mixture.py", "my_lab/oracle.py", "method 'oracle': the real images are called so"),
        (
            "my_lab/mixture.py",
            "my_lab/my method.py",
            "my_lab/my method.py: method 'my method': needs",
        ),
    ):
        rename(old, new)
        for command in (("table",), ("pipelines", "--profile", "toyland")):
            with pytest.raises(BenchError, match=rf"^grid\.yaml: methods: {message}") as error:
                bench(*command)
            assert "\n" not in str(error.value)
        rename(new, old)
    rename("far = ", "pretrained = ", str(lab / "their_lab-1.0.dist-info/entry_points.txt"))
    rename("- far", "- pretrained")
    with pytest.raises(
        BenchError, match="'pretrained' is in this project and in the package of the"
    ):
        check_methods(load_grid(), "toyland")


def test_a_method_whose_parts_nobody_makes_is_refused(lab: Path) -> None:
    rename("- custom_diffusion\n", "- pretrained\n")
    message = (
        "^grid.yaml: methods: mixture is made of adapters of custom_diffusion: add custom_diff"
    )
    with pytest.raises(BenchError, match=message):
        write_pipelines(["toyland"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("METHOD = 3", "defines no Method called METHOD: write METHOD = Method"),
        ("", "defines no Method called METHOD"),
        ("\nimport nothing_such", r"could not be imported \(ModuleNotFoundError: .* at line 2 of "),
        ("def", r"could not be imported \(SyntaxError: "),
    ],
)
def test_files_that_are_no_methods_are_told(lab: Path, text: str, message: str) -> None:
    Path("my_lab/broken.py").write_text(text)
    rename("mixture.py", "broken.py")
    with pytest.raises(BenchError, match=f"^method 'broken': my_lab/broken.py {message}"):
        load_method("broken", load_grid())


def test_files_of_a_method_are_those_that_it_imports_of_its_own(lab: Path) -> None:
    def found(name: str, where: Path) -> list[str]:
        return [file.relative_to(where).as_posix() for file in method_files(name, load_grid())]

    here = Path.cwd().resolve()
    assert found("mixture", here) == ["my_lab/mixture.py", "my_lab/packing.py"]
    package = [f"their_lab/{name}.py" for name in ("far", "__init__", "terms")]
    assert found("far", lab.resolve()) == package
    code = Path(registry.__file__).parents[2]
    assert found("lora_kv", code) == ["pipeline/methods/lora_kv.py"]
    # What a function imports, and of packages what makes them packages.
    Path("my_lab/packing.py").write_text(f"{PACKING}\ndef late():\n    from tools.seen import a\n")
    Path("my_lab/tools").mkdir()
    for name in ("__init__", "seen", "unseen"):
        Path(f"my_lab/tools/{name}.py").touch()
    tools = ["my_lab/tools/__init__.py", "my_lab/tools/seen.py"]
    assert found("mixture", here) == ["my_lab/mixture.py", "my_lab/packing.py", *tools]


def test_rooms_that_a_file_imports_from_are_dependencies(lab: Path) -> None:
    path = Path("my_lab/packing.py")
    assert "pipeline/exchange" not in rooms([], method_files("mixture", load_grid()))
    path.write_text(f"from pipeline.exchange.compression import compress\n{PACKING}")
    found = rooms([], method_files("mixture", load_grid()))
    assert {"pipeline/exchange", "pipeline/models", "pipeline/methods/answers.py"} <= set(found)
    assert not any("my_lab" in room for room in found)
    found = rooms([], method_files("lora_kv", load_grid()))
    methods = [room for room in found if room.startswith("pipeline/methods/")]
    names = "__init__ answers custom_diffusion lora_kv method registry seeds".split()
    assert methods == [f"pipeline/methods/{name}.py" for name in names]
