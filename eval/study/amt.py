"""The questionnaire for Amazon Mechanical Turk: a table of HITs, and the page that shows one.

A row of `amt_upload.csv` is a HIT, which is a block. Its columns stand in `amt.html` as `${name}`,
and come back in the results as `Input.name`; answers come back under the names of the page's
inputs, `choice_<i>` (left or right) and `seconds_<i>`.
"""

from __future__ import annotations

import csv
import html
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.study.questionnaire import ASKED, SIDES, Question, Questionnaire, plain
from pipeline.common.files import atomic

TEMPLATE = "amt.html.jinja"
# The columns of each question of a HIT, to which its number is added.
FIELDS = ("question", "prompt", "targets", *SIDES)


def write_amt(folder: Path, questionnaire: Questionnaire, image_url: str) -> None:
    """Writes amt_upload.csv and amt.html.

    Args:
        folder: of the questionnaire.
        questionnaire: a row is made of each block.
        image_url: what stands before the name of an image: where its folder was uploaded to.
    """
    out = io.StringIO()
    header = ["block", "asked"]
    header += [f"{name}_{i}" for i in range(1, questionnaire.block + 1) for name in FIELDS]
    writer = csv.DictWriter(out, header, restval="", lineterminator="\n")
    writer.writeheader()
    for block, questions in questionnaire.blocks().items():
        row = {"block": str(block), "asked": ASKED[questions[0].kind]}
        for i, question in enumerate(questions, 1):
            row |= {f"{k}_{i}": v for k, v in _cells(question, image_url).items()}
        writer.writerow(row)
    with atomic(folder / "amt_upload.csv") as temporary:
        temporary.write_text(out.getvalue(), encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        title=questionnaire.title,
        block=questionnaire.block,
        minimum_seconds=questionnaire.minimum_seconds,
        sides=SIDES,
    )
    with atomic(folder / "amt.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def _cells(question: Question, image_url: str) -> dict[str, str]:
    left, right, *targets = (image_url + name for name in question.images())
    values = {
        "question": question.question,
        "prompt": question.prompt,
        "targets": " ".join(targets),
        "left": left,
        "right": right,
    }
    return {name: _markup(value) for name, value in values.items()}


def _markup(text: str) -> str:
    """The text as HTML, as which the page takes it, and as a cell that no spreadsheet runs."""
    escaped = html.escape(text)
    return escaped if plain(text) == text else f"&#{ord(text[0])};{escaped[1:]}"
