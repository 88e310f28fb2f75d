"""Values against a slow path, whatever library labels come from and results go to."""

from __future__ import annotations

import gc
import json
import subprocess
from decimal import Decimal
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import loam
from oracle import Clock, Events

PROFILE = ["profile:mkt_status", "profile:segments", "profile:open_tickets", "profile:vip"]
ACTIVITY = ["activity:opened_1d", "activity:opened_7d", "activity:channels_30d"]


def expected(events: Events, labels: pd.DataFrame, clock: Clock) -> list[dict[str, object]]:
    rows = []
    for key, t in zip(labels["contact_id"], labels["event_timestamp"], strict=True):
        state = events.contact(key, t, clock)
        opened = [
            sum(e["type"] == "email" and e["outcome"] == "opened" for e in events.window(key, t, clock, days)) for days in (1, 7)
        ]
        rows.append(
            {
                "profile__mkt_status": state and state["mkt_status"],
                "profile__segments": state and state["segments"],
                "profile__open_tickets": state and state["attributes"]["open_tickets"],
                "profile__vip": state and "vip" in state["segments"],
                "activity__opened_1d": opened[0],
                "activity__opened_7d": opened[1],
                "activity__channels_30d": len({e["channel"] for e in events.window(key, t, clock, 30)}),
            }
        )
    return rows


@pytest.mark.parametrize("clock", ["served", "event"])
def test_values_are_those_of_the_slow_path(store: loam.Store, events: Events, labels: pd.DataFrame, clock: Clock) -> None:
    job = store.get_historical_features(labels, features=PROFILE + ACTIVITY, as_of=clock)
    table = job.to_arrow()
    assert table.column_names[:3] == ["contact_id", "event_timestamp", "churned"]
    want = expected(events, labels, clock)
    assert table.select(list(want[0])).to_pylist() == want
    # Neither is a table of nulls, or of one value.
    assert 0 < table["profile__mkt_status"].null_count < 350
    assert len(set(table["activity__opened_7d"].to_pylist())) > 4
    assert job.card["request"]["as_of"] == clock
    assert job.card["audit"]["max_us"] <= 0


def test_clocks_differ(store: loam.Store, labels: pd.DataFrame) -> None:
    served, event = (store.get_historical_features(labels, PROFILE + ACTIVITY, as_of=c).to_arrow() for c in ("served", "event"))
    assert not served.equals(event)


def test_label_time_itself(store: loam.Store, events: Events) -> None:
    """At the time of a contact's first event the contact is there, unless that is excluded."""
    key, changes = next((k, c) for k, c in events.contacts.items() if len(c) > 3)
    labels = pd.DataFrame({"contact_id": [key], "event_timestamp": [min(e["event"] for e in changes)]})
    include = store.get_historical_features(labels, ["profile:mkt_status"], as_of="event")
    exclude = store.get_historical_features(labels, ["profile:mkt_status"], as_of="event", at_label_time="exclude")
    assert include.to_arrow()["profile__mkt_status"].to_pylist() == ["lead"]
    assert exclude.to_arrow()["profile__mkt_status"].to_pylist() == [None]


def test_known_at(store: loam.Store, labels: pd.DataFrame) -> None:
    """All that is in the lake was recorded when the tests began, so long before it nothing was known."""
    job = store.get_historical_features(labels, PROFILE, known_at="2020-01-01T00:00:00Z")
    assert job.to_arrow()["profile__mkt_status"].null_count == len(labels)
    job = store.get_historical_features(labels, PROFILE, known_at=pd.Timestamp("2100-01-01").to_pydatetime())
    assert job.to_arrow() == store.get_historical_features(labels, PROFILE).to_arrow()


def test_labels_of_every_kind(store: loam.Store, labels: pd.DataFrame, tmp_path: Path) -> None:
    table = pa.Table.from_pandas(labels, preserve_index=False)
    pq.write_table(table, tmp_path / "labels.parquet")
    labels.to_csv(tmp_path / "labels.csv", index=False)
    want = store.get_historical_features(labels, PROFILE + ACTIVITY).to_arrow().drop_columns(table.column_names)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    for given in (
        table,
        table.to_reader(),
        table.combine_chunks().to_batches()[0],
        frame,
        frame.lazy(),
        tmp_path / "labels.parquet",
        str(tmp_path / "labels.csv"),
    ):
        got = store.get_historical_features(given, PROFILE + ACTIVITY).to_arrow()
        assert got.column_names == table.column_names + want.column_names
        assert got.drop_columns(table.column_names) == want, type(given)
        assert got["churned"].to_pylist() == labels["churned"].to_list()


def test_service_and_views(store: loam.Store, labels: pd.DataFrame) -> None:
    by_name = store.get_historical_features(labels, features="small")
    assert by_name.to_arrow().column_names[3:] == ["profile__mkt_status", "activity__opened_7d"]
    assert by_name.card["request"]["service"] == "small"
    (service,) = store.list_feature_services()
    assert store.get_historical_features(labels, service).to_arrow() == by_name.to_arrow()
    activity, _, profile = store.list_feature_views()
    whole = store.get_historical_features(labels, [activity, "profile:vip"]).to_arrow()
    assert whole.column_names[3:] == [f"activity__{f.name}" for f in activity.features] + ["profile__vip"]
    assert (profile.name, profile.entity, profile.stream, profile.ttl) == ("profile", "contact", "contact", "7d")
    assert loam.Field("segments", "list<string>") in profile.features
    assert store.list_entities() == [loam.Entity("contact", ("contact_id",)), loam.Entity("deal", ("opportunity_id",))]


def test_several_entities_a_row(store: loam.Store, events: Events) -> None:
    keys = sorted(events.deals)[:50]
    labels = pa.table(
        {
            "opportunity_id": keys,
            "contact_id": ["c" + key[1:].split("-")[0] for key in keys],
            "event_timestamp": pa.array([pd.Timestamp("2026-02-10")] * 50, pa.timestamp("us")),
        }
    )
    table = store.get_historical_features(labels, ["deal:amount", "deal:close_date", "profile:mkt_status"]).to_arrow()
    t = pd.Timestamp("2026-02-10", tz="UTC")
    for row in table.to_pylist():
        deal = events.state(events.deals, row["opportunity_id"], t, "served")
        contact = events.contact(row["contact_id"], t, "served")
        assert row["deal__amount"] == (deal and Decimal(str(deal["amount"]["value"])))
        assert row["deal__close_date"] == (deal and pd.Timestamp(deal["close_date"]).date())
        assert row["profile__mkt_status"] == (contact and contact["mkt_status"])


def test_full_feature_names(store: loam.Store, labels: pd.DataFrame) -> None:
    long = store.get_historical_features(labels, ["profile:vip", "activity:opened_1d"])
    short = store.get_historical_features(labels, ["profile:vip", "activity:opened_1d"], full_feature_names=False)
    assert list(short.to_df()) == ["contact_id", "event_timestamp", "churned", "vip", "opened_1d"]
    assert short.to_arrow()["vip"] == long.to_arrow()["profile__vip"]
    clash = store.get_historical_features(labels.rename(columns={"churned": "vip"}), ["profile:vip"], full_feature_names=False)
    with pytest.raises(loam.LoamError, match="two columns would be called vip"):
        clash.to_df()


def test_persist(store: loam.Store, labels: pd.DataFrame, tmp_path: Path) -> None:
    job = store.get_historical_features(labels, "small")
    first = job.persist(tmp_path / "new" / "churn.parquet")  # built there
    assert sorted(p.name for p in first.parent.iterdir()) == ["churn.card.json", "churn.labels.parquet", "churn.parquet"]
    assert job.card["out"] == str(first)
    assert pq.read_table(first)["profile__mkt_status"] == job.to_arrow()["profile__mkt_status"]
    assert pq.read_table(job.card["labels"]["path"]).num_rows == len(labels)
    with pytest.raises(loam.LoamError, match=r"churn.parquet is there already"):
        store.get_historical_features(labels, "small").persist(first)
    other = store.get_historical_features(labels, "small")
    other.to_df()
    second = other.persist(tmp_path / "other.parquet")  # built elsewhere, and copied
    assert pq.read_table(second) == pq.read_table(first)
    assert (tmp_path / "other.card.json").is_file()
    other.persist(first, allow_overwrite=True)
    before = {p.name: p.read_bytes() for p in first.parent.iterdir()}
    with pytest.raises(loam.LoamError, match="no feature service"):
        store.get_historical_features(labels.head(3), "absent").persist(first, allow_overwrite=True)
    assert {p.name: p.read_bytes() for p in first.parent.iterdir()} == before
    with pytest.raises(loam.LoamError, match=r"end it in \.parquet"):
        job.persist(tmp_path / "churn.csv")


def test_join_keys_under_other_names(store: loam.Store, labels: pd.DataFrame) -> None:
    want = store.get_historical_features(labels, "small").to_arrow()
    renamed = labels.rename(columns={"contact_id": "customer"})
    got = store.get_historical_features(renamed, "small", join_keys={"contact_id": "customer"}).to_arrow()
    assert got.column_names[0] == "customer"
    assert got["profile__mkt_status"] == want["profile__mkt_status"]
    with pytest.raises(loam.LoamError, match="contact_id"):
        store.get_historical_features(renamed, "small").to_arrow()


def test_snapshots_are_pinned_for_what_is_kept(
    store: loam.Store, labels: pd.DataFrame, binary: Path, project: Path, tmp_path: Path
) -> None:
    def pinned() -> dict[str, bool]:
        listed = subprocess.run([binary, "-C", project, "dataset", "list", "--json"], check=True, capture_output=True)
        return {d["out"]: d["pinned"] == "yes" for d in json.loads(listed.stdout)}

    job = store.get_historical_features(labels, "small")
    kept = store.get_historical_features(labels, "small")
    out, kept_out = job.card["out"], kept.card["out"]
    assert pinned()[out]
    assert pinned()[kept_out]
    kept.persist(tmp_path / "kept.parquet")
    del job, kept
    gc.collect()
    assert not pinned()[out]
    assert pinned()[kept_out]


def test_materialize(store: loam.Store) -> None:
    done = {m["view"]: m for m in store.materialize()}
    assert done["profile"]["entities"] > 200
    assert done["activity"]["entities"] == 0  # its events are of January and February 2026: no window needs them
    assert [m["view"] for m in store.materialize(["deal"])] == ["deal"]
