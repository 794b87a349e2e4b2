"""A concept's images: img2dataset fetches those that were chosen, and others in place of dead ones.

It fetches, crops and encodes. What it writes depends on the time and on the order in which
downloads finish; what is taken of it does not: the first candidates whose links work, in their
order. It succeeds even if every download fails, so that images have to be counted.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.common.errors import BenchError
from pipeline.common.failures import TOO_FEW_IMAGES, FailureError
from pipeline.common.files import read_tar, write_tar
from pipeline.concepts.shards import one_line
from pipeline.corpus.candidates import (
    HELD_OUT,
    PARTS,
    REGULARIZATION,
    Candidate,
    least,
    load_candidates,
    wanted,
)
from pipeline.settings.profile import Params, load_params, profile_folder

ROUND = 200  # images that are asked for at once, at most: what a kill may lose
THREADS = 32  # downloads at once
LEAST_RATE = 0.1  # of links that work, however many of the first ones are dead
FAILURES = 3  # kinds of failure that are told
# Reasons that say nothing of the link: another try may succeed.
PASSING = re.compile(r"name resolution|timed out|unreachable|refused|reset|HTTP Error (429|5\d\d)")


def fetch(concept: str, profile: str) -> None:
    """Writes a concept's regularization and held-out images to `regularization/<concept>.tar`.

    Each sample has a square lossless `png`, `txt` (its caption) and `json` with part
    ("regularization" or "held_out"), similarity, key (the number of its row in the URL table) and
    sha256 (of the file that was fetched). They are the first candidates whose links work, in their
    order; no image occurs twice. The json of held-out ones also says how many `images` and
    `captions` there are. URLs without a scheme are relative to the table.

    What came over the network stays if there was too little or the stage was killed, and is not
    fetched again.

    Raises:
        BenchError: the candidates are missing, or not one image could be had.
        FailureError: too few images could be had.
    """
    started = time.perf_counter()
    params = load_params(profile)
    candidates = load_candidates(params, concept)
    fetcher = Fetcher(params, concept)
    seen: set[str] = set()
    parts = {
        part: fetcher.first(candidates[part], count, seen)
        for part, count in wanted(params.retrieve).items()
    }
    for part, needed in least(params.retrieve).items():
        if len(parts[part]) < needed:
            _tell(concept, part, parts, len(candidates[part]), needed, fetcher, params)
    target = params.runs() / "regularization" / f"{concept}.tar"
    samples = [_sample(part, i, one, parts) for part in PARTS for i, one in enumerate(parts[part])]
    write_tar(target, samples)
    fetcher.forget()
    seconds = time.perf_counter() - started
    print(
        f"fetch: {len(parts[REGULARIZATION])} regularization and {len(parts[HELD_OUT])} held-out "
        f"images (of {_captions(parts[HELD_OUT])} captions) of {concept}, similarities down to "
        f"{parts[REGULARIZATION][-1][0].similarity}, {fetcher.failures.total()} links dead, "
        f"{seconds:.0f} s: {target}"
    )


Image = tuple[bytes, str]  # a PNG, and the SHA-256 of the file that was fetched
Found = list[tuple[Candidate, Image]]


def _tell(
    concept: str,
    part: str,
    parts: dict[str, Found],
    candidates: int,
    needed: int,
    fetcher: Fetcher,
    params: Params,
) -> None:
    """Raises what `fetch` does if there are too few images.

    A failure that the corpus is to blame for is a result. A network that is down is none: DVC would
    take the stage as done, and never try again.
    """
    settings = profile_folder(params.profile) / "params.yaml"
    reasons = [f"{why} ({n} times)" for why, n in fetcher.failures.most_common(FAILURES)]
    often = f"most often: {', '.join(reasons) or 'copies of each other'}"
    if not any(parts.values()):
        raise BenchError(
            f"{concept}: none of {fetcher.failures.total()} images could be had; {often}: mend the "
            f"network or {params.corpus.url_table}"
        )
    passing = sum(n for why, n in fetcher.failures.items() if PASSING.search(why))
    if len(parts[part]) + passing >= needed:
        raise BenchError(
            f"{concept}: {passing} images could not be had for reasons that may pass; {often}: "
            "mend the network and run it again; what was fetched is kept"
        )
    raise FailureError(
        TOO_FEW_IMAGES,
        f"{concept}: only {len(parts[part])} {part} images of {candidates} candidates could be "
        f"had, {needed} are needed; {often}: mend the network, enlarge the corpus or lower "
        f"retrieve.threshold in {settings}; what was fetched is kept",
    )


class Fetcher:
    """What img2dataset fetches for a concept, and what it fetched before."""

    def __init__(self, params: Params, concept: str) -> None:
        self.table = Path(params.corpus.url_table)
        self.resolution = params.corpus.resolution
        kept = params.unfinished("fetch", params.runs())
        self.folder = kept / f"{concept}-{self.resolution}"
        self.failures: Counter[str] = Counter()
        self.kept: dict[str, Image] = {}
        for path in sorted(self.folder.glob("*.tar")):
            for sample in read_tar(path):
                self.kept[sample["json"]["url"]] = (sample["png"], sample["json"]["sha256"])

    def first(self, candidates: Sequence[Candidate], count: int, seen: set[str]) -> Found:
        """The first `count` candidates whose images can be had, fewer if there are no more.

        Asks for as many as are missing and, once links turned out to be dead, for spares at that
        rate, until there are enough.

        Args:
            seen: the SHA-256 of images that are not taken again; those that are taken are added.
        """
        found: Found = []
        asked, rate = 0, 1.0
        with tqdm(desc="fetch", total=count, leave=False) as bar:
            while len(found) < count and asked < len(candidates):
                enough = math.ceil((count - len(found)) / rate)
                some = candidates[asked : asked + min(enough, ROUND)]
                asked += len(some)
                images = self._images([one.url for one in some])
                for one in some:
                    image = images.get(one.url)
                    if image and image[1] not in seen and len(found) < count:
                        seen.add(image[1])
                        found.append((one, image))
                        bar.update()
                rate = max(len(found) / asked, LEAST_RATE)
        return found

    def forget(self) -> None:
        """Removes what was kept."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _images(self, urls: Sequence[str]) -> dict[str, Image]:
        """By URL, what can be had."""
        new = [url for url in urls if url not in self.kept]
        images = {url: self.kept[url] for url in urls if url in self.kept}
        if not new:
            return images
        fetched, failures = download([self._whole(url) for url in new], self.resolution)
        self.failures.update(failures)
        got = {new[i]: image for i, image in fetched.items()}
        # Files may change, and cost little.
        keep = [url for url in got if not self._whole(url).startswith("file:")]
        if keep:
            samples = [
                {"__key__": f"{i:05d}", "png": png, "json": {"url": url, "sha256": digest}}
                for i, (url, (png, digest)) in enumerate((url, got[url]) for url in keep)
            ]
            name = hashlib.sha256("\n".join(keep).encode()).hexdigest()[:16]
            write_tar(self.folder / f"{name}.tar", samples)
        return images | got

    def _whole(self, url: str) -> str:
        """The URL with a scheme."""
        return url if "://" in url else (self.table.parent.resolve() / url).as_uri()


def download(urls: Sequence[str], resolution: int) -> tuple[dict[int, Image], Counter[str]]:
    """Fetches images with img2dataset, crops them to their central square and resizes them.

    Args:
        urls: with their schemes.
        resolution: pixels of a side.

    Returns:
        The images by the index of their URLs, and why others could not be had, counted.
    """
    # albumentations, which img2dataset crops with, asks the network for newer versions of itself.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.downloader import Downloader
    from img2dataset.reader import Reader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    with tempfile.TemporaryDirectory() as name, redirect_stdout(io.StringIO()):
        folder = Path(name)
        (folder / "tables").mkdir()
        table = pa.table({"url": list(urls), "index": list(range(len(urls)))})
        pq.write_table(table, str(folder / "table"))
        reader = Reader(
            url_list=str(folder / "table"),
            input_format="parquet",
            url_col="url",
            caption_col=None,
            verify_hash_col=None,
            verify_hash_type=None,
            save_additional_columns=["index"],
            number_sample_per_shard=len(urls),
            done_shards=set(),
            tmp_path=str(folder / "tables"),
        )
        downloader = Downloader(
            sample_writer_class=WebDatasetSampleWriter,
            resizer=Resizer(
                image_size=resolution,
                resize_mode="center_crop",
                resize_only_if_bigger=False,
                encode_format="png",
                encode_quality=4,  # of 9: how hard to compress, without loss
            ),
            thread_count=THREADS,
            save_caption=False,
            extract_exif=False,
            output_folder=str(folder),
            column_list=reader.column_list,
            timeout=10,
            number_sample_per_shard=len(urls),
            oom_shard_count=5,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="png",
            retries=1,
            user_agent_token=None,
            disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
        )
        (shard,) = reader
        whole, _ = downloader(shard)
        if not whole:
            raise BenchError(f"{folder}: img2dataset could not write there: the disk may be full")
        images = {
            int(sample["json"]["index"]): (sample["png"], sample["json"]["sha256"])
            for sample in read_tar(folder / "00000.tar")
        }
        rows = pq.read_table(str(folder / "00000.parquet"), columns=["error_message"])
    # What is quoted is a path or a host, which differ from row to row.
    errors = (re.sub(r"'[^']*'", "'...'", text) for text in rows[0].to_pylist() if text)
    return images, Counter(errors)


def _captions(found: Found) -> int:
    """How many different captions they have."""
    return len({one_line(one.caption) for one, _ in found})


def _sample(
    part: str, number: int, found: tuple[Candidate, Image], parts: dict[str, Found]
) -> dict[str, Any]:
    """The sample that is written for an image."""
    one, (png, digest) = found
    record: dict[str, object] = {
        "part": part,
        "similarity": one.similarity,
        "key": f"{one.row:09d}",
        "sha256": digest,
    }
    if part == HELD_OUT:
        record |= {"images": len(parts[part]), "captions": _captions(parts[part])}
    return {"__key__": f"{part}-{number:04d}", "png": png, "txt": one.caption, "json": record}
