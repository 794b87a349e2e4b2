"""What a profile needs: found, missing or wrong, each with what to do about it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pipeline.adding.add import add_concept
from pipeline.adding.lengths import clip_tokenizer
from pipeline.bench import disk
from pipeline.bench import doctor as module
from pipeline.bench.doctor import Check, doctor, examine
from pipeline.bench.pipelines import write_pipelines
from pipeline.common.errors import BenchError
from pipeline.methods import load_method
from pipeline.models.layout import LAYOUTS, Layout
from pipeline.settings.profile import load_grid, load_params

ROOT = Path(__file__).parents[3]
V1_UNET = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
XL_UNET = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REPOSITORY = "CompVis/stable-diffusion-v1-4"


def check(what: str, profile: str = "toyland") -> Check:
    return next(c for c in examine(profile) if c.what == what)


def write_weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.arange(6.0), "b": np.zeros((2, 3), np.float16)}, path)
    return path


def write_base(folder: Path, layout: Layout = LAYOUTS[None]) -> None:
    for component, files in module.base_files(layout).items():
        for file in files:
            path = folder / component / file
            if path.suffix == ".safetensors":
                write_weights(path)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")


def test_the_default_profile_is_ready_as_it_ships(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert doctor() == 0
    *table, _, last = capsys.readouterr().out.splitlines()
    assert last == "ready: `dvc repro`"
    column = table[0].index("state")
    assert all(line[column:].startswith(("state", "ready")) for line in table)
    assert all(line[column - 2 : column] == "  " for line in table)
    whats = [line[:column].strip() for line in table]
    for name in load_grid().concepts:
        assert f"concept {name}" in whats and f"captions for {name}" in whats


def test_every_thing_that_is_missing_has_a_line_that_says_where_to_get_it(
    project, monkeypatch, capsys
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(project / "hub"))
    assert doctor("paper") == 1
    *table, _, last = capsys.readouterr().out.splitlines()
    missing = [line for line in table if " missing " in line]
    assert last == f"{len(missing)} of {len(table) - 1} are missing or wrong"
    text = "\n".join(missing)
    for part in (
        f"`hf download {REPOSITORY} unet/config.json unet/diffusion_pytorch_model.safetensors "
        f"--revision {load_params('paper').base.revision}`",
        "`hf download timm/vit_base_patch32_clip_224.openai open_clip_model.safetensors`",
        f"{module.INCEPTION_URL} to data/inception-2015-12-05.pt (SHA-256 f58cb9b6",
        "columns URL and TEXT at data/laion/urls.parquet",
        '`bench concept add wooden_pot_photo IMAGES --class "wooden pot" --profile paper`',
        "write datasets/prompts/cat_photo+chair_photo.txt",
    ):
        assert part in text


def test_dino_is_wanted_by_its_metric_and_is_a_whole_safetensors_file(project, settings):
    what = "DINO of image-alignment"
    assert not [c for c in examine("toyland") if c.what == what]
    settings(protocol={"score": {"metrics": ["dino_image_alignment"]}})
    assert check(what).state == "missing"
    for name, state in (("d.pth", "wrong"), ("d.safetensors", "ready")):
        path = project / "data" / name
        settings(score={"dino": str(path)})
        assert f"download {module.DINO_URL} to {path}" in check(what).note
        write_weights(path)
        assert check(what).state == state
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated" in check(what).note


def test_clip_is_looked_for_where_open_clip_would_put_it(project, monkeypatch, settings):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(project / "hub"))
    settings(retrieve={"clip": "ViT-B-32-quickgelu/nowhere"})
    assert check("CLIP of retrieve.clip").state == "wrong"
    assert "openai" in check("CLIP of retrieve.clip").note
    settings(retrieve={"clip": "models/own/clip"}, protocol={"score": {"clip": "models/own/clip"}})
    both = "CLIP of retrieve.clip and score.clip"
    assert check(both).state == "missing"
    write_weights(project / "models/own/clip/open_clip_model.safetensors")
    (project / "models/own/clip/open_clip_config.json").write_text("{}")
    assert check(both).state == "ready"


def test_a_local_base_is_complete_whole_and_readable(project, settings):
    settings(base={"path": "models/own/base"})
    assert check("base model").state == "missing"
    write_base(project / "models/own/base")
    components = [c for c in examine("toyland") if c.what.startswith("base model")]
    assert [c.state for c in components] == ["ready"] * 5
    weights = project / "models/own/base/unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for content, fault in (
        (whole[:-1], "truncated"),
        (whole + b"0", "truncated"),
        (b"", "not a safetensors file"),
        (b"version https://git-lfs", "not a safetensors file"),
    ):
        weights.write_bytes(content)
        found = check("base model: unet")
        assert found.state == "wrong", content
        assert f"{weights.relative_to(project)}: {fault}" in found.note
    weights.unlink()
    assert check("base model: unet").state == "missing"
    (project / "models/own/base/vae/config.json").write_text("{")
    assert "not valid JSON" in check("base model: vae").note


def test_a_base_with_two_text_encoders_has_more_parts(project, monkeypatch, settings):
    """Its UNet's configuration tells, of a folder as of the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(project / "hub"))
    layout, folder = LAYOUTS["text_time"], project / "models/own/base"
    write_base(folder, layout)
    (folder / "unet/config.json").write_text(json.dumps(XL_UNET))
    settings(base={"path": "models/own/base"})
    states = {c.what: c.state for c in examine("toyland") if c.what.startswith("base model")}
    parts = ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
    assert list(states) == [f"base model: {part}" for part in (*parts, "scheduler", "index")]
    assert [what for what, state in states.items() if state != "ready"] == ["base model: index"]
    assert "models/own/base lacks model_index.json" in check("base model: index").note
    (folder / "model_index.json").write_text("{}")
    assert check("base model: index").state == "ready"
    (folder / "text_encoder_2/model.safetensors").unlink()
    assert check("base model: text_encoder_2").state == "missing"
    (folder / "unet/config.json").write_text('{"addition_embed_type": "image"}')
    assert "addition_embed_type: 'image' is not supported" in check("base model").note

    snapshot = project / "hub" / "models--owner--xl" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    settings(base={"path": "owner/xl", "revision": "0123"})
    assert not [c for c in examine("toyland") if c.what == "base model: tokenizer_2"]
    (snapshot / "unet").mkdir()
    (snapshot / "unet/config.json").write_text(json.dumps(XL_UNET))
    found = check("base model: tokenizer_2")
    assert found.state == "missing"
    assert "`hf download owner/xl tokenizer_2/vocab.json " in found.note
    assert "tokenizer_2/special_tokens_map.json --revision 0123`" in found.note
    assert "`hf download owner/xl model_index.json " in check("base model: index").note


def test_a_folder_has_no_revision(project, settings):
    write_base(project / "models/own/base")
    settings(base={"path": "models/own/base", "revision": "0123"})
    found = check("base model: revision")
    assert found.state == "wrong"
    assert found.note.endswith("models/own/base is a folder, which has none: remove it")


def test_a_downloaded_base_is_compared_with_the_digests_of_the_hub(project, monkeypatch, settings):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(project / "hub"))
    settings(base={"path": REPOSITORY, "resolution": 512})
    assert check("base model: unet").state == "missing"
    cache = project / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = cache / "snapshots" / "0123"
    write_base(snapshot)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("0123")
    weights = snapshot / "unet/diffusion_pytorch_model.safetensors"
    blob = cache / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    assert check("base model: unet").state == "ready"
    found = check("base model: tokenizer")
    assert found.state == "missing"
    assert f"`hf download {REPOSITORY} tokenizer/special_tokens_map.json`" in found.note
    (snapshot / "tokenizer" / module.SPECIAL_TOKENS).write_text("{}")
    assert check("base model: tokenizer").state == "ready"
    found = check("base model: revision")
    assert found.state == "wrong"
    assert f"base.revision: name the commit of {REPOSITORY} to use" in found.note
    settings(base={"path": REPOSITORY, "revision": "4567"})
    found = check("base model: unet")
    assert found.state == "missing" and " --revision 4567`" in found.note
    settings(base={"path": REPOSITORY, "revision": "0123"})
    assert check("base model: unet").state == "ready"
    assert not [c for c in examine("toyland") if c.what == "base model: revision"]
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    found = check("base model: unet")
    assert found.state == "wrong"
    assert f"its SHA-256 is not {blob.name}: delete {blob}" in found.note


def test_inception_has_its_name_and_its_digest(project, monkeypatch, settings):
    settings(protocol={"score": {"kid_features": "inception", "metrics": ["text_alignment"]}})
    assert not [c for c in examine("toyland") if c.what == "Inception of KID"]
    settings(protocol={"score": {"metrics": ["text_alignment", "fid"]}})
    assert check("Inception of KID").state == "missing"
    settings(score={"inception": "data/other.pt"})
    assert check("Inception of KID").state == "wrong"
    path = project / "data" / module.INCEPTION_FILE
    settings(score={"inception": str(path)})
    assert f"to {path} (SHA-256" in check("Inception of KID").note
    path.parent.mkdir()
    path.write_bytes(b"half of it")
    assert check("Inception of KID").state == "wrong"
    monkeypatch.setattr(module, "INCEPTION_SHA256", hashlib.sha256(b"half of it").hexdigest())
    assert check("Inception of KID") == Check("Inception of KID", "ready", str(path))


@pytest.mark.parametrize("name", ["urls.parquet", "urls.csv"])
def test_the_url_table_has_its_columns(project, name):
    edited = project / "profiles/paper/params.yaml"
    edited.write_text(edited.read_text().replace("data/laion/urls.parquet", name))
    path = project / name
    assert check("URL table", "paper").state == "missing"
    if path.suffix == ".csv":
        path.write_bytes(b"\xff\xfe")
    else:
        path.write_text("URL,TEXT\n")
    assert check("URL table", "paper").note == f"{name}: not a .parquet or .csv file"
    write = pq.write_table if path.suffix == ".parquet" else pa.csv.write_csv
    write(pa.table({"URL": ["u"], "caption": ["c"]}), str(path))
    found = check("URL table", "paper")
    assert found.state == "wrong"
    assert "has no column TEXT: name two of URL, caption" in found.note
    write(pa.table({"URL": ["u"], "TEXT": ["c"], "similarity": [0.3]}), str(path))
    assert check("URL table", "paper").state == "ready"


def test_a_concept_is_added_read_and_has_the_grids_noun(project):
    grid = project / "grid.yaml"
    add_concept("my_cat", [ROOT / "datasets/concepts/cat/images"], "cat")
    own = "5 images of 64 × 64 and 20 prompts of 'cat', licence unknown; the base"
    assert check("concept my_cat").note.startswith(own)
    assert "drawings" not in check("concept cat").note
    repeat = project / "datasets/concepts/my_cat/images/zz.png"
    repeat.write_bytes((repeat.parent / "03.png").read_bytes())
    found = check("concept my_cat")
    assert (found.state, found.note) == (
        "wrong",
        f"{repeat.relative_to(project)}: the same picture as 03.png: remove one",
    )
    repeat.unlink()
    Image.new("L", (30, 20)).save(repeat)
    assert "6 images of 30 × 20 to 64 × 64 and" in check("concept my_cat").note
    repeat.unlink()
    grid.write_text(
        grid.read_text().replace("my_cat:\n    class_noun: cat", "my_cat:\n    class_noun: pet")
    )
    assert "class_noun is 'cat', in grid.yaml 'pet'" in check("concept my_cat").note
    image = next((project / "datasets/concepts/my_cat/images").iterdir())
    image.write_bytes(image.read_bytes()[:100])
    found = check("concept my_cat")
    assert (found.state, image.name in found.note) == ("wrong", True)
    for path in (project / "datasets/concepts/my_cat/images").iterdir():
        path.unlink()
    assert "holds no images" in check("concept my_cat").note


def test_prompts_of_a_composition(project):
    path = project / "datasets/prompts/cat+chair.txt"
    assert check("prompts of cat+chair").state == "ready"
    path.write_text("a {0} alone\n")
    assert check("prompts of cat+chair").state == "wrong"
    path.unlink()
    assert "{0} for cat, {1} for chair" in check("prompts of cat+chair").note


@pytest.mark.parametrize("usable", [True, False])
def test_a_gpu_is_one_that_torch_can_use(project, monkeypatch, tmp_path, usable):
    monkeypatch.setattr(module, "GPU", tmp_path)
    cuda = SimpleNamespace(
        is_available=lambda: usable,
        get_device_name=lambda _: "A GPU",
        get_device_properties=lambda _: SimpleNamespace(total_memory=24 * 2**30),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = module._gpu(512)
    assert found.state == ("ready" if usable else "wrong")
    assert not usable or found.note == "A GPU, 24 GiB"


def test_a_gpu_without_torch_is_told(project, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "GPU", tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch is not installed" in module._gpu(512).note


def test_another_python_is_wrong(project, monkeypatch):
    monkeypatch.setattr(module, "PYTHONS", ((3, 99),))
    assert check("Python").state == "wrong"


def test_packages_are_compared_with_what_is_allowed_and_with_what_is_pinned(project, monkeypatch):
    installed = {"torch": "2.11.0+cu130", "numpy": "1.26.4"}

    def version(name: str) -> str:
        if name not in installed:
            raise module.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(module.importlib.metadata, "version", version)
    assert check("packages").state == "missing"  # neither file is here
    module.PROJECT.write_text('[project]\ndependencies = ["torch>"]\n')
    assert check("packages").state == "wrong"
    module.PROJECT.write_text('[project]\ndependencies = ["torch>=2.11", "numpy<2"]\n')
    module.LOCK.write_text('# pins\ntorch==2.11.0\nnumpy==1.26.4\nx==1; sys_platform == "no"\n')
    assert check("packages") == Check("packages", "ready", "3 as in requirements.lock")
    installed["numpy"] = "1.25.0"
    found = check("packages")
    assert found.state == "ready"
    assert "1 of 3 unlike requirements.lock, such as numpy 1.25.0 instead of ==1.26.4" in found.note
    installed["numpy"] = "2.1.0"
    found = check("packages")
    assert (found.state, found.note[:27]) == ("wrong", "numpy 2.1.0 instead of <2: ")
    del installed["torch"]
    found = check("packages")
    assert (found.state, "torch not installed" in found.note) == ("missing", True)


def test_disk_and_network(project, monkeypatch, settings):
    free = SimpleNamespace(free=3 * 2**30)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: free)
    assert check("disk").state == "ready"
    assert check("disk", "paper").note.startswith("3.0 GiB free of about 200")
    free.free = 2**30
    assert check("disk").state == "missing"
    assert check("network").note == "not used: all is drawn or in folders of the project"
    for flag in module.OFFLINE_FLAGS:
        monkeypatch.delenv(flag, raising=False)
    assert check("network", "paper").note.startswith(
        f"used for what is not here yet of {REPOSITORY}"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert check("network", "paper").note.startswith("switched off by HF_HUB_OFFLINE: ")


def test_the_disk_that_a_grid_takes_is_the_sum_of_what_it_makes(tmp_path):
    """By hand, for a UNet in v1-4's sizes: 859,520,964 weights, of which K and V are 19,169,280."""
    (tmp_path / "config.json").write_text(json.dumps(V1_UNET))
    unet = disk.unet_of(tmp_path / "config.json")
    params, grid = load_params("paper"), load_grid("paper")
    whole, kv = 859_520_964, 19_169_280

    def changes(method: str, count: int, **hyper: str) -> int:
        chosen = params.methods[method].model_copy(update=hyper)
        own = params.model_copy(update={"methods": {**params.methods, method: chosen}})
        how = load_method(method).of(count)
        return disk.adapter_bytes(how, ["a", "b"][:count], own, grid, unet, method)

    assert changes("dreambooth", 1) == 4 * whole
    assert changes("dreambooth", 2, store="bfloat16") == 2 * whole
    assert changes("custom_diffusion_merge", 2) == changes("custom_diffusion", 1) == 4 * kv
    assert changes("custom_diffusion_sequential", 2) == 4 * kv
    assert changes("textual_inversion", 2) == changes("pretrained", 1) == 0
    # rank 64; 10, 10 and 12 matrices of 320, 640 and 1280 rows, and 768 columns
    rows = 10 * 320 + 10 * 640 + 12 * 1280
    assert changes("lora_kv", 1) == 4 * 64 * (rows + 32 * 768)

    both = ["dreambooth", "custom_diffusion_all"]
    few = grid.model_copy(update={"rows": [*both, "pretrained"]})
    images = 512**2 * disk.PNG_BYTES_PER_PIXEL * 3 * (10 * (20 * 50 + 2 * 500) + 5 * 8 * 50)
    expected = len(both) * 15 * 4 * whole + images + 3 * 4 * whole
    assert disk.grid_bytes(params, few, unet) == pytest.approx(expected, rel=1e-6)


def test_the_protocol_is_named_and_fixes_prompts(project, settings):
    assert check("protocol").note.startswith("toyland-v3: 3 images a prompt in ")
    settings(protocol={"prompts": {"cat": "0" * 16, "cat+chair": "0" * 16}})
    for what in ("concept cat", "prompts of cat+chair"):
        assert check(what).state == "wrong"
        assert "not the prompts that protocol 'toyland-v3' fixes" in check(what).note


def test_prompts_that_the_text_encoder_cuts_are_counted(project, settings):
    settings(base={"path": str(ROOT / "models/toyland/base")})
    what, path = "length of texts", project / "datasets/prompts/dog.txt"
    assert check(what).state == "ready"
    # begin, modifier, "dog", end: 28 more words fit in 32 tokens
    path.write_text("{}" + " cat" * 28 + "\n{}\n")
    assert check(what).note.endswith("at most 32 of 32 tokens")
    path.write_text("{}" + " cat" * 29 + "\n{}\n")
    found = check(what)
    assert found.state == "wrong"
    assert found.note.startswith("1 of ")
    assert "are cut at 32 tokens; shorten datasets/prompts/dog.txt: '{} cat cat" in found.note


def test_a_caption_that_the_text_encoder_cuts_is_told(project, settings):
    settings(base={"path": str(ROOT / "models/toyland/base")})
    path = project / "datasets/concepts/cat/concept.yaml"
    # begin, "a far away", modifier, "cat", end: 25 more words fit in 32 tokens
    for words, state in ((25, "ready"), (26, "wrong"), (100, "wrong")):
        text = path.read_text().splitlines()
        text[3] = f'caption: "{"dog " * words}{{}}"'
        path.write_text("\n".join(text))
        found = check("length of texts")
        assert found.state == state
    assert "shorten datasets/concepts/cat/concept.yaml: caption 'dog dog" in found.note


def test_a_concept_has_the_name_of_its_folder(project):
    about = project / "datasets/concepts/dog/concept.yaml"
    about.write_text(about.read_text().replace("name: dog", "name: rex"))
    found = check("concept dog")
    assert (found.state, "name: is 'rex', its folder 'dog'" in found.note) == ("wrong", True)


def test_a_method_needs_parameters_and_stages(project):
    grid, params = project / "grid.yaml", project / "params.yaml"
    assert check("stages").state == check("methods").state == "ready"
    grid.write_text(grid.read_text().replace("methods:\n", "methods:\n  - lora\n"))
    found = check("methods")
    assert (found.state, found.note.split(":")[0]) == ("wrong", "params.yaml")
    assert "methods.lora: missing" in found.note
    text = params.read_text()
    params.write_text(text.replace("  pretrained: {}\n", "  pretrained: {}\n  lora: {rank: 4}\n"))
    assert check("methods").state == "ready"
    mend = "cells/lora/dvc.yaml: not what parameters and grid ask for: run `bench pipelines`"
    assert check("stages") == Check("stages", "missing", mend)
    write_pipelines(["toyland"])
    assert check("stages").state == "ready"
    path = project / "cells/lora/dvc.yaml"
    path.write_text(path.read_text() + "# changed by hand\n")
    assert check("stages") == Check("stages", "wrong", mend)


def test_captions_are_counted_where_they_can_be(project, settings, clip_folder, monkeypatch):
    """With a CLIP that sees words alone: all cats are near, and nothing is near a clock."""
    retrieval = {"clip": str(clip_folder), "images": 20, "held_out_images": 20}
    settings(retrieve=retrieval, world={"images": 1500, "held_out": 1200})
    add_concept("time", [ROOT / "datasets/concepts/cat/images"], "clock", anyway=True)
    assert check("captions for cat").state == "ready"
    found = check("captions for time")
    assert found.state == "missing"
    assert found.note.startswith("0 captions (20 needed) and 0 held-out ones (20 needed) within")
    assert "nearest class nouns with enough: " in found.note and "take another" in found.note

    monkeypatch.setattr(module, "_clips", lambda *_: [Check("CLIP", "ready", "")])
    found = check("captions", "paper")
    assert (found.state, "run `bench doctor` again" in found.note) == ("unknown", True)


def test_tokens_are_those_of_transformers(tmp_path):
    """On texts with everything that the splitting treats in its own way."""
    from transformers import CLIPTokenizer

    folder = ROOT / "models/toyland/base/tokenizer"
    ours, theirs = clip_tokenizer(folder), CLIPTokenizer.from_pretrained(folder)
    for text in (
        "a photo of a cat next to a red ball",
        "Georgia O'Keeffe's painting; it's the cats' 3rd, isn't it?!",
        "café  na\u00efve\tCAT 1234 -- (dog)...",
        "zoomed-in e\u0301 photo",
        "",
    ):
        assert ours.encode(text).ids == theirs(text).input_ids[1:-1], text


def test_a_tokenizer_that_is_damaged_or_not_here(project, settings):
    def found() -> list[Check]:
        return [c for c in examine("toyland") if c.what == "length of texts"]

    settings(base={"path": "models/own/base"})
    assert not found()
    write_base(project / "models/own/base")
    (damaged,) = found()
    assert (damaged.state, "not a CLIP tokenizer" in damaged.note) == ("wrong", True)


def test_an_unknown_profile_is_an_error(project):
    with pytest.raises(BenchError, match="profile 'big' is unknown"):
        doctor("big")


def test_names_of_files_are_those_of_the_shipped_base():
    files_of = module.base_files(LAYOUTS[None])
    for component, files in files_of.items():
        for file in files:
            assert (ROOT / "models/toyland/base" / component / file).is_file()
    index = json.loads((ROOT / "models/toyland/base/model_index.json").read_text())
    assert set(files_of) <= set(index)


def test_changes_of_xl_are_counted_in_its_true_size(tmp_path):
    """2,567,463,684 weights as published; K and V read 2048 numbers in 10 and 60 layers."""
    (tmp_path / "config.json").write_text(json.dumps(XL_UNET))
    unet = disk.unet_of(tmp_path / "config.json")
    params, grid = load_params("paper"), load_grid("paper")

    def changes(method: str) -> int:
        how = load_method(method).of(1)
        return disk.adapter_bytes(how, ["a"], params, grid, unet, method)

    assert changes("dreambooth") == 4 * 2_567_463_684
    assert changes("custom_diffusion") == 4 * 2 * 2048 * (10 * 640 + 60 * 1280)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("cells/pretrained/dvc.lock", 0),
        ("cells/pretrained/dvc.lock", 10),
        ("cells/pretrained/dvc.lock", 25),
        (".dvc/tmp/rwlock", 0),
    ],
)
def test_record_that_was_cut_is_told(project, name: str, left: int) -> None:
    lock = Path(name)
    if not lock.exists():
        lock.parent.mkdir(parents=True)
        lock.write_text("{}")
    whole = lock.read_text()
    records = [found.note for found in examine("toyland") if found.what == "records"]
    assert records == []
    lock.write_text(whole[:left])
    assert check("records") == Check(
        "records",
        "wrong",
        f"{lock}: cut, as happens if DVC is killed: delete it, and run `dvc repro`, which takes "
        "what was made from DVC's cache",
    )
