"""The `bench` command: one sub-command for each stage, and a few for people.

Names are checked before anything heavy is imported, so a typing error costs a moment. Everything
that a user can mend is a BenchError: one line on stderr, exit status 2.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from eval.analyses.stages import analyses_of
from pipeline.bench.checks import check_profile
from pipeline.common.errors import BenchError
from pipeline.common.failures import FailureError
from pipeline.common.files import check_file, check_new
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.methods import check_methods, training_seeds
from pipeline.settings.external import is_external
from pipeline.settings.profile import Grid, Params, is_hub_id, load_grid, load_params

app = typer.Typer(
    help="Concept customization of text-to-image models: data pipeline and benchmark.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
toyland = typer.Typer(help="The drawn world and its models.", no_args_is_help=True)
concept = typer.Typer(help="The things to learn.", no_args_is_help=True)
adapter = typer.Typer(help="Adapters, in and out.", no_args_is_help=True)
study = typer.Typer(help="The human study.", no_args_is_help=True)
samples = typer.Typer(help="Images that other systems make.", no_args_is_help=True)
cluster = typer.Typer(help="A profile on many machines, with Ray.", no_args_is_help=True)
app.add_typer(toyland, name="toyland")
app.add_typer(adapter, name="adapter")
app.add_typer(concept, name="concept")
app.add_typer(study, name="study")
app.add_typer(samples, name="samples")
app.add_typer(cluster, name="cluster")

Profile = Annotated[str, typer.Option("--profile", "-p", help="`toyland`, or one in profiles/.")]
Concept = Annotated[str, typer.Argument(help="A concept of the profile's grid.")]
Method = Annotated[str, typer.Argument(help="A method of the profile's grid.")]
Subject = Annotated[str, typer.Argument(help="A concept or a composition of the profile's grid.")]
Learned = Annotated[
    str,
    typer.Argument(
        help="One of the grid's concepts or compositions, or a task such as toys/task-2."
    ),
]
Scored = Annotated[str, typer.Argument(help="A concept, composition or sequence of the grid.")]
Seed = Annotated[
    int | None,
    typer.Option(help="Of the training: one of `train.seeds`; the first of them if absent."),
]
RecordFailure = Annotated[
    bool,
    typer.Option(
        "--record-failure",
        help="Where the data allow no result, write why in its place, so that others go on.",
    ),
]
AdapterFile = Annotated[Path, typer.Argument(help="An adapter.safetensors of this project.")]
ClusterAddress = Annotated[
    str | None,
    typer.Option(help="`auto`, or HOST:PORT of a running Ray; absent: this machine alone."),
]
Remote = Annotated[
    str | None,
    typer.Option(help="DVC's remote that results go through; absent: one file system for all."),
]
Scratch = Annotated[
    str | None,
    typer.Option(help="Where workers work, on each machine's own disk; its temporary folder."),
]
Names = Annotated[list[str] | None, typer.Option(help="May be repeated; all if absent.")]


@toyland.command("table")
def toyland_table(profile: Profile = DEFAULT_PROFILE) -> None:
    """Write the table of captioned scenes that stand for the web; draws none of them."""
    _check(profile)
    from pipeline.toyland.world.corpus import write_table

    write_table(profile)


@toyland.command("draw")
def toyland_draw(
    concept: Concept,
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Draw the pictures that a concept may get, so that they can be fetched."""
    params = _check(profile, concept=concept)
    from pipeline.toyland.world.pictures import draw_pictures

    with _recorded(record_failure, params.runs() / "regularization" / f"{concept}.tar"):
        draw_pictures(concept, profile)


@toyland.command("pretrain")
def toyland_pretrain(
    only: Annotated[str | None, typer.Option(help="One model, and those it rests on.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Trains the base for so long; for a GPU. No checkpoints.")
    ] = None,
) -> None:
    """Train Toyland's models from nothing; continues where it stopped."""
    from eval.metrics.kid import kid_by_caption
    from pipeline.toyland.pretrain.recipe import pretrain

    pretrain(only=only, minutes=minutes, distance=kid_by_caption)


@toyland.command("scorecard")
def toyland_scorecard(
    json: Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also write the pictures, as JPEG.")] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            help="What they were trained on, as MODEL=WORDS, or WORDS for all others; may be "
            "repeated; rewrites the model cards."
        ),
    ] = None,
) -> None:
    """Measure the shipped models."""
    for path in (json, sheet):
        if path is not None:
            check_new(path)
    from eval.metrics.kid import kid_by_caption
    from pipeline.toyland.pretrain.cards import hardware_named
    from pipeline.toyland.pretrain.scorecard import scorecard

    named = hardware_named(hardware) if hardware else None
    scorecard(json_path=json, sheet_path=sheet, hardware=named, distance=kid_by_caption)


@toyland.command("concepts")
def toyland_concepts() -> None:
    """Draw the personal concepts, their look-alikes and the styles into datasets/concepts."""
    from pipeline.toyland.world.personal import main as draw_concepts

    draw_concepts()


@toyland.command("concept")
def toyland_concept(
    name: Annotated[str, typer.Argument(help="Letters, digits, _ and -; starts with a letter.")],
    class_noun: Annotated[str, typer.Option("--class", help="What to draw, such as cat.")],
    seed: Annotated[int, typer.Option(help="Another number is another individual.")] = 0,
    images: Annotated[int, typer.Option(min=1, help="How many pictures of it.")] = 5,
    profile: Profile = DEFAULT_PROFILE,
) -> None:
    """Draw a new individual and add it to datasets/ and to the profile's grid."""
    _check(profile)
    from pipeline.adding.add import tell_stages
    from pipeline.adding.individual import draw_concept
    from pipeline.bench.pipelines import write_pipelines

    draw_concept(name, class_noun, seed, images, profile)
    write_pipelines([profile])
    tell_stages(name, profile)


@app.command("index")
def index(profile: Profile = DEFAULT_PROFILE) -> None:
    """Embed the captions of the profile's URL table and index them."""
    _check(profile)
    from pipeline.corpus.index import build_index

    build_index(profile)


@app.command("retrieve")
def retrieve(
    concept: Concept,
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Find the rows of the URL table whose captions are near a concept's class noun."""
    params = _check(profile, concept=concept)
    from pipeline.corpus.candidates import candidates_path
    from pipeline.corpus.retrieve import retrieve as find_candidates

    with _recorded(record_failure, candidates_path(params, concept)):
        find_candidates(concept, profile)


@app.command("fetch")
def fetch(
    concept: Concept,
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Fetch a concept's regularization and held-out images; goes on where it stopped."""
    params = _check(profile, concept=concept)
    from pipeline.corpus.fetch import fetch as fetch_images

    with _recorded(record_failure, params.runs() / "regularization" / f"{concept}.tar"):
        fetch_images(concept, profile)


@app.command("captions")
def captions(profile: Profile = DEFAULT_PROFILE) -> None:
    """Choose the captions that merges keep unchanged, at random from the URL table."""
    _check(profile)
    from pipeline.corpus.captions import choose_captions

    choose_captions(profile)


@app.command("shard")
def shard(
    concept: Concept,
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Put a concept's images and its regularization images into one shard."""
    params = _check(profile, concept=concept)
    from pipeline.corpus.shard import shard as write_shard

    with _recorded(record_failure, params.runs() / "shards" / f"{concept}.tar"):
        write_shard(concept, profile)


@app.command("gallery")
def gallery(
    concept: Concept,
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Collect a concept's own pictures and those of its look-alikes, for the identity metrics."""
    params = _check(profile, concept=concept)
    from pipeline.corpus.gallery import make_gallery

    with _recorded(record_failure, params.runs() / "galleries" / f"{concept}.tar"):
        make_gallery(concept, profile)


@app.command("generate")
def generate(
    concept: Concept,
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Make regularization images of a concept's class noun with the base model."""
    params = _check(profile, concept=concept)
    from pipeline.sample.generate import generate as generate_images

    with _recorded(record_failure, params.runs() / "generated" / f"{concept}.tar"):
        generate_images(concept, profile)


@app.command("train")
def train(
    method: Method,
    subject: Learned,
    seed: Seed = None,
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Train the adapter of one cell."""
    params, seed = _check_cell(profile, method, subject, seed, Grid.all_tasks)
    from pipeline.train.stage import train_cell

    adapter = params.cell(method, subject, seed) / "adapter.safetensors"
    with _recorded(record_failure, adapter, params.record(method, subject, seed) / "cost.json"):
        train_cell(method, subject, profile, seed)


@app.command("sample")
def sample(
    method: Method,
    subject: Learned,
    seed: Seed = None,
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Generate the images of one cell, or those of a sequence's last model for class nouns."""
    params, seed = _check_cell(
        profile, method, subject, seed, lambda grid: [*grid.sequences, *grid.all_tasks()]
    )
    cell = params.cell(method, subject, seed)
    with _recorded(record_failure, cell / "samples.tar"):
        if is_external(method):
            from pipeline.sample.external import take_cell

            take_cell(method, subject, profile)
        else:
            from pipeline.sample.sampler import sample_cell

            sample_cell(method, subject, profile, seed)


@app.command("score")
def score(
    method: Method,
    subject: Scored,
    seed: Seed = None,
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Score the images of one cell, or of all tasks of a sequence."""
    params, seed = _check_cell(profile, method, subject, seed, lambda grid: grid.sequences)
    from eval.scores.file import SCORES
    from eval.scores.pictures import PICTURES
    from eval.scores.stage import score_cell, score_sequence

    record = params.record(method, subject, seed)
    with _recorded(record_failure, record / SCORES, record / PICTURES):
        if subject in load_grid(profile).sequences:
            score_sequence(method, subject, profile)
        else:
            score_cell(method, subject, profile, seed)


@app.command("oracle")
def oracle(
    concept: Concept,
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Score a concept's real images against each other: what a perfect method would reach."""
    params = _check(profile, concept=concept)
    from eval.scores.file import ORACLE, SCORES
    from eval.scores.stage import score_oracle

    with _recorded(record_failure, params.record(ORACLE, concept) / SCORES):
        score_oracle(concept, profile)


@app.command("analyse")
def analyse(
    name: Annotated[str, typer.Argument(help="An analysis that the profile names.")],
    profile: Profile = DEFAULT_PROFILE,
    record_failure: RecordFailure = False,
) -> None:
    """Look behind the table: weights, spectra, compression, drift, steps, attention, ..."""
    params = _check(profile)
    from eval.analyses.stages import run

    with _recorded(record_failure, params.reports() / "analyses" / name):
        run(name, profile)


@app.command("claims")
def claims(
    profile: Profile = DEFAULT_PROFILE,
    write: Annotated[
        bool, typer.Option("--write", help="Also write claims.csv and claims.md of the report.")
    ] = False,
) -> None:
    """Test what the paper says on the scores that exist."""
    _check(profile)
    from eval.papers.claims import print_claims

    print_claims(profile, write=write)


@app.command("doctor")
def doctor(
    profile: Profile = DEFAULT_PROFILE,
    parity: Annotated[
        Path | None,
        typer.Option(
            help="A checkout of adobe-research/custom-diffusion: compare its metrics with ours."
        ),
    ] = None,
) -> None:
    """Say what a profile needs, and what of it is ready, missing or wrong."""
    _check(profile)
    if parity is not None:
        from eval.papers.parity import parity as compare

        raise typer.Exit(compare(parity, profile))
    from pipeline.bench.doctor import doctor as examine

    raise typer.Exit(examine(profile))


@app.command("pipelines")
def pipelines(
    profile: Annotated[
        list[str] | None, typer.Option(help="May be repeated; all if absent.")
    ] = None,
) -> None:
    """Write the dvc.yaml files of the profiles from their parameters and grids."""
    _check_root()
    from pipeline.bench.pipelines import write_pipelines

    write_pipelines(profile)


@app.command("digest")
def digest(
    rooms: Annotated[list[str], typer.Argument(help="Folders of code.")],
    profile: Profile = DEFAULT_PROFILE,
) -> None:
    """Write down what rooms of code are, for the stages of a profile that run them."""
    _check(profile)
    from pipeline.bench.digest import write_digests

    write_digests(rooms, profile)


@app.command("report")
def report(profile: Profile = DEFAULT_PROFILE) -> None:
    """Write the tables, figures, image grids and the web page of a profile."""
    _check(profile)
    from eval.report.stage import write_report

    write_report(profile)


@app.command("readme")
def readme() -> None:
    """Write the results of the default profile's report into README.md."""
    _check_root()
    from eval.report.readme import write_readme

    write_readme()


@app.command("table")
def table(
    profile: Profile = DEFAULT_PROFILE,
    metric: Annotated[
        list[str] | None, typer.Option(help="May be repeated; the report's if absent.")
    ] = None,
    method: Names = None,
    subject: Names = None,
    format: Annotated[str, typer.Option(help="text, markdown, csv or latex.")] = "text",
) -> None:
    """Print the comparison from the scores that exist; runs nothing."""
    _check(profile)
    from eval.report.printing import print_table

    print_table(profile, metrics=metric, methods=method, subjects=subject, format=format)


@app.command("compare")
def compare(
    profile: Profile = DEFAULT_PROFILE,
    table: Annotated[
        str | None, typer.Option(help="A table of the paper, 1 to 8 as arXiv numbers them.")
    ] = None,
    format: Annotated[str, typer.Option(help="text, markdown, csv or latex.")] = "text",
) -> None:
    """Print the scores that exist beside the numbers that papers print; runs nothing."""
    _check(profile)
    from eval.papers.compare import print_comparison

    print_comparison(profile, table=table, format=format)


@study.command("build")
def study_build(profile: Profile = DEFAULT_PROFILE) -> None:
    """Make a questionnaire of the samples that exist: questions, images, files for AMT."""
    _check(profile)
    from eval.study.build import build

    build(profile)


@study.command("invite")
def study_invite(
    raters: Annotated[int, typer.Option(help="How many there are in the end, one code for each.")],
    profile: Profile = DEFAULT_PROFILE,
) -> None:
    """Draw codes by which raters join the lab page; those that there are stay."""
    _check(profile)
    from eval.study.private import invite

    invite(profile, raters)


@study.command("serve")
def study_serve(
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 opens it to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    database: Annotated[
        Path | None,
        typer.Option(
            help="Where answers go; study/answers.sqlite in the profile's runs if absent."
        ),
    ] = None,
    open_to: Annotated[
        int,
        typer.Option(
            "--open", metavar="N", help="Without invitations: who comes may join, up to N raters."
        ),
    ] = 0,
    profile: Profile = DEFAULT_PROFILE,
) -> None:
    """Let raters answer the questionnaire in their browsers; Ctrl-C ends."""
    _check(profile)
    from eval.study.serve import serve_profile

    serve_profile(profile, host, port, database, open_to)


@study.command("read")
def study_read(
    files: Annotated[
        list[Path], typer.Argument(help="AMT result CSVs and answers.sqlite of the lab page.")
    ],
    profile: Profile = DEFAULT_PROFILE,
    questionnaire: Annotated[
        Path | None, typer.Option(help="The folder that was answered, if not the present one.")
    ] = None,
) -> None:
    """Turn answers into one tidy CSV, and say what was left out and why."""
    _check(profile)
    from eval.study.read import read

    read(files, profile, questionnaire=questionnaire)


@study.command("analyse")
def study_analyse(profile: Profile = DEFAULT_PROFILE) -> None:
    """Say what the answers prefer, how sure that is, and which metric agrees with people."""
    _check(profile)
    from eval.study.analyse import analyse

    analyse(profile)


@adapter.command("compress")
def adapter_compress(
    source: AdapterFile,
    target: Annotated[Path, typer.Argument(help="The compressed adapter to write.")],
    share: Annotated[
        float | None, typer.Option(help="Of the sum of singular values; 0.6 in the paper.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="The same rank for all matrices.")] = None,
) -> None:
    """Write a low-rank version of an adapter."""
    check_new(target)
    from pipeline.exchange.compression import compress_file

    compress_file(source, target, share=share, rank=rank)


@adapter.command("export")
def adapter_export(
    source: AdapterFile,
    folder: Annotated[Path, typer.Argument(help="Where to write the files.")],
    layout: Annotated[
        str, typer.Option(help="custom-diffusion, textual-inversion, lora or official.")
    ],
    profile: Profile = DEFAULT_PROFILE,
) -> None:
    """Write an adapter in a layout that other programs read."""
    _check(profile)
    check_file(folder / layout)  # whether it is a folder, or can be made
    from pipeline.exchange.formats import export_file

    export_file(source, layout, folder, profile)


@adapter.command("import")
def adapter_import(
    source: Annotated[Path, typer.Argument(help="A file or a folder in one of the layouts.")],
    target: Annotated[Path, typer.Argument(help="The adapter to write.")],
    subject: Annotated[str, typer.Option(help="What it was trained on, for its record.")],
    class_noun: Annotated[
        list[str], typer.Option("--class", help="The class noun; repeat for each token.")
    ],
    profile: Profile = DEFAULT_PROFILE,
) -> None:
    """Read an adapter that another program made for the profile's base model."""
    _check(profile)
    check_new(target)
    from pipeline.exchange.formats import import_file

    import_file(source, target, subject, class_noun, profile)


@concept.command("add")
def concept_add(
    name: Annotated[str, typer.Argument(help="Letters, digits, _ and -; starts with a letter.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    class_noun: Annotated[str, typer.Option("--class", help='What it is: "wooden pot".')],
    prompts: Annotated[
        Path | None, typer.Option(help="One a line, each with {}; a set of 20 if absent.")
    ] = None,
    caption: Annotated[
        str | None, typer.Option(help="Template of training captions; `photo of a {}` if absent.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the images.")] = "unknown",
    source: Annotated[
        str, typer.Option(help="Where the images are from.")
    ] = "added with `bench concept add`",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Even if the corpus has too few captions for it.")
    ] = False,
    profile: Profile = DEFAULT_PROFILE,
) -> None:
    """Add a concept to datasets/ and to the profile's grid."""
    _check(profile)
    from pipeline.adding.add import add_concept, tell_stages
    from pipeline.bench.pipelines import write_pipelines
    from pipeline.concepts.concept import PHOTO_CAPTION

    caption = PHOTO_CAPTION if caption is None else caption
    add_concept(name, images, class_noun, prompts, caption, profile, licence, source, anyway)
    write_pipelines([profile])  # concepts stand in for each other's look-alikes
    tell_stages(name, profile)


@concept.command("import")
def concept_import(
    source: Annotated[
        Path,
        typer.Argument(
            help="A copy of CustomConcept101, DreamBooth's set or CIFC, or a folder of folders."
        ),
    ],
    images: Annotated[
        Path | None, typer.Option(help="The folder of the images, if it is another.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A concept of the data set; may be repeated.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Also add all to this profile's grid.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, write nothing.")] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            help="One of customconcept101, dreambooth, cifc and folders; recognised if absent."
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="In front of every name.")] = "",
    class_noun: Annotated[
        str | None, typer.Option("--class", help="Folders only: what they all are.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Folders only: CSV or YAML, a class noun for each folder.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Folders only: one a line, each with {}.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Folders only: of the images.")] = None,
    origin: Annotated[
        str | None, typer.Option("--source", help="Folders only: where the images are from.")
    ] = None,
) -> None:
    """Make concepts of a data set whose images are here; downloads nothing."""
    _check(profile or DEFAULT_PROFILE)
    from pipeline.adding.dataset import Given
    from pipeline.adding.importing import import_concepts
    from pipeline.bench.pipelines import write_pipelines

    given = Given(class_noun, classes, prompts, licence, origin)
    status = import_concepts(source, images, only or (), profile, dry_run, layout, prefix, given)
    if profile and not dry_run:
        write_pipelines([profile])
    raise typer.Exit(status)


@samples.command("prompts")
def samples_prompts(
    subject: Subject,
    profile: Profile = DEFAULT_PROFILE,
    captions: Annotated[
        bool, typer.Option("--captions", help="Also those of held-out real images, for KID.")
    ] = False,
) -> None:
    """Print which images another system has to make of a subject, as CSV."""
    _check(profile, subject=subject)
    from pipeline.adding.samples import print_prompts

    print_prompts(subject, profile, captions)


@samples.command("import")
def samples_import(
    method: Annotated[str, typer.Argument(help="Letters, digits, _ and -; no other method's.")],
    subject: Subject,
    folder: Annotated[Path, typer.Argument(help="Where the images are.")],
    table: Annotated[
        Path | None,
        typer.Option("--csv", help="Columns file and prompt; if absent, names say: 000-00.png."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="What made the images: system, version, by whom.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the images.")] = None,
    url: Annotated[str | None, typer.Option(help="Where to read more.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Images and words that are there already.")
    ] = False,
    profile: Profile = DEFAULT_PROFILE,
) -> None:
    """Make images of any system a row of the table."""
    _check(profile, subject=subject)
    from pipeline.adding.samples import Credit, import_samples
    from pipeline.bench.pipelines import write_pipelines

    credit = Credit(source, licence, url)
    import_samples(method, subject, folder, table, profile, credit, replace)
    write_pipelines([profile])


@cluster.command("repro")
def cluster_repro(
    profile: Profile = DEFAULT_PROFILE,
    address: ClusterAddress = None,
    threads: Annotated[
        int,
        typer.Option(min=1, help="That a stage computes with; on CPUs its last bits depend on it."),
    ] = 1,
    per_gpu: Annotated[int, typer.Option(min=1, help="Stages that share a GPU.")] = 1,
    remote: Remote = None,
    scratch: Scratch = None,
    dry: Annotated[bool, typer.Option("--dry", help="Print what would run.")] = False,
) -> None:
    """Run a profile as `dvc repro` does, its cells side by side on all cores, GPUs or machines."""
    _check(profile)
    _need_ray()
    from pipeline.cluster.driver import Options, repro_on_cluster

    options = Options(address, threads, per_gpu, remote, _absolute(scratch), dry)
    raise typer.Exit(repro_on_cluster(profile, options))


@cluster.command("check")
def cluster_check(
    profile: Profile = DEFAULT_PROFILE,
    address: ClusterAddress = None,
    remote: Remote = None,
    scratch: Scratch = None,
) -> None:
    """Look whether each machine of a cluster has what stages need."""
    _check(profile)
    _need_ray()
    from pipeline.cluster.check import check_cluster

    raise typer.Exit(check_cluster(profile, address, remote, _absolute(scratch)))


def _absolute(scratch: str | None) -> str | None:
    """A worker works in another folder than the one that a relative path is about."""
    return scratch and str(Path(scratch).absolute())


def _need_ray() -> None:
    if find_spec("ray") is None:
        raise BenchError(
            "Ray is not installed: run `pip install --editable '.[cluster]'` in the project"
        )


def _check(
    profile: str,
    *,
    concept: str | None = None,
    method: str | None = None,
    subject: str | None = None,
    beside: Callable[[Grid], Iterable[str]] = lambda _: (),
) -> Params:
    """Checks the profile's files and the names, and says whether the network may be used.

    Args:
        profile: its name.
        concept: a name,
        method: and so on.
        subject: of the grid, or one that `beside` gives.
        beside: what else of the grid a subject may be.

    Returns:
        The profile's parameters.

    Raises:
        BenchError: an unknown profile, concept, method or subject, or a bad parameter.
    """
    _check_root()
    params, grid = load_params(profile), load_grid(profile)
    check_profile(params, grid)
    check_methods(grid, profile)
    analyses_of(params)
    _check_name("concept", concept, list(grid.all_concepts()))
    _check_name("method", method, known_methods(params, grid))
    _check_name("subject", subject, [*grid.subjects(), *grid.sequence_concepts, *beside(grid)])
    names = (params.base.path, params.retrieve.clip, params.protocol.score.clip)
    if not any(is_hub_id(name) for name in names):
        os.environ["HF_HUB_OFFLINE"] = "1"
        if hub := sys.modules.get("huggingface_hub"):  # imported already: see pipeline.bench.warm
            hub.constants.HF_HUB_OFFLINE = True
    return params


def _check_cell(
    profile: str,
    method: str,
    subject: str,
    seed: int | None,
    beside: Callable[[Grid], Iterable[str]],
) -> tuple[Params, int | None]:
    """As `_check`, for the stages of a cell.

    Returns:
        The profile's parameters, and the seed of the training: None if nothing in it is random, or
        for what `beside` gives, as sequences are learned with the main seed alone.

    Raises:
        BenchError: also a seed that the method is not trained with.
    """
    grid = load_grid(profile)
    params = _check(profile, method=method, subject=subject, beside=beside)
    if subject in beside(grid):
        if seed is not None:
            raise BenchError(f"seed {seed}: sequences have the main seed alone: leave --seed out")
        return params, None
    known = training_seeds(method, params, grid, len(grid.concepts_of(subject)))
    if seed is None or not known:  # of what the method cannot learn, its stage says so
        return params, next(iter(known), None)
    if seed not in known:
        said = ", ".join(str(one) for one in known if one is not None)
        raise BenchError(
            f"seed {seed} is unknown: {method} is trained with {said}"
            if said
            else f"seed {seed}: nothing in {method} is random: leave --seed out"
        )
    return params, seed


def _check_root() -> None:
    if not (Path("params.yaml").is_file() and Path("datasets").is_dir()):
        raise BenchError("no params.yaml and datasets/ here: run `bench` in the project's root")


@contextmanager
def _recorded(wanted: bool, *outputs: Path) -> Iterator[None]:
    """If it is wanted, a failure becomes what the stage's outputs hold, and the stage succeeds.

    Raises:
        FailureError: it is not wanted.
    """
    try:
        yield
    except FailureError as error:
        if not wanted:
            raise
        from pipeline.common.files import write_failure  # imports PIL

        for output in outputs:
            write_failure(output, error.failure)
        print(f"failed: {error} (recorded in {outputs[0]})", file=sys.stderr)


def known_methods(params: Params, grid: Grid) -> list[str]:
    """The methods that have a row in the grid, and hyper-parameters if they are made here."""
    return [m for m in grid.all_methods() if m in params.methods or is_external(m)]


def _check_name(kind: str, name: str | None, known: list[str]) -> None:
    if name is not None and name not in known:
        raise BenchError(f"{kind} {name!r} is unknown: choose one of {', '.join(known)}")


def main() -> None:
    """Runs `bench`; prints what a user can mend as one line and exits with status 2."""
    # Before any import that reads them: albumentations and transformers look at import.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    try:
        app()
    except BenchError as error:
        _fail(str(error))
    except Exception as error:
        # Libraries wrap ENOSPC in errors of their own; its text survives.
        if "No space left on device" not in str(error):
            raise
        _fail(f"the disk is full ({error}): free some space and run the same command again")


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
