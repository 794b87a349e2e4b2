"""What a profile needs: found, missing or wrong, each with what to do about it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from pipeline import doctor as module
from pipeline.concept_add import add_concept
from pipeline.doctor import Check, doctor, examine
from pipeline.errors import BenchError

ROOT = Path(__file__).parents[2]
REPOSITORY = "CompVis/stable-diffusion-v1-4"


def check(what: str, profile: str = "toyland") -> Check:
    (found,) = [c for c in examine(profile) if c.what == what]
    return found


def write_weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.arange(6.0), "b": np.zeros((2, 3), np.float16)}, path)
    return path


def write_base(folder: Path) -> None:
    for component, files in module.BASE_FILES.items():
        for file in files:
            path = folder / component / file
            if path.suffix == ".safetensors":
                write_weights(path)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")


def test_the_default_profile_is_ready_as_it_ships_and_imports_nothing_heavy():
    code = (
        "import sys; from pipeline.doctor import doctor; status = doctor();"
        "print('torch' in sys.modules, 'open_clip' in sys.modules, status)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *table, _, last, imported = run.stdout.splitlines()
    assert last == "ready: `dvc repro`"
    assert imported == "False False 0" or module.GPU.exists()
    column = table[0].index("state")
    assert all(line[column:].startswith(("state", "ready")) for line in table)
    assert all(line[column - 2 : column] == "  " for line in table)


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
        f"`hf download {REPOSITORY} unet/config.json unet/diffusion_pytorch_model.safetensors`",
        "`hf download timm/vit_base_patch32_clip_224.openai open_clip_model.safetensors`",
        f"{module.INCEPTION_URL} to data/inception-2015-12-05.pt (SHA-256 f58cb9b6",
        "columns URL and TEXT at data/laion/urls.parquet",
        '`bench concept add wooden_pot_photo IMAGES --class "wooden pot" --profile paper`',
        "write datasets/prompts/cat_photo+chair_photo.txt",
    ):
        assert part in text


def test_inception_is_the_file_that_scores_use():
    from eval import features

    assert (module.INCEPTION_FILE, module.INCEPTION_URL) == (
        features.INCEPTION_FILE,
        features.INCEPTION_URL,
    )


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
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    found = check("base model: unet")
    assert found.state == "wrong"
    assert f"its SHA-256 is not {blob.name}: delete {blob}" in found.note


def test_inception_has_its_name_and_its_digest(project, monkeypatch, settings):
    settings(protocol={"score": {"kid_features": "inception"}})
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
    assert check("concept my_cat").note == "5 images and 20 prompts of 'cat'"
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


def test_another_python_is_wrong_and_a_missing_torch_is_told(project, monkeypatch):
    monkeypatch.setattr(module, "PYTHONS", ((3, 99),))

    def no_torch(name: str) -> str:
        raise module.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "version", no_torch)
    assert check("Python").state == "wrong"
    assert check("torch").state == "missing"


def test_an_unknown_profile_is_an_error(project):
    with pytest.raises(BenchError, match="profile 'big' is unknown"):
        doctor("big")


def test_names_of_files_are_those_of_the_shipped_base():
    for component, files in module.BASE_FILES.items():
        for file in files:
            assert (ROOT / "models/toyland/base" / component / file).is_file()
    index = json.loads((ROOT / "models/toyland/base/model_index.json").read_text())
    assert set(module.BASE_FILES) <= set(index)
