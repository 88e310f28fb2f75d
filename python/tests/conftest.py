"""A project whose lake the real binary has filled with made-up events, and those events as they are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

import loam
from oracle import Events

REPOSITORY = Path(__file__).resolve().parents[2]

FEATURES = """
entities:
  - {name: contact, join_keys: [contact_id]}
  - {name: deal, join_keys: [opportunity_id]}
views:
  - name: profile
    entity: contact
    stream: contact
    ttl: 7d
    features:
      - mkt_status
      - segments
      - {name: open_tickets, type: int64, sql: "attributes->>'open_tickets'"}
      - {name: vip, type: bool, sql: "list_contains(segments, 'vip')"}
      - {name: attributes}
  - name: deal
    entity: deal
    stream: opportunity
    features:
      - amount
      - close_date
      - probability
      - {name: entered, type: timestamp, sql: "stage_history->>'$[#-1].entered_at'"}
      - {name: large, type: int64, sql: "9007199254740993"}
  - name: activity
    entity: contact
    stream: engagement
    aggregates:
      - {name: opened, fn: count, where: "type = 'email' AND outcome = 'opened'", windows: [1d, 7d]}
      - {name: channels, fn: distinct, column: channel, windows: [30d]}
services:
  - {name: small, features: ["profile:mkt_status", "activity:opened_7d"]}
"""


@pytest.fixture(scope="session")
def binary() -> Path:
    path = Path(os.environ.get("LOAM_BINARY", REPOSITORY / "bin" / "loam")).resolve()
    assert path.is_file(), f"there is no binary {path}: run `make build`, or set LOAM_BINARY"
    return path


@pytest.fixture(scope="session")
def project(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project folder. Many events are late, so that the two clocks differ."""
    folder = tmp_path_factory.mktemp("py") / "crm"

    def run(*arguments: str) -> None:
        done = subprocess.run([binary, "-C", folder, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    folder.mkdir()
    run("init")
    (folder / "features" / "contact.yaml").unlink()
    (folder / "datasets" / "churn.yaml").unlink()
    (folder / "features" / "features.yaml").write_text(FEATURES)
    simulated = ["--contacts", "300", "--days", "60", "--seed", "7", "--start", "2026-01-01T00:00:00Z", "--labels", "400"]
    run("simulate", *simulated, "--late", "0.5", "--deletes", "0.01", "--malformed", "0", "--out", str(folder / "events"))
    run("backfill", str(folder / "events" / "events.jsonl"))
    return folder


@pytest.fixture(scope="session")
def store(project: Path, binary: Path) -> loam.Store:
    return loam.Store(project, binary=binary)


@pytest.fixture(scope="session")
def events(project: Path) -> Events:
    return Events(project / "events" / "events.jsonl")


@pytest.fixture
def labels(project: Path) -> pd.DataFrame:
    """400 labels in no order, of two contacts that nobody knows and one that is null besides."""
    frame = pd.read_csv(project / "events" / "labels.csv", parse_dates=["event_timestamp"])
    frame = frame.sample(frac=1, random_state=1).reset_index(drop=True)
    frame["contact_id"] = frame["contact_id"].astype("object")
    frame.loc[5, "contact_id"] = "nobody"
    frame.loc[17, "contact_id"] = "no one"
    frame.loc[40, "contact_id"] = None
    return frame
