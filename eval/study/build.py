"""Stage `study_build`: a questionnaire of the samples that exist (Custom Diffusion, section 4.3).

A *duel* is one trial of two methods: their images of the same subject, prompt and sample number,
which start from the same noise. All pairs of methods are compared on the same trials as far as they
have them. Each *block* is about one kind of question, shows no generated image twice, and holds its
share of every pair, with either method of a pair as often on the left as on the right.
"""

from __future__ import annotations

import re
import tarfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from eval.scores.reading import load_scores, main_training
from eval.study.amt import write_amt
from eval.study.balance import dealt, halved
from eval.study.questionnaire import (
    NO_PROMPT,
    RIGHT,
    WRONG,
    Gold,
    Kind,
    Question,
    Questionnaire,
    image_name_of,
    method_pairs,
    named,
    write_questionnaire,
)
from pipeline.common.errors import BenchError
from pipeline.common.failures import failure_of
from pipeline.common.files import atomic_folder, png_bytes
from pipeline.common.places import repro_command, repro_command_for
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import Concept, load_concept
from pipeline.concepts.photos import read_photo, square
from pipeline.concepts.shards import samples_of
from pipeline.settings.profile import Grid, Params, load_grid, load_params, profile_folder
from pipeline.settings.study import StudyParams

T = TypeVar("T")
CANDIDATES = 8  # images of a concept that attention checks choose from


class Trial(NamedTuple):
    """What two methods are compared on."""

    subject: str
    prompt_index: int
    sample: int


class Duel(NamedTuple):
    """A trial of two methods."""

    composed: bool  # whether the subject is a composition
    first: str
    second: str
    trial: Trial

    def cell(self) -> tuple[bool, str, str]:
        """What is counted together."""
        return self[:3]


class Picture(NamedTuple):
    """A generated image that an attention check may show."""

    image: str
    trial: Trial
    prompt: str


class Check(NamedTuple):
    """An attention check: what is right is plain to see."""

    subject: str
    prompt: str
    right: str
    wrong: str
    targets: tuple[str, ...]


Images = dict[str, bytes]  # PNG files by their names


class Shown(NamedTuple):
    """What is to be seen of each trial."""

    images: dict[tuple[str, Trial], str]  # names, by method and trial
    prompts: dict[Trial, str]  # as scored


def questionnaire_folder(params: Params) -> Path:
    """Where the questionnaire of a profile lies."""
    return params.runs() / "study" / "questionnaire"


def build(profile: str, study: StudyParams | None = None) -> None:
    """Writes the questionnaire of a profile; without samples to compare, one without questions.

    Args:
        profile: the name of a profile.
        study: how large it is and what it asks; the profile's if not given.

    Raises:
        BenchError: a setting does not fit the grid, or samples or target images are damaged.
    """
    start = time.monotonic()
    params, grid = load_params(profile), load_grid(profile)
    study = study or params.study
    _check_settings(study, grid, profile)

    there = {
        (method, subject): found
        for method in grid.methods
        for subject in grid.subjects()
        if (found := _trials_of(params.cell(method, subject) / "samples.tar"))
    }
    duels = choose_duels(there, grid, study)
    # A style is in the pictures of many things, which no class noun describes.
    nouns = [concept for name in grid.concepts if not (concept := load_concept(name)).is_style]
    candidates = choose_candidates(there, grid, nouns, duels, _scores(profile), study)
    shown, images = _read_images(params, duels, candidates)
    same = {d for d in duels if shown.images[d.first, d.trial] == shown.images[d.second, d.trial]}
    duels = [duel for duel in duels if duel not in same]
    questions: list[Question] = []
    if duels:
        concepts = [load_concept(name) for name in grid.concepts]
        targets = _targets(params, concepts, images)
        views = {
            name: shown_targets(grid.concepts_of(name), targets, study)
            for name in sorted({duel.trial.subject for duel in duels})
        }
        for kind in study.kinds:
            pictures: dict[str, list[Picture]] = {}
            for trial in candidates.trials[kind]:
                image = shown.images[candidates.method, trial]
                picture = Picture(image, trial, shown.prompts[trial])
                pictures.setdefault(trial.subject, []).append(picture)
            checks = choose_checks(nouns, pictures, targets, kind, study)
            first = questions[-1].block + 1 if questions else 0
            questions += _blocks(kind, duels, shown, views, checks, study, first)
    about = Questionnaire(
        title=study.title,
        profile=profile,
        protocol=params.protocol.name,
        seed=study.seed,
        kinds=study.kinds,
        block=study.block,
        minimum_seconds=study.minimum_seconds,
        questions=tuple(questions),
    )
    folder = questionnaire_folder(params)
    with atomic_folder(folder, (".csv", ".html", ".json", ".png")) as temporary:
        about = write_questionnaire(temporary, about, images)
        write_amt(temporary, about, study.image_url)
    _tell(about, duels, same, folder, time.monotonic() - start)


def choose_duels(
    there: dict[tuple[str, str], set[tuple[int, int]]], grid: Grid, study: StudyParams
) -> list[Duel]:
    """The trials on which each pair of methods is compared.

    Subjects have equal shares as far as they have trials; within a subject all prompts come before
    a second sample of one. The order is the same for all pairs.

    Args:
        there: the prompt and sample numbers of each method and subject that has any.
        grid: its order is that of methods and subjects.
        study: `references`, `questions` and `seed` are used.
    """
    duels = []
    for composed, subjects in ((False, list(grid.concepts)), (True, list(grid.composed()))):
        subjects = sorted(subjects, key=lambda s: seed_of("study subjects", study.seed, s))
        for first, second in method_pairs(grid.methods, study.references):
            lists = [
                _ordered(s, there.get((first, s), set()) & there.get((second, s), set()), study)
                for s in subjects
            ]
            trials = interleaved(lists)[: study.questions]
            duels += [Duel(composed, first, second, trial) for trial in trials]
    return duels


class Candidates(NamedTuple):
    """What attention checks may show: images of one method, so that no two differ in style."""

    method: str
    trials: dict[Kind, list[Trial]]


def choose_candidates(
    there: dict[tuple[str, str], set[tuple[int, int]]],
    grid: Grid,
    concepts: Sequence[Concept],
    duels: Sequence[Duel],
    scores: Mapping[tuple[str, str], Mapping[Trial, float]],
    study: StudyParams,
) -> Candidates:
    """The images of each concept by which attention checks ask whether raters look.

    Those that no other question shows come first, and of these the ones with the highest scores
    of their own: what a check shows has to be what it was meant to be.

    Args:
        there: see `choose_duels`.
        grid: its order is that of methods.
        concepts: those that class nouns describe.
        duels: what is asked about.
        scores: by method and metric, as far as there are any.
        study: `references` and `seed` are used; images are of the first reference that has any.
    """
    names = [concept.name for concept in concepts]
    methods = [m for m in (*study.references, *grid.methods) if any((m, n) in there for n in names)]
    if not methods:
        return Candidates("", {kind: [] for kind in study.kinds})
    method, asked = methods[0], {duel.trial for duel in duels}
    chosen: dict[Kind, list[Trial]] = {}
    for kind in study.kinds:
        known = scores.get((method, f"{kind}_alignment"), {})
        chosen[kind] = []
        for name in names:
            trials = _ordered(name, there.get((method, name), set()), study)
            trials.sort(key=lambda trial: (trial in asked, -known.get(trial, 0.0)))
            chosen[kind] += trials[:CANDIDATES]
    return Candidates(method, chosen)


def choose_checks(
    concepts: Sequence[Concept],
    pictures: Mapping[str, Sequence[Picture]],
    targets: dict[str, list[str]],
    kind: Kind,
    study: StudyParams,
) -> list[Check]:
    """Attention checks, all different, concepts in turn.

    Both images are generated, as in all other questions, since real ones are sharper and would
    betray which questions are checks. What is right is an image of a concept, what is wrong one of
    a concept with another class noun and by another prompt.

    Args:
        concepts: those that class nouns describe.
        pictures: generated images of each of them.
        targets: the names of their target images.
        kind: of the questions among which they will be.
        study: `targets` and `seed` are used.
    """
    lists = []
    for concept in concepts:
        views = shown_targets([concept.name], targets, study)
        wrongs = [
            picture
            for other in concepts
            if other.class_noun != concept.class_noun
            for picture in pictures.get(other.name, ())
        ]
        found = [
            Check(concept.name, right.prompt, right.image, wrong.image, views)
            for right in pictures.get(concept.name, ())
            for wrong in wrongs
            if right.trial.prompt_index != wrong.trial.prompt_index
        ]
        rng = np.random.default_rng(seed_of("study checks", study.seed, kind, concept.name))
        lists.append([found[i] for i in rng.permutation(len(found))])
    return interleaved(lists)


def interleaved(lists: Iterable[Sequence[T]]) -> list[T]:
    """The first of each list, then the second of each, and so on."""
    missing = object()
    rounds = zip_longest(*lists, fillvalue=missing)
    return [item for item in chain.from_iterable(rounds) if item is not missing]  # type: ignore[misc]


def _blocks(
    kind: Kind,
    duels: Sequence[Duel],
    shown: Shown,
    views: dict[str, tuple[str, ...]],
    checks: Sequence[Check],
    study: StudyParams,
    first_block: int,
) -> list[Question]:
    """The questions of one kind, dealt into blocks, with sides and positions."""
    rng = np.random.default_rng(seed_of("study blocks", study.seed, kind))
    cells, trials = [duel.cell() for duel in duels], [duel.trial for duel in duels]
    room = study.block - (study.checks if checks else 0)
    # Duels of one trial share an image, so that each needs a block of its own.
    count = max(-(-len(duels) // room), *Counter(trials).values())
    blocks = dealt(cells, trials, count, rng).tolist()
    lefts = halved(cells, blocks, rng).tolist()
    questions = []
    for duel, block, left in zip(duels, blocks, lefts):
        sides = (duel.first, duel.second) if left else (duel.second, duel.first)
        images = tuple(shown.images[method, duel.trial] for method in sides)
        prompt, seen = shown.prompts[duel.trial], views[duel.trial.subject]
        questions.append(_question(kind, block, duel.trial, prompt, sides, images, seen))
    seen_in = [{i for q in questions if q.block == b for i in q.images()} for b in range(count)]
    questions += _checks(kind, checks, seen_in, study, rng)
    placed = []
    for block in range(count):
        members = [question for question in questions if question.block == block]
        for position, i in enumerate(rng.permutation(len(members))):
            placed.append(replace(members[i], block=first_block + block, position=position))
    return placed


def _checks(
    kind: Kind,
    checks: Sequence[Check],
    seen_in: Sequence[set[str]],
    study: StudyParams,
    rng: np.random.Generator,
) -> list[Question]:
    """As many checks for each block as there are; none shows an image that the block has seen."""
    left, given = list(checks), []
    for block, seen in enumerate(seen_in):
        for _ in range(study.checks):
            found = next((c for c in left if not {c.right, c.wrong} & seen), None)
            if found is not None:
                left.remove(found)
                seen |= {found.right, found.wrong}
                given.append((block, found))
    heads = halved(["check"] * len(given), [block for block, _ in given], rng)
    questions = []
    for (block, check), on_left in zip(given, heads.tolist()):
        step = 1 if on_left else -1
        sides, images = (RIGHT, WRONG)[::step], (check.right, check.wrong)[::step]
        trial = Trial(check.subject, NO_PROMPT, NO_PROMPT)
        gold: Gold = "left" if on_left else "right"
        questions.append(
            _question(kind, block, trial, check.prompt, sides, images, check.targets, gold)
        )
    return questions


def _question(
    kind: Kind,
    block: int,
    trial: Trial,
    prompt: str,
    methods: Sequence[str],
    images: Sequence[str],
    targets: tuple[str, ...],
    gold: Gold = "",
) -> Question:
    return named(
        Question(
            question="",
            block=block,
            position=0,
            kind=kind,
            subject=trial.subject,
            prompt_index=trial.prompt_index,
            sample=trial.sample,
            prompt=prompt,
            left_method=methods[0],
            right_method=methods[1],
            left_image=images[0],
            right_image=images[1],
            targets=targets if kind == "image" else (),
            gold=gold,
        )
    )


def _check_settings(study: StudyParams, grid: Grid, profile: str) -> None:
    path = profile_folder(profile) / "params.yaml"
    for method in study.references:
        if method not in grid.methods:
            raise BenchError(
                f"{path}: study.references: method {method!r} is not in the grid: choose from "
                f"{', '.join(grid.methods)}"
            )
    if study.checks >= study.block:
        raise BenchError(
            f"{path}: study.checks: {study.checks} attention checks leave no room in a block of "
            f"{study.block}: lower it or raise study.block"
        )


def _trials_of(path: Path) -> set[tuple[int, int]]:
    """The prompt and sample numbers of a shard of samples, read off its table of contents."""
    if failure_of(path):
        return set()
    try:
        with tarfile.open(path) as tar:
            names = tar.getnames()
    except FileNotFoundError:
        return set()
    except (tarfile.TarError, EOFError) as error:
        raise BenchError(
            f"{path}: the shard is truncated or not a tar ({error}): delete it and run "
            f"`{repro_command_for(path)}`"
        ) from error
    keys = [re.fullmatch(r"prompt-(\d+)-(\d+)\.png", name) for name in names]
    return {(int(key[1]), int(key[2])) for key in keys if key}


def _ordered(subject: str, trials: set[tuple[int, int]], study: StudyParams) -> list[Trial]:
    """Trials by lot, all prompts before a second sample of one."""
    lot = {t: seed_of("study trials", study.seed, subject, *t) for t in trials}
    prompts = {p: sorted((t for t in trials if t[0] == p), key=lot.__getitem__) for p, _ in trials}
    order = sorted(prompts, key=lambda p: seed_of("study prompts", study.seed, subject, p))
    return [Trial(subject, *t) for t in interleaved(prompts[p] for p in order)]


def _scores(profile: str) -> dict[tuple[str, str], dict[Trial, float]]:
    """The scores of each image that was scored, by method and metric; with targets their mean."""
    scores = main_training(load_scores(profile))
    scores = scores[scores["sample"].notna()]
    image = ["method", "metric", "subject", "prompt_index", "sample"]
    means = scores.groupby(image, as_index=False, sort=False)["value"].mean()
    found: dict[tuple[str, str], dict[Trial, float]] = {}
    for method, metric, *place, value in zip(*(means[name] for name in [*image, "value"])):
        found.setdefault((method, metric), {})[Trial(*place)] = value
    return found


def _read_images(
    params: Params, duels: Sequence[Duel], candidates: Candidates
) -> tuple[Shown, Images]:
    """The images of all duels and candidates, one shard at a time."""
    wanted = [(m, duel.trial) for duel in duels for m in (duel.first, duel.second)]
    wanted += [(candidates.method, t) for trials in candidates.trials.values() for t in trials]
    needed: dict[tuple[str, str], dict[str, Trial]] = {}
    for method, trial in wanted:
        key = f"prompt-{trial.prompt_index:03d}-{trial.sample:03d}"
        needed.setdefault((method, trial.subject), {})[key] = trial
    shown, images = Shown({}, {}), Images()
    for (method, subject), trials in needed.items():
        path = params.cell(method, subject) / "samples.tar"
        for sample in samples_of(params, method, subject, trials):
            trial, prompt = trials[sample["__key__"]], sample["json"]["scored_prompt"]
            if (other := shown.prompts.setdefault(trial, prompt)) != prompt:
                raise BenchError(
                    f"{path}: prompt {trial.prompt_index} is {prompt!r}, and {other!r} with "
                    f"another method: run `{repro_command(params.profile)}` so that all are "
                    "sampled alike"
                )
            shown.images[method, trial] = name = image_name_of(sample["png"])
            images[name] = sample["png"]
    return shown, images


def _targets(params: Params, concepts: Sequence[Concept], images: Images) -> dict[str, list[str]]:
    """The names of the concepts' target images as methods see them; adds these to `images`."""
    targets: dict[str, list[str]] = {}
    for concept in concepts:
        pngs = [png_bytes(square(read_photo(p), params.base.resolution)) for p in concept.images]
        found = {image_name_of(png): png for png in pngs}
        targets[concept.name] = list(found)
        images |= found
    return targets


def shown_targets(
    concepts: Sequence[str], targets: dict[str, list[str]], study: StudyParams
) -> tuple[str, ...]:
    """The target images beside every question about these concepts, drawn by lot."""
    each = max(study.targets // len(concepts), 1)
    views: list[str] = []
    for concept in concepts:
        lot = {name: seed_of("study targets", study.seed, name) for name in targets[concept]}
        chosen = sorted(lot, key=lot.__getitem__)[:each]
        views += [name for name in targets[concept] if name in chosen]
    return tuple(views)


def _tell(
    about: Questionnaire,
    duels: Sequence[Duel],
    same: Collection[Duel],
    folder: Path,
    seconds: float,
) -> None:
    if same:
        print(f"left out {len(same)} pairs of images that are equal to the last bit")
    if not about.questions:
        print(f"no two methods of study.references have samples: no questions -> {folder}")
        return
    checks = sum(bool(question.gold) for question in about.questions)
    pairs = len({duel.cell() for duel in duels})
    print(
        f"study: {len(about.questions) - checks} questions on {pairs} pairs of methods and "
        f"{checks} attention checks in {len(about.blocks())} blocks, {seconds:.0f} s -> {folder}"
    )
    if not checks:
        print("no attention checks: they need concepts of two class nouns in the grid")
