"""Columns of labels come back as they were; types of features are what loam says they are."""

from __future__ import annotations

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import loam
from oracle import Events

ZONED = pa.timestamp("us", tz="Europe/Paris")


class Given:
    """A contact, a deal and a time, of which loam knows both; and four labels, of which the second and last see nothing."""

    def __init__(self, events: Events) -> None:
        self.contact, self.deal, self.time = events.lively()
        self.keys = [self.contact, "nobody", self.contact, None]
        self.times = [self.time.tz_localize(None).to_pydatetime() + datetime.timedelta(microseconds=i) for i in (5, 0, 0, 5)]


@pytest.fixture(scope="module")
def given(events: Events) -> Given:
    return Given(events)


def test_label_columns_are_untouched(store: loam.Store, given: Given) -> None:
    labels = pa.table(
        {
            "contact_id": given.keys,
            "event_timestamp": pa.array(given.times, ZONED),
            "naive": pa.array(given.times, pa.timestamp("ms")),
            "nano": pa.array([1, None, 3, 4], pa.timestamp("ns")),
            "int": pa.array([1, None, 2**62 + 1, -1], pa.int64()),
            "small": pa.array([1, None, 3, 4], pa.uint8()),
            "bool": [True, None, False, True],
            "double": [1.5, None, -0.0, float("inf")],
            "decimal": pa.array([Decimal("1.2500"), None, Decimal("-3"), Decimal(0)], pa.decimal128(18, 4)),
            "list": [["a", None], None, [], ["b"]],
            "struct": pa.array([{"x": 1}, None, {"x": None}, {"x": 2}]),
            "category": pa.array(["a", "b", None, "a"]).dictionary_encode(),
            "date": pa.array([datetime.date(2026, 1, 1), None, None, None]),
            "duration": pa.array([1, None, 3, 4], pa.duration("us")),
            "binary": [b"\x00\xff", None, b"", b"x"],
            "large": pa.array(["a", None, "c", "d"], pa.large_string()),
            "null": pa.nulls(4),
            'quote"d, name': ["a", "b", "c", "d"],
        }
    )
    table = store.get_historical_features(labels, ["profile:mkt_status"]).to_arrow()
    assert table.select(labels.column_names).equals(labels, check_metadata=True)
    assert table["profile__mkt_status"].to_pylist()[1] is None
    assert table["profile__mkt_status"].to_pylist()[3] is None


@pytest.fixture(scope="module")
def at_the_moment(store: loam.Store, given: Given) -> list[dict[str, object]]:
    """What the contact's features are at the moment."""
    labels = pa.table({"contact_id": [given.contact], "event_timestamp": [given.time.to_pydatetime()]})
    table = store.get_historical_features(labels, ["profile:*"]).to_arrow()
    assert table["profile__attributes"].null_count == 0
    return table.drop_columns(labels.column_names).to_pylist()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_times_of_every_kind_are_the_same_moment(
    store: loam.Store, given: Given, at_the_moment: list[dict[str, object]], unit: str, zone: str | None
) -> None:
    time = pa.array([given.time.as_unit("ns").value], pa.timestamp("ns", zone)).cast(pa.timestamp(unit, zone))
    labels = pa.table({"contact_id": [given.contact], "event_timestamp": time})
    table = store.get_historical_features(labels, ["profile:*"]).to_arrow()
    assert table.select(labels.column_names) == labels
    assert table.drop_columns(labels.column_names).to_pylist() == at_the_moment


def deals(store: loam.Store, given: Given, features: list[str]) -> loam.RetrievalJob:
    labels = pa.table({"opportunity_id": [given.deal, "none"], "event_timestamp": given.times[:2]})
    return store.get_historical_features(labels, features)


def test_types_of_features(store: loam.Store, given: Given) -> None:
    job = deals(store, given, ["deal:*"])
    schema = job.to_arrow().schema
    assert [(f.name, f.type) for f in list(schema)[2:]] == [
        ("deal__amount", pa.decimal128(18, 4)),
        ("deal__close_date", pa.date32()),
        ("deal__probability", pa.float64()),
        ("deal__entered", pa.timestamp("us", tz="UTC")),
        ("deal__large", pa.int64()),
    ]
    known, unknown = job.to_arrow().to_pylist()
    assert known["deal__large"] == 2**53 + 1
    assert all(unknown[name] is None for name in schema.names[2:])
    labels = pa.table({"contact_id": [given.contact], "event_timestamp": given.times[:1]})
    schema = store.get_historical_features(labels, ["profile:*"]).to_arrow().schema
    assert schema.field("profile__segments").type == pa.list_(pa.string())
    assert schema.field("profile__vip").type == pa.bool_()
    assert schema.field("profile__attributes").type == pa.string()


def test_whole_numbers_are_not_lost_in_pandas(store: loam.Store, given: Given) -> None:
    job = deals(store, given, ["deal:large"])
    with pytest.raises(loam.LoamError, match=r"deal__large has nulls.*dtype_backend"):
        job.to_df()
    nullable = job.to_df(dtype_backend="numpy_nullable")["deal__large"]
    assert nullable.dtype == pd.Int64Dtype()
    assert nullable.iloc[0] == 2**53 + 1
    arrow = job.to_df(dtype_backend="pyarrow")["deal__large"]
    assert arrow.dtype == pd.ArrowDtype(pa.int64())
    own = job.to_df(types_mapper={pa.int64(): pd.Int64Dtype()}.get)["deal__large"]
    assert own.iloc[0] == 2**53 + 1
    with pytest.raises(loam.LoamError, match="dtype_backend is"):
        job.to_df(dtype_backend="numpy")  # type: ignore[arg-type]


def test_pandas_keeps_dtypes_index_and_order(store: loam.Store, given: Given) -> None:
    labels = pd.DataFrame(
        {
            "contact_id": pd.Categorical(given.keys),
            "event_timestamp": pd.DatetimeIndex(given.times, tz="UTC").tz_convert("Asia/Tokyo").as_unit("ns"),
            "weight": pd.array([1, None, 3, 4], dtype="Int64"),
            "any": ["x", None, "y", "z"],
        },
        index=pd.Index([30, 10, 10, 20], name="row"),
    )
    before = labels.copy()
    job = store.get_historical_features(labels, ["profile:mkt_status", "profile:open_tickets", "activity:opened_7d"])
    labels["any"] = "changed after it was asked"
    frame = job.to_df()
    pd.testing.assert_frame_equal(frame[list(before)], before)
    assert frame["activity__opened_7d"].dtype == np.dtype("int64")
    assert frame["profile__open_tickets"].dtype == np.dtype("float64")
    assert frame["profile__open_tickets"].isna().to_list() == [False, True, False, True]
    polars = job.to_polars()
    assert polars["profile__open_tickets"].dtype == pl.Int64
    assert polars["weight"].to_list() == [1, None, 3, 4]


def test_polars_keeps_dtypes(store: loam.Store, given: Given) -> None:
    labels = pl.DataFrame(
        {
            "contact_id": pl.Series(given.keys, dtype=pl.Categorical),
            "event_timestamp": pl.Series(given.times).dt.replace_time_zone("UTC"),
            "size": pl.Series(["s", "m", None, "s"], dtype=pl.Enum(["s", "m"])),
        }
    )
    job = store.get_historical_features(labels, ["profile:mkt_status"])
    assert job.to_polars().drop("profile__mkt_status").equals(labels)
    assert job.to_polars().schema["size"] == pl.Enum(["s", "m"])
    assert job.to_df()["contact_id"].to_list()[:3] == given.keys[:3]


def test_anything_with_an_arrow_stream(store: loam.Store, given: Given) -> None:
    class Stream:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            views = pa.table({"contact_id": pa.array([given.contact], pa.string_view()), "event_timestamp": [given.times[0]]})
            return views.__arrow_c_stream__(requested_schema)

    assert store.get_historical_features(Stream(), ["profile:mkt_status"]).to_arrow()["profile__mkt_status"].null_count == 0


def test_no_labels(store: loam.Store, given: Given) -> None:
    labels = pa.schema([("contact_id", pa.string()), ("event_timestamp", ZONED)]).empty_table()
    job = store.get_historical_features(labels, ["profile:*", "activity:opened_7d"])
    assert job.to_arrow().num_rows == 0
    assert job.to_df().shape == (0, 8)
    assert job.to_polars().height == 0
