"""Reading the files of scores and tables, as a user would."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

RECORDS = Path("reports/cells")


def raw(method: str, subject: str) -> pd.DataFrame:
    return pd.read_csv(RECORDS / method / subject / "scores.csv")


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def prompt_means(method: str, subject: str, metrics: list[str]) -> np.ndarray:
    rows = raw(method, subject)
    rows = rows[rows["metric"].isin(metrics)]
    return rows.groupby("prompt_index")["value"].mean().to_numpy()
