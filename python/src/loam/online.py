"""Online values, as a server or the binary gave them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from loam.binary import LoamError
from loam.job import dtype_mapper, to_pandas

if TYPE_CHECKING:
    import pandas as pd

# What an event timestamp is of a value that has none: Feast's, and the server's.
NO_TIME = "1970-01-01T00:00:00Z"

ENTITIES_HINT = 'such as [{"contact_id": "c1"}, {"contact_id": "c2"}]'


@dataclass(frozen=True)
class OnlineResponse:
    """Features of entities as of now: of each name a value for each entity, join keys first, then the features as asked.

    statuses say of every value what it is: PRESENT, NOT_FOUND, NULL_VALUE or OUTSIDE_MAX_AGE; only what is PRESENT isn't None.
    event_timestamps are those of the changes that values come from, as text, and None where there is none.
    """

    values: Mapping[str, list[Any]]
    statuses: Mapping[str, list[str]]
    event_timestamps: Mapping[str, list[str | None]]
    types: Mapping[str, pa.DataType] = field(default_factory=dict)

    @property
    def feature_names(self) -> list[str]:
        """The names, in their order."""
        return list(self.values)

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, list[Any]]:
        """The values by name; with include_event_timestamps the times as <name>__ts beside them, as Feast names them."""
        columns = {name: list(values) for name, values in self.values.items()}
        if include_event_timestamps:
            columns |= {f"{name}__ts": list(times) for name, times in self.event_timestamps.items()}
        return columns

    def to_arrow(self) -> pa.Table:
        """The values as an Arrow table. What is an object of JSON is its text."""
        arrays, fields = [], []
        for name, values in self.values.items():
            kind = self.types.get(name)
            try:
                column = pa.array([_plain(v) for v in values], kind)
            except (pa.ArrowException, OverflowError) as e:
                raise LoamError(f"values of {name} are of no one type of Arrow: {e}") from e
            arrays.append(column)
            fields.append(pa.field(name, column.type))
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    def to_df(self, *, dtype_backend: Literal["pyarrow", "numpy_nullable"] | None = None) -> pd.DataFrame:
        """The values as a DataFrame of pandas. A whole number that pandas would round, since nulls are beside it, is refused."""
        return to_pandas(self.to_arrow(), dtype_mapper(dtype_backend))


def _plain(value: Any) -> Any:
    nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if nested else value


def entity_columns(entity_rows: Any) -> dict[str, list[Any]]:
    """Columns of join keys: of a list of dicts, as Feast takes them, of columns, or of a DataFrame or Arrow table."""
    if isinstance(entity_rows, Mapping):
        columns = {str(name): list(values) for name, values in entity_rows.items()}
    elif isinstance(entity_rows, Sequence) and not isinstance(entity_rows, (str, bytes)):
        rows: Sequence[Any] = entity_rows
        if any(not isinstance(row, Mapping) or set(row) != set(rows[0]) for row in rows):
            raise LoamError(f"entity_rows are dicts with the same join keys each, {ENTITIES_HINT}")
        columns = {str(name): [row[name] for row in rows] for name in (rows[0] if rows else ())}
    else:
        from loam import labels

        taken = labels.take(entity_rows)
        if taken.table is None:
            raise LoamError(f"entity_rows are dicts, columns, a DataFrame or an Arrow table, {ENTITIES_HINT}")
        columns = taken.table.to_pydict()
    if not columns or not next(iter(columns.values())):
        raise LoamError(f"there is no entity to get features of: give entity_rows, {ENTITIES_HINT}")
    return columns


def encode(value: Any) -> Any:
    """What JSON has no type for, as loam reads it."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, (date, Decimal)):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    item = getattr(value, "item", None)  # numpy's scalars
    if callable(item):
        return item()
    raise TypeError(f"{type(value).__qualname__} has no JSON")


def of_answer(answer: Mapping[str, Any]) -> OnlineResponse:
    """The response in a server's answer."""
    names = answer["metadata"]["feature_names"]
    results = answer["results"]
    return OnlineResponse(
        values={name: r["values"] for name, r in zip(names, results, strict=True)},
        statuses={name: r["statuses"] for name, r in zip(names, results, strict=True)},
        event_timestamps={
            name: [None if t == NO_TIME else t for t in r["event_timestamps"]] for name, r in zip(names, results, strict=True)
        },
    )


def of_rows(
    keys: Mapping[str, list[Any]], rows: Sequence[Mapping[str, Any]], dtypes: Mapping[str, str], full_feature_names: bool
) -> OnlineResponse:
    """The response in what `loam get --json` printed. dtypes are loam's types of features, by view:feature."""
    values: dict[str, list[Any]] = {name: list(column) for name, column in keys.items()}
    statuses: dict[str, list[str]] = {name: ["PRESENT"] * len(column) for name, column in keys.items()}
    times: dict[str, list[str | None]] = {name: [None] * len(column) for name, column in keys.items()}
    types: dict[str, pa.DataType] = {}
    for i, asked in enumerate(rows[0]["features"]):
        ref: str = asked["feature"]
        name = ref.replace(":", "__") if full_feature_names else ref.partition(":")[2]
        if name in values:
            raise LoamError(f"two columns would be called {name}: leave full_feature_names as it is")
        read, types[name] = _typed(dtypes[ref])
        cells = [row["features"][i] for row in rows]
        values[name] = [None if c["value"] is None else read(c["value"]) for c in cells]
        statuses[name] = [c["status"] for c in cells]
        times[name] = [c["event_timestamp"] for c in cells]
    return OnlineResponse(values, statuses, times, types)


def _typed(dtype: str) -> tuple[Callable[[Any], Any], pa.DataType]:
    """How a value of one of loam's types is read from JSON, and its type of Arrow."""
    if dtype.startswith("list<"):
        read, inner = _typed(dtype[len("list<") : -1])
        return lambda items: [None if v is None else read(v) for v in items], pa.list_(inner)
    if dtype.startswith("decimal("):
        precision, scale = dtype[len("decimal(") : -1].split(",")
        return Decimal, pa.decimal128(int(precision), int(scale))
    plain: dict[str, tuple[Callable[[Any], Any], pa.DataType]] = {
        "bool": (bool, pa.bool_()),
        "int64": (int, pa.int64()),
        "double": (float, pa.float64()),
        "timestamp": (lambda text: datetime.fromisoformat(text.replace("Z", "+00:00")), pa.timestamp("us", "UTC")),
        "date": (date.fromisoformat, pa.date32()),
        "json": (lambda v: json.dumps(v, ensure_ascii=False, separators=(",", ":")), pa.string()),
    }
    return plain.get(dtype, (str, pa.string()))
