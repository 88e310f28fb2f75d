"""What a `loam serve` gives, held against what the binary gives."""

from __future__ import annotations

import decimal
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import loam

SCORES = """
stream: score
kind: state
format: row
key: [contact_id]
event_time: event_timestamp
columns:
  - {name: contact_id, type: string}
  - {name: points, type: int64}
  - {name: share, type: "decimal(9,4)"}
  - {name: tags, type: list<string>}
"""

VIEWS = """
views:
  - {name: scores, entity: contact, stream: score, features: [points, share, tags]}
  - name: lasting
    entity: contact
    stream: contact
    features: [mkt_status, segments, {name: open_tickets, type: int64, sql: "attributes->>'open_tickets'"}]
"""


@pytest.fixture(scope="module")
def folder(project: Path, binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own, which tests push to, with the events of the other one."""
    folder = tmp_path_factory.mktemp("served") / "crm"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".loam"))
    (folder / "streams").mkdir(exist_ok=True)
    (folder / "streams" / "score.yaml").write_text(SCORES)
    (folder / "features" / "scores.yaml").write_text(VIEWS)
    keys = "serve:\n  keys:\n    - {name: all, key: {file: all.key}, views: ['*'], push: ['*']}\n"
    keys += "    - {name: few, key: {file: few.key}, views: [profile]}\n"
    with (folder / "loam.yaml").open("a") as f:
        f.write(keys)
    (folder / "all.key").write_text("s3cret")
    (folder / "few.key").write_text("0ther")
    (folder / "all.key").chmod(0o600)
    (folder / "few.key").chmod(0o600)
    done = subprocess.run(
        [binary, "-C", folder, "backfill", folder / "events" / "events.jsonl"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, binary: Path) -> Iterator[str]:
    """The address of a server, which reads its values from the lake as it is at the start."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen([binary, "-C", folder, "serve", "--addr", f"127.0.0.1:{port}"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    said = []
    for line in server.stderr:
        said.append(line)
        if line.startswith("serving features"):
            break
    else:
        raise AssertionError("".join(said))
    rest = threading.Thread(target=server.stderr.read)
    rest.start()
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    assert server.wait(30) == 0
    rest.join()
    server.stderr.close()


@pytest.fixture
def client(url: str) -> Iterator[loam.Client]:
    with loam.Client(url, api_key="s3cret") as client:
        yield client


@pytest.fixture(scope="module")
def served(folder: Path, binary: Path) -> loam.Store:
    return loam.Store(folder, binary=binary)


def test_online_values_are_those_of_the_binary(client: loam.Client, served: loam.Store, labels: pd.DataFrame) -> None:
    contacts = [*labels["contact_id"].dropna().unique()[:600], "nobody"]
    asked = served.get_online_features(["lasting:*"], {"contact_id": contacts})
    given = client.get_online_features(["lasting:*"], [{"contact_id": c} for c in contacts])
    assert given.feature_names == ["contact_id", "lasting__mkt_status", "lasting__segments", "lasting__open_tickets"]
    assert given.statuses == asked.statuses
    assert set(given.statuses["lasting__open_tickets"]) == {"PRESENT", "NOT_FOUND"}
    assert given.values == asked.values
    for name, times in given.event_timestamps.items():
        assert [t and pd.Timestamp(t) for t in times] == [t and pd.Timestamp(t) for t in asked.event_timestamps[name]]
    frame = client.get_online_features(
        ["lasting:*"], pd.DataFrame({"contact_id": contacts[:3]}), full_feature_names=False
    ).to_df()
    assert [None if pd.isna(v) else v for v in frame["mkt_status"]] == given.values["lasting__mkt_status"][:3]


def test_pushed_rows_are_in_every_store(client: loam.Client, served: loam.Store, binary: Path) -> None:
    at = pd.Timestamp("2026-03-01T00:00:00.123456Z")
    rows = pa.table(
        {
            "contact_id": ["p1", "p2"],
            "points": pa.array([9007199254740993, None]),
            "share": pa.array([decimal.Decimal("0.1000"), decimal.Decimal("-12345.6789")]),
            "tags": [["a", "b"], []],
            "event_timestamp": pa.array([at, at], pa.timestamp("us", "UTC")),
        }
    )
    assert client.push("scores_push", rows, idempotency_key="one") == 2
    assert client.push("score", rows, idempotency_key="one") == 2
    assert client.push("score", pl.from_arrow(rows.slice(0, 1))) == 1
    more = {"contact_id": ["p3"], "points": [7], "share": [decimal.Decimal("1.5")], "tags": [None], "event_timestamp": [at]}
    assert client.push("score", more) == 1
    run = subprocess.run([binary, "-C", served.path, "--json", "run", "--until-end"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    counts = json.loads(run.stdout)["streams"]["score"]
    assert (counts["read"], counts["accepted"], counts["duplicate"]) == (6, 3, 3)
    # The store reads the lake as it is now.
    online = served.get_online_features(
        ["scores:*"], [{"contact_id": c} for c in ("p1", "p2", "p3", "p4")], full_feature_names=False
    )
    assert online.to_dict() == {
        "contact_id": ["p1", "p2", "p3", "p4"],
        "points": [9007199254740993, None, 7, None],
        "share": [decimal.Decimal("0.1000"), decimal.Decimal("-12345.6789"), decimal.Decimal("1.5000"), None],
        "tags": [["a", "b"], [], None, None],
    }
    assert online.statuses["points"] == ["PRESENT", "NULL_VALUE", "PRESENT", "NOT_FOUND"]
    assert online.to_dict(include_event_timestamps=True)["points__ts"][0] == "2026-03-01T00:00:00.123456Z"
    assert online.to_arrow().schema.field("share").type == pa.decimal128(9, 4)
    with pytest.raises(loam.LoamError, match="float64 can't hold"):
        online.to_df()
    assert online.to_df(dtype_backend="numpy_nullable")["points"][0] == 9007199254740993
    labels = pd.DataFrame({"contact_id": ["p2", "p1", "p3"], "event_timestamp": [at, at, at]})
    history = client.get_historical_features(labels, ["scores:*"], as_of="event").to_arrow().to_pylist()
    assert [row["scores__points"] for row in history] == [None, 9007199254740993, 7]
    assert [row["scores__share"] for row in history] == [online.to_dict()["share"][i] for i in (1, 0, 2)]


def test_training_sets_are_those_of_the_binary(
    client: loam.Client, served: loam.Store, labels: pd.DataFrame, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"features": ["profile:*", "activity:*"], "as_of": "event", "known_at": "2030-01-01T00:00:00Z"}
    given = client.get_historical_features(labels, **asked)
    assert given.to_arrow().equals(served.get_historical_features(labels, **asked).to_arrow())
    pd.testing.assert_frame_equal(given.to_df()[list(labels.columns)], labels)
    path = given.persist(tmp_path / "kept.parquet")
    assert pd.read_parquet(path).shape == given.to_df().shape
    kept = json.loads((tmp_path / "kept.card.json").read_text())
    assert kept == given.card == client.get_dataset(kept["tag"])
    assert kept["tag"] in [d["id"] for d in client.list_datasets()]
    # What isn't kept is unpinned.
    dropped = client.get_historical_features(labels, ["profile:vip"])
    tag = dropped.card["tag"]
    del dropped
    listed = subprocess.run(
        [served.binary, "-C", served.path, "dataset", "list", "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    pinned = {d["tag"]: d["pinned"] for d in json.loads(listed.stdout)}
    assert (pinned[tag], pinned[kept["tag"]]) == ("no", "yes")
    client.unpin_dataset(kept["tag"])


def test_outcomes_sample_and_split(client: loam.Client, served: loam.Store, labels: pd.DataFrame) -> None:
    early = labels.assign(event_timestamp=pd.Timestamp("2026-01-20", tz="UTC")).dropna(subset="contact_id")
    asked: dict[str, Any] = {
        "features": ["profile:vip"],
        "outcomes": {"went": "contact:7d:mkt_status = 'customer'"},
        "sample": 200,
        "split": "key:0.8",
        "seed": 3,
    }
    store, remote = served.get_historical_features(early, **asked), client.get_historical_features(early, **asked)
    frame = store.to_df()
    assert len(frame) == 200
    assert set(frame["split"]) == {"train", "test"}
    assert frame["went"].isin([True, False]).all()
    assert remote.to_arrow().equals(store.to_arrow())
    assert remote.to_polars().height == 200


def test_labels_of_the_lake(served: loam.Store) -> None:
    query = loam.Query("SELECT contact_id, valid_from AS event_timestamp FROM contact_history")
    frame = served.get_historical_features(query, ["profile:mkt_status"], as_of="event").to_df()
    assert len(frame) > 300
    assert list(frame.columns) == ["contact_id", "event_timestamp", "profile__mkt_status"]
    table = served.get_historical_features(
        loam.LakeTable("contact_history"), ["profile:vip"], time_column="valid_from"
    ).to_arrow()
    assert table.num_rows == len(frame)


def test_what_a_server_refuses(client: loam.Client, url: str, served: loam.Store) -> None:
    row = {"contact_id": ["c1"], "points": ["7"], "share": ["1.00"], "tags": [[]], "event_timestamp": ["2026-03-01T00:00:00Z"]}
    with pytest.raises(loam.ServerError, match=r"df.points\[0\]: row 0: points: want a whole number of 64 bits; mend") as e:
        client.push("score", row)
    assert (e.value.status, e.value.code) == (422, "rows_refused")
    assert e.value.details["rows"] == [
        {"row": 0, "column": "points", "reason": "bad_value", "detail": "want a whole number of 64 bits"}
    ]
    with pytest.raises(loam.ServerError, match="no such column"):
        client.push("score", {**row, "point": [7]})
    with pytest.raises(loam.ServerError, match='no stream or feature view "scored"') as e:
        client.push("scored", row)
    assert "scores" in e.value.details["known"]
    with pytest.raises(loam.ServerError, match='no feature view "profil"'):
        client.get_online_features(["profil:vip"], [{"contact_id": "c1"}])
    with pytest.raises(loam.ServerError, match='no time column "at"') as e:
        client.get_historical_features(
            pd.DataFrame({"contact_id": ["c1"], "event_timestamp": [1]}), ["profile:vip"], time_column="at"
        ).to_df()
    assert e.value.status == 422
    with pytest.raises(loam.ServerError, match="no training set"):
        client.get_dataset("dataset-1")
    with loam.Client(url) as nobody, pytest.raises(loam.ServerError, match="no API key") as e:
        nobody.list_datasets()
    assert e.value.status == 401
    label = pd.DataFrame({"contact_id": ["c1"], "event_timestamp": ["2026-01-01"]})
    with loam.Client(url, api_key="0ther") as few:
        with pytest.raises(loam.ServerError, match="may not push to stream score"):
            few.push("score", row)
        with pytest.raises(loam.ServerError, match="may not read feature view scores"):
            few.get_historical_features(label, ["scores:points"]).to_df()
        with pytest.raises(loam.ServerError, match="outcomes are of any stream"):
            few.get_historical_features(label, ["profile:vip"], outcomes={"x": "contact:7d:true"}).to_df()
    with pytest.raises(loam.LoamError, match="is a Store's to read"):
        client.get_historical_features(loam.Query("SELECT 1"), ["profile:vip"])
    with pytest.raises(loam.LoamError, match="has a comma"):
        served.get_online_features(["profile:vip"], [{"contact_id": "a,b"}])
    with pytest.raises(loam.LoamError, match="same join keys"):
        client.get_online_features(["profile:vip"], [{"contact_id": "a"}, {"id": "b"}])
    with pytest.raises(loam.LoamError, match="no entity"):
        client.get_online_features(["profile:vip"], [])
    with pytest.raises(loam.LoamError, match="no address of a server"):
        loam.Client("127.0.0.1:6566")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        gone = loam.Client(f"http://127.0.0.1:{s.getsockname()[1]}", timeout=2)
        with pytest.raises(loam.ServerError, match="gave no answer") as e:
            gone.list_datasets()
        assert e.value.status is None


class Fickle(http.server.BaseHTTPRequestHandler):
    """Answers each connection once, and then ends it without a word."""

    protocol_version = "HTTP/1.1"
    taken: list[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append(self.headers.get("Idempotency-Key", ""))
        answer = b'{"accepted": 1}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def test_a_kept_connection_that_has_ended_is_opened_anew() -> None:
    Fickle.taken = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fickle)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with loam.Client(f"http://127.0.0.1:{server.server_port}", timeout=5) as client:
            for _ in range(3):
                assert client.push("x", {"a": [1]}) == 1
                time.sleep(0.05)
            # Without a key nobody could tell whether it counts twice.
            with pytest.raises(loam.ServerError, match="whether it was done nobody knows"):
                client.push("x", {"a": [1]}, idempotency_key="")
    finally:
        server.shutdown()
        server.server_close()
    assert len(set(Fickle.taken)) == 3


def test_an_answer_that_takes_too_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        client = loam.Client(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout=0.2)
        with pytest.raises(loam.ServerError, match=r"no answer within 0\.2 s"):
            client.list_datasets()
