"""What is refused, and with which words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import loam

LABELS = pd.DataFrame({"contact_id": ["c1"], "event_timestamp": [pd.Timestamp("2026-02-20")]})


def test_errors_of_the_binary(store: loam.Store, binary: Path, tmp_path: Path) -> None:
    with pytest.raises(loam.LoamError, match="has no feature") as e:
        store.get_historical_features(LABELS, ["profile:mkt_statu"]).to_df()
    assert not str(e.value).startswith("loam: ")
    assert e.value.exit_code == 1
    assert e.value.command[0] == str(binary)
    with pytest.raises(loam.LoamError, match='no feature service "large"; known: small'):
        store.get_historical_features(LABELS, "large").to_df()
    with pytest.raises(loam.LoamError, match="needs the label column contact_id"):
        store.get_historical_features(LABELS.rename(columns={"contact_id": "id"}), ["profile:*"]).to_df()
    with pytest.raises(loam.LoamError, match='no time column "at"'):
        store.get_historical_features(LABELS, ["profile:*"], time_column="at").to_df()
    with pytest.raises(loam.LoamError, match="--as-of is served or event") as e:
        store.get_historical_features(LABELS, ["profile:*"], as_of="now").to_df()  # type: ignore[arg-type]
    assert e.value.exit_code == 2
    assert "usage" not in str(e.value)
    late = LABELS.assign(event_timestamp=pd.Timestamp("2030-01-01"))
    with pytest.raises(loam.LoamError, match="later than the watermark"):
        store.get_historical_features(late, ["profile:*"], require_complete=True).persist(tmp_path / "late.parquet")
    assert list(tmp_path.iterdir()) == []


def test_every_problem_of_a_folder(binary: Path, tmp_path: Path) -> None:
    (tmp_path / "loam.yaml").write_text("project: bad\nlake: {catalogue: x}\nbrokers: {}\n")
    with pytest.raises(loam.LoamError) as e:
        loam.Store(tmp_path, binary=binary).list_entities()
    assert "loam.yaml:2: lake.catalogue" in str(e.value)
    assert "loam.yaml:3: brokers" in str(e.value)


def test_labels_that_are_none(store: loam.Store, tmp_path: Path) -> None:
    def refused(labels: object, match: str) -> None:
        with pytest.raises(loam.LoamError, match=match):
            store.get_historical_features(labels, ["profile:*"]).to_df()

    refused([1, 2], r"labels are a DataFrame.*not builtins\.list")
    refused(tmp_path / "absent.parquet", "there is no label file")
    refused(pd.concat([LABELS, LABELS], axis=1), "column contact_id more than once")
    refused(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "column a more than once")
    refused(LABELS.rename(columns={"contact_id": 3}), "column 3 of the labels has a name that is not text")
    refused(LABELS.assign(odd=[object()]), "can't be made Arrow")
    refused(pa.table({}), "have no columns")
    months = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    refused(pa.table({"span": months}), "column span of the labels is month_day_nano_interval")
    with pytest.raises(loam.LoamError, match="name of a feature service"):
        store.get_historical_features(LABELS, "profile:vip")
    with pytest.raises(loam.LoamError, match="no feature to get"):
        store.get_historical_features(LABELS, [])
    with pytest.raises(loam.LoamError, match="at_label_time is"):
        store.get_historical_features(LABELS, ["profile:*"], at_label_time="drop")  # type: ignore[arg-type]


def test_no_project_and_no_binary(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(loam.LoamError, match=r"no loam.yaml in"):
        loam.Store(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LOAM_BINARY", raising=False)
    with pytest.raises(loam.BinaryNotFoundError, match=r"no binary `loam` on PATH; build it with `make build`.*LOAM_BINARY"):
        loam.Store(project)
    with pytest.raises(loam.BinaryNotFoundError, match=r"binary names .*absent"):
        loam.Store(project, binary=tmp_path / "absent")
    monkeypatch.setenv("LOAM_BINARY", str(tmp_path / "gone"))
    with pytest.raises(loam.BinaryNotFoundError, match=r"LOAM_BINARY names .*gone"):
        loam.Store(project)
    (tmp_path / "loam").write_text("no program")
    (tmp_path / "loam").chmod(0o755)
    with pytest.raises(loam.BinaryNotFoundError, match=r"run .*loam: "):
        loam.Store(project, binary=tmp_path / "loam").list_entities()


# Takes its orders from the arguments: it says that it runs, and on being told to end says that, too.
SLOW = """#!/bin/sh
trap 'echo ended > "$STATE.ended"; exit 1' TERM
echo "$$" > "$STATE.new"; mv "$STATE.new" "$STATE"
while :; do sleep 0.05; done
"""


def test_an_interrupt_ends_the_binary(project: Path, tmp_path: Path) -> None:
    slow, state = tmp_path / "slow", tmp_path / "state"
    slow.write_text(SLOW)
    slow.chmod(0o755)
    program = f"import loam; loam.Store({str(project)!r}, binary={str(slow)!r}).list_entities()"
    python = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "STATE": str(state)}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not state.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    python.send_signal(signal.SIGINT)
    _, said = python.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    assert (tmp_path / "state.ended").read_text() == "ended\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(state.read_text()), 0)
