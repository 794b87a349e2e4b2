"""The corpus: a table of image URLs and captions becomes webdataset shards.

img2dataset fetches, crops and encodes the images. What it writes depends on the time and on the
order in which downloads finish; its shards are therefore written again so that the same images
give the same bytes, and counted, for img2dataset succeeds even if every download fails.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic_folder, read_tar, write_json, write_tar
from pipeline.settings.profile import Params, load_params, profile_folder

if TYPE_CHECKING:
    from img2dataset.downloader import Downloader

SHARD_SIZE = 2000  # rows of the table
SHARD_DIGITS = 5  # a key is the number of its shard and that of the row in the shard
TRAIN, HELD_OUT = "train", "held_out"
MANIFEST = "manifest.json"
THREADS = 32  # downloads at once, in each process
FAILURES = 10  # kinds of failure that the manifest lists
TABLE_URL = "table_url"  # the URL as the table has it


def shard_of(key: str) -> str:
    """The name of the shard that holds the sample with this key."""
    return f"{key[:SHARD_DIGITS]}.tar"


def build_corpus(profile: str) -> None:
    """Fetches the images of the profile's URL table and writes them as shards to `corpus/`.

    Samples have a square lossless `png`, a `txt` caption and a `json` with key, url, caption,
    split, sha256 (of the file that was fetched) and sizes. URLs without a scheme are relative to
    the table. Rows belong to the split of the table's column `split`, if it has one; otherwise
    every fourth image, chosen by its sha256, is held out.

    Raises:
        BenchError: the table or one of its columns is missing, or too few images could be had.
    """
    started = time.perf_counter()
    params = load_params(profile)
    table = _read_table(params, profile)
    target = params.runs() / "corpus"
    with atomic_folder(target, (".tar", ".json")) as folder:
        manifest = _fetch(table, folder, params)
        _check(manifest, params, profile)
        write_json(folder / MANIFEST, manifest)
    seconds = time.perf_counter() - started
    print(
        f"corpus: {manifest['samples']} of {manifest['rows']} images in "
        f"{len(manifest['shards'])} shards, {seconds:.0f} s: {target}"
    )


def _read_table(params: Params, profile: str) -> pa.Table:
    """What img2dataset reads: `url`, with a scheme; `caption`; TABLE_URL; and `split`, if any."""
    path = Path(params.corpus.url_table)
    wanted = {"url": params.corpus.url_column, "caption": params.corpus.caption_column}
    settings = profile_folder(profile) / "params.yaml"
    if not path.is_file():
        raise BenchError(
            f"{path}: the URL table is missing: put a .parquet or .csv file with the columns "
            f"{', '.join(wanted.values())} there, or name another in {settings}, corpus.url_table"
        )
    try:
        if path.suffix == ".csv":
            table = pyarrow.csv.read_csv(str(path))
        else:
            table = pq.read_table(str(path))
    except pa.ArrowException as error:
        raise BenchError(f"{path}: not a .parquet or .csv file: {str(error)[:120]}") from error
    for name, column in wanted.items():
        if column not in table.column_names:
            raise BenchError(
                f"{settings}: corpus.{name}_column: {path} has no column {column!r}: choose one "
                f"of {', '.join(table.column_names)}"
            )
    if table.num_rows == 0:
        raise BenchError(f"{path}: the URL table is empty")
    columns = {name: table[column].cast(pa.string()) for name, column in wanted.items()}
    columns[TABLE_URL] = columns["url"]
    folder = path.parent.resolve()
    urls = (url or "" for url in columns["url"].to_pylist())
    columns["url"] = pa.array(url if "://" in url else (folder / url).as_uri() for url in urls)
    if "split" in table.column_names:
        unknown = set(table["split"].to_pylist()) - {TRAIN, HELD_OUT}
        if unknown:
            raise BenchError(
                f"{path}: column split: {unknown.pop()!r} is unknown: write {TRAIN} or {HELD_OUT}"
            )
        columns["split"] = table["split"]
    return pa.table(columns)


def _fetch(table: pa.Table, folder: Path, params: Params) -> dict[str, Any]:
    """Writes the shards; returns the manifest."""
    # albumentations, which img2dataset crops with, asks the network for newer versions of itself.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.downloader import Downloader
    from img2dataset.reader import Reader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    raw = folder / "raw"
    (raw / "tables").mkdir(parents=True)
    pq.write_table(table, str(raw / "table"))
    reader = Reader(
        url_list=str(raw / "table"),
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        verify_hash_col=None,
        verify_hash_type=None,
        save_additional_columns=[c for c in table.column_names if c not in ("url", "caption")],
        number_sample_per_shard=SHARD_SIZE,
        done_shards=set(),
        tmp_path=str(raw / "tables"),
    )
    download = Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=Resizer(
            image_size=params.corpus.resolution,
            resize_mode="center_crop",
            resize_only_if_bigger=False,
            encode_format="png",
            encode_quality=4,  # of 9: how hard to compress, without loss
        ),
        thread_count=THREADS,
        save_caption=True,
        extract_exif=False,
        output_folder=str(raw),
        column_list=reader.column_list,
        timeout=10,
        number_sample_per_shard=SHARD_SIZE,
        oom_shard_count=SHARD_DIGITS,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="png",
        retries=1,
        user_agent_token=None,
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    )
    with redirect_stdout(io.StringIO()):
        tables = list(reader)
    shards: dict[str, int] = {}
    splits, failures = Counter({TRAIN: 0, HELD_OUT: 0}), Counter[str]()
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(tables))) as pool:
        done = pool.map(_fetch_shard, repeat(download), tables, repeat(folder))
        for name, some, failed in tqdm(done, "corpus", len(tables), leave=False):
            if some:
                shards[name] = some.total()
            splits.update(some)
            failures.update(failed)
    shutil.rmtree(raw)
    frequent = sorted(failures.items(), key=lambda item: (-item[1], item[0]))[:FAILURES]
    return {
        "rows": table.num_rows,
        "samples": sum(shards.values()),
        "splits": splits,
        "shards": shards,
        "failures": dict(frequent),
    }


def _fetch_shard(
    download: Downloader, table: tuple[int, str], folder: Path
) -> tuple[str, Counter[str], Counter[str]]:
    """Fetches one shard and writes it reproducibly: its name, counts by split and by failure."""
    whole, _ = download(table)
    name = f"{table[0]:0{SHARD_DIGITS}d}"
    if not whole:
        raise BenchError(f"{folder}: img2dataset could not write shard {name}")
    samples = read_tar(folder / "raw" / f"{name}.tar")
    for sample in samples:
        record = {k: v for k, v in sample["json"].items() if k not in ("status", "error_message")}
        record["url"] = record.pop(TABLE_URL)
        record.setdefault("split", _split_of(record["sha256"]))
        sample["json"] = record
    if samples:
        write_tar(folder / f"{name}.tar", samples)
    rows = pq.read_table(str(folder / "raw" / f"{name}.parquet"), columns=["error_message"])
    # What is quoted is a path or a host, which differ from row to row.
    errors = (re.sub(r"'[^']*'", "'...'", text) for text in rows[0].to_pylist() if text)
    return f"{name}.tar", Counter(s["json"]["split"] for s in samples), Counter(errors)


def _split_of(digest: str) -> str:
    """The split of an image with this SHA-256: copies of an image never get into both."""
    return HELD_OUT if int(digest[:8], 16) % 4 == 0 else TRAIN


def _check(manifest: dict[str, Any], params: Params, profile: str) -> None:
    rows, samples = manifest["rows"], manifest["samples"]
    if samples and samples >= params.corpus.min_success * rows:
        return
    reasons = [f"{message} ({count} times)" for message, count in manifest["failures"].items()]
    raise BenchError(
        f"{params.corpus.url_table}: only {samples} of {rows} images could be had, at least "
        f"{params.corpus.min_success:.0%} are needed; most often: {(reasons or ['unknown'])[0]}: "
        "mend the table or the network, or lower corpus.min_success in "
        f"{profile_folder(profile) / 'params.yaml'}"
    )
