"""Parameters and grids: what is read, and what is refused with one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bench.pipelines import pipelines
from pipeline.common.errors import BenchError
from pipeline.common.places import repro_command, repro_command_for
from pipeline.settings.profile import load_grid, load_params
from pipeline.settings.protocol import protocol_path

PROFILES = ("toyland", "toyland-full", "smoke")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("profile", PROFILES)
def test_shipped_profiles_are_valid(project: Path, profile: str) -> None:
    params, grid = load_params(profile), load_grid(profile)
    assert params.profile == profile
    folder = Path() if profile == "toyland" else Path("profiles", profile)
    assert params.runs() == folder / "runs" / ("toyland" if profile == "toyland" else "")
    assert params.reports() == folder / "reports"
    assert params.corpus.url_table == f"{params.runs()}/world/urls.parquet"
    assert set(grid.all_methods()) == set(params.methods)


def test_command_that_runs_a_profile() -> None:
    assert repro_command("toyland") == repro_command_for(Path("runs/toyland/index")) == "dvc repro"
    smoke = Path("profiles/smoke/runs/shards/cat.tar")
    assert repro_command("smoke") == repro_command_for(smoke) == "dvc --cd profiles/smoke repro"


def test_copied_profile_with_the_name_of_the_old_one_is_refused(project: Path) -> None:
    """It would write into the folder of the other."""
    (project / "profiles/smoke").rename(project / "profiles/mine")
    with pytest.raises(BenchError, match=r"mine/params.yaml: profile: 'smoke' .* write 'mine'"):
        load_params("mine")


def test_paper_profile_has_the_numbers_of_the_paper(project: Path) -> None:
    params, grid = load_params("paper"), load_grid("paper")
    assert (len(grid.concepts), len(grid.compositions)) == (10, 5)
    sample = params.protocol.sample
    assert sample.single.images_per_prompt == sample.composition.images_per_prompt == 50


def test_full_profile_has_many_concepts_of_which_pairs_share_none(project: Path) -> None:
    grid, tuning = load_grid("toyland-full"), load_grid("toyland-tuning")
    styles = {name for name, about in grid.concepts.items() if about.class_noun == "picture"}
    things = set(grid.concepts) - styles
    assert (len(things), len(styles), len(grid.compositions)) == (20, 3, 10)
    for some, among in ((grid, things), (tuning, set(tuning.concepts))):
        paired = [name for pair in some.compositions.values() for name in pair.concepts()]
        assert sorted(paired) == sorted(among)  # each of them once
    pairs = {frozenset(pair.concepts()) for pair in grid.compositions.values()}
    assert len(grid.triples) == 2
    for triple in grid.triples.values():
        style, *two = triple.concepts()
        assert style in styles and things >= set(two) and frozenset(two) not in pairs


def test_concepts_for_tuning_are_in_no_other_profile_of_toyland(project: Path) -> None:
    held_out = set(load_grid("toyland-tuning").concepts)
    assert len(held_out) == 4
    for profile in ("toyland", "toyland-full", "smoke"):
        assert not held_out & set(load_grid(profile).concepts)


def test_profiles_differ_in_size_alone(project: Path) -> None:
    default, full = load_params(), load_params("toyland-full")
    for section in ("base", "score"):
        assert getattr(default, section) == getattr(full, section)
    seeds = default.train.seeds
    assert full.train.seeds[: len(seeds)] == seeds
    assert full.train.model_copy(update={"seeds": seeds}) == default.train
    assert set(default.methods) <= set(full.methods)
    for name, method in default.methods.items():  # fewer steps may ask for another rate
        more = full.methods[name]  # that of sequences alone has compositions there
        assert (method.steps or 0) <= (more.steps or more.composition_steps or 0)
    assert default.protocol.score == full.protocol.score


def test_numbers_are_read_as_dvc_reads_them(project: Path) -> None:
    edit(project / "params.yaml", "learning_rate: 6.0e-4", "learning_rate: 6e-4")
    assert load_params().methods["dreambooth"].learning_rate == 6e-4


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("batch_size: 8", "batch_size: 7", "train.batch_size"),
        ("batch_size: 8", "batch_size: many", "train.batch_size"),
        ("threshold: 0.85", "threshold: 1.2", "retrieve.threshold"),
        ("learning_rate: 6.0e-4", "learning_rate: -6.0e-4", "methods.dreambooth.learning_rate"),
        ("  eta: 0.0\n", "", "generate.eta"),
        ("  eta: 0.0\n", "  eta: 0.0\n  etta: 1.0\n", "generate.etta"),
        ("protocol: toyland-v3", "protocol: [1]", "protocol"),
        ("seeds: [42]", "seeds: 42", "train.seeds"),
        ("seeds: [42]", "seeds: []", "train.seeds"),
        ("seeds: [42]", "seeds: [42, -1]", "train.seeds.1"),
        ("seeds: [42]", "seeds: [42, 7, 42]", "train.seeds: 42 is there twice"),
        ("    ridge:", "    seeds: 0\n    ridge:", "methods.custom_diffusion_merge.seeds"),
        (
            "    ridge:",
            "    seeds: 2\n    ridge:",
            "methods.custom_diffusion_merge.seeds: 2, but train.seeds has 1",
        ),
    ],
)
def test_bad_value(project: Path, old: str, new: str, field: str) -> None:
    edit(project / "params.yaml", old, new)
    with pytest.raises(BenchError, match=rf"^params\.yaml: {field}: ") as error:
        load_params()
    assert "\n" not in str(error.value)


def test_cells_of_further_trainings_lie_in_folders_of_their_own(project: Path) -> None:
    edit(project / "params.yaml", "seeds: [42]", "seeds: [42, 7, 43]")
    edit(project / "params.yaml", "    ridge:", "    seeds: 2\n    ridge:")
    params = load_params()
    assert params.seeds("dreambooth") == [42, 7, 43]
    assert params.seeds("custom_diffusion_merge") == [42, 7]
    folder = Path("runs/toyland/cells/dreambooth/cat")
    found = [params.cell("dreambooth", "cat", seed) for seed in (None, 42, 7)]
    assert found == [folder, folder, folder / "seed-7"]
    assert params.identity("dreambooth", "cat", 42) == params.identity("dreambooth", "cat")
    assert params.identity("dreambooth", "cat", 7)["training_seed"] == 7


def test_not_yaml(project: Path) -> None:
    (project / "params.yaml").write_text("train: [1,\n")
    with pytest.raises(BenchError, match=r"^params\.yaml: not valid YAML") as error:
        load_params()
    assert "\n" not in str(error.value)


def test_unknown_profile(project: Path) -> None:
    with pytest.raises(BenchError, match="'paperr' is unknown: choose one of toyland, paper, "):
        load_params("paperr")


def test_composition_of_an_unknown_concept(project: Path) -> None:
    edit(project / "grid.yaml", "second: chair", "second: sofa")
    with pytest.raises(BenchError, match=r"grid\.yaml: compositions\.cat\+chair: .*'sofa'"):
        load_grid()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  - dreambooth\n", "  - dreambooth\n" * 2, "methods: 'dreambooth' is there twice"),
        ("second: chair", "second: cat", r"compositions\.cat\+chair: 'cat' is there twice"),
        ("  wooden_pot+cat:", "  cat:", "two subjects have the name 'cat': rename one"),
        ("  dog:", f"  {'d' * 300}:", "concepts: 'd{70}': needs a letter first, .* 64 at most"),
        ("  dog:", "  dog/2:", "concepts: 'dog/2': needs a letter first"),
    ],
)
def test_bad_grid(project: Path, old: str, new: str, message: str) -> None:
    edit(project / "grid.yaml", old, new)
    with pytest.raises(BenchError, match=rf"^grid\.yaml: {message}") as error:
        load_grid()
    assert "\n" not in str(error.value)


def test_grid_without_methods(project: Path) -> None:
    path = project / "grid.yaml"
    path.write_text(path.read_text().partition("methods:")[0] + "methods: []\n")
    with pytest.raises(BenchError, match=r"^grid\.yaml: methods: list should have at least 1 item"):
        load_grid()


def test_a_triple_names_three_concepts(project: Path) -> None:
    path = project / "grid.yaml"
    triple = "triples:\n  x:\n    first: cat\n    second: dog\n    third: {}\n"
    path.write_text(path.read_text() + triple.format("chair"))
    assert load_grid().triples["x"].concepts() == ("cat", "dog", "chair")
    edit(path, "third: chair", "third: cat")
    with pytest.raises(BenchError, match=r"triples\.x: 'cat' is there twice"):
        load_grid()


def with_sequences(content: str) -> None:
    """The default profile's sequences and their concepts are replaced by these."""
    path = Path("grid.yaml")
    before = path.read_text(encoding="utf-8").partition("sequence_concepts:")[0]
    path.write_text(f"{before}sequences:\n{content}", encoding="utf-8")


def test_concepts_of_sequences_alone_are_subjects_of_no_table(project: Path) -> None:
    grid = load_grid()
    assert grid.concepts_of("toys/task-2") == ("cat", "tabby_cat")
    assert grid.concepts_of("tabby_cat") == ("tabby_cat",)
    assert "tabby_cat" not in grid.subjects()
    assert "tabby_cat" not in grid.concepts and "tabby_cat" in grid.all_concepts()
    path = Path("grid.yaml")
    path.write_text(path.read_text().replace("tabby_cat", "chair"))
    with pytest.raises(BenchError, match="two subjects have the name 'chair'"):
        load_grid()


def test_concepts_of_sequences_have_cells_of_what_sequences_are_made_of(project: Path) -> None:
    """And of the pretrained model, but not of the other methods."""
    files = pipelines("toyland")
    cells = {path.parent.name for path, text in files.items() if "_sequence_concept" in text}
    assert cells - {""} == {"pretrained", "custom_diffusion"}
    edit(Path("grid.yaml"), "[cat, tabby_cat, dog]", "[cat, tabby, dog]")
    with pytest.raises(
        BenchError, match="'tabby' is unknown: add it under `concepts` or `sequence_"
    ):
        load_grid()


def test_tasks_of_a_sequence_are_subjects(project: Path) -> None:
    with_sequences("  toys: {concepts: [dog, cat, chair], methods: [custom_diffusion_ewc]}\n")
    grid = load_grid()
    assert grid.tasks("toys") == {
        "toys/task-1": ("dog",),
        "toys/task-2": ("dog", "cat"),
        "toys/task-3": ("dog", "cat", "chair"),
    }
    assert grid.concepts_of("toys/task-2") == ("dog", "cat")
    assert "toys/task-2" not in grid.subjects()  # tables of subjects have no rows of it
    assert grid.all_methods() == [*grid.methods, "custom_diffusion_ewc"]
    with pytest.raises(BenchError, match="subject 'toys' is unknown"):
        grid.concepts_of("toys")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("  toys: {concepts: [cat], methods: [m]}", "sequences.toys.concepts: .*at least 2"),
        ("  toys: {concepts: [cat, dog], methods: []}", "sequences.toys.methods: .*at least 1"),
        (
            "  toys: {concepts: [cat, cow], methods: [m]}",
            "sequences.toys.concepts: concept 'cow' is unknown: add it under `concepts` or",
        ),
        (
            "  toys: {concepts: [cat, cat], methods: [m]}",
            "sequences.toys.concepts: 'cat' is there twice",
        ),
        (
            "  toys: {concepts: [cat, dog], methods: [m, m]}",
            "sequences.toys.methods: 'm' is there twice",
        ),
        ("  cat: {concepts: [cat, dog], methods: [m]}", "two subjects have the name 'cat'"),
        (
            "  Toys-1: {concepts: [cat, dog], methods: [m]}",
            "sequences.Toys-1: needs a small letter",
        ),
    ],
)
def test_sequences_that_cannot_be_are_refused(project: Path, content: str, said: str) -> None:
    with_sequences(f"{content}\n")
    with pytest.raises(BenchError, match=rf"grid\.yaml: {said}"):
        load_grid()


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("[dreambooth]", "sequences.toys.methods: dreambooth learns no sequences: remove it"),
        ("[no_such]", "method 'no_such' is unknown"),
        ("[ed_lora_ewa]", "ed_lora_ewa is made of adapters of ed_lora: add ed_lora"),
        ("[c_lora]", "needs a rare token for each task: .* has 3, give 4"),
    ],
)
def test_methods_that_cannot_learn_a_sequence_are_refused(
    project: Path, methods: str, said: str
) -> None:
    with_sequences(f"  toys: {{concepts: [cat, dog, chair, wooden_pot], methods: {methods}}}\n")
    protocol = protocol_path(load_params().protocol.name)
    if "sequence:" not in protocol.read_text():
        edit(protocol, "score:\n", "sequence: {images_per_prompt: 1, steps: 2}\nscore:\n")
    with pytest.raises(BenchError, match=said):
        pipelines("toyland")


def test_a_protocol_without_sequences_says_what_to_add(project: Path) -> None:
    protocol = protocol_path(load_params().protocol.name)
    lines = protocol.read_text().split("sequence:\n")
    rest = lines[-1].partition("score:")
    protocol.write_text(protocol.read_text() if len(lines) == 1 else f"{lines[0]}score:{rest[2]}")
    with_sequences("  toys: {concepts: [cat, dog], methods: [custom_diffusion_merge]}\n")
    with pytest.raises(BenchError, match=r"has no section `sequence`.*images_per_prompt: 1"):
        pipelines("toyland")
