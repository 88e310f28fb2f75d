"""Reads features with Feast's own SDK, from the Redis that loam writes.

usage: read.py REDIS PROJECT < request

The request is JSON: {"views": [{"name", "join_keys": {name: type}, "features": {name: type}}], "rows": [{join key: value}]}, with
the types string, int64, double, bool and date. The answer is JSON: a list of the values by view:feature for each row, and
the event times by view. The feature store is defined as its users do: entities, feature views, `apply`.
"""

import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float64, Int64, String, UnixTimestamp

TYPES = {"string": String, "int64": Int64, "double": Float64, "bool": Bool, "date": UnixTimestamp}
KEYS = {"string": ValueType.STRING, "int64": ValueType.INT64}

CONFIG = """project: {project}
provider: local
registry: registry.db
online_store: {{type: redis, connection_string: "{redis}"}}
offline_store: {{type: file}}
entity_key_serialization_version: 3
"""


def store_of(folder: Path, redis: str, project: str, views: list) -> FeatureStore:
    (folder / "feature_store.yaml").write_text(CONFIG.format(project=project, redis=redis))
    arrow = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_(), "date": pa.timestamp("us", "UTC")}
    entities, defined = {}, []
    for view in views:
        columns = view["join_keys"] | view["features"]
        schema = pa.schema([pa.field(n, arrow[t]) for n, t in columns.items()] + [pa.field("event_timestamp", arrow["date"])])
        path = folder / f"{view['name']}.parquet"
        pq.write_table(schema.empty_table(), path)
        for name, kind in view["join_keys"].items():
            entities.setdefault(name, Entity(name=name, join_keys=[name], value_type=KEYS[kind]))
        defined.append(
            FeatureView(
                name=view["name"],
                entities=[entities[name] for name in view["join_keys"]],
                ttl=timedelta(days=0),
                schema=[Field(name=n, dtype=TYPES[t]) for n, t in columns.items()],
                source=FileSource(path=str(path), timestamp_field="event_timestamp"),
            )
        )
    store = FeatureStore(repo_path=str(folder))
    store.apply(list(entities.values()) + defined)
    return store


def text(value):
    return value.isoformat() if hasattr(value, "isoformat") else value


def main() -> None:
    redis, project = sys.argv[1:]
    request = json.load(sys.stdin)
    answer = [{"values": {}, "event_times": {}} for _ in request["rows"]]
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder), redis, project, request["views"])
        for view in request["views"]:
            rows = [{k: row[k] for k in view["join_keys"]} for row in request["rows"]]
            response = store.get_online_features(features=[f"{view['name']}:{f}" for f in view["features"]], entity_rows=rows)
            names = list(response.proto.metadata.feature_names.val)
            values = response.to_dict()
            for n in range(len(rows)):
                for f in view["features"]:
                    result = response.proto.results[names.index(f)]
                    answer[n]["values"][f"{view['name']}:{f}"] = text(values[f][n])
                    answer[n]["event_times"][view["name"]] = result.event_timestamps[n].ToJsonString()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
