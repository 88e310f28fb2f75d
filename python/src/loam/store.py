"""A project folder, and what can be asked of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from loam import binary as program
from loam import exchange
from loam import labels as label_tables
from loam.binary import LoamError
from loam.definitions import Definitions, Entity, FeatureService, FeatureView
from loam.job import RetrievalJob


class Store:
    """A loam project, as Feast's FeatureStore is one of Feast.

    path is the project folder, which has loam.yaml. binary is the program to run; left out, it is the one that the
    environment variable LOAM_BINARY names, else `loam` on PATH. Neither a connection nor a file is kept open.
    """

    def __init__(self, path: str | os.PathLike[str] = ".", binary: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path).expanduser().absolute()
        if not (self.path / "loam.yaml").is_file():
            raise LoamError(f"there is no loam.yaml in {self.path}: name a project folder; `loam init` makes one")
        self.binary = program.find(binary)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def get_historical_features(
        self,
        entity_df: Any,
        features: str | FeatureService | Sequence[str | FeatureView],
        *,
        full_feature_names: bool = True,
        as_of: Literal["served", "event"] = "served",
        known_at: datetime | str | None = None,
        time_column: str = "event_timestamp",
        at_label_time: Literal["include", "exclude"] = "include",
        require_complete: bool = False,
        join_keys: Mapping[str, str] | None = None,
    ) -> RetrievalJob:
        """Asks for the features of labels, each as it was at the label's time. Nothing runs until the job is asked for a result.

        entity_df has a row a label: the join keys of the entities, a time, and any other columns, which pass through. It is a
        DataFrame of pandas or polars, an Arrow table or stream, or the path of a .parquet or .csv file. No zone means UTC.

        features are view:feature, view:* or a FeatureView for all of a view; or the name of a feature service, or one itself.

        full_feature_names=False names columns <feature> in place of <view>__<feature>, and refuses if two would be the same.
        That is Feast's default; here the full name is, so that a column of labels can hardly be in the way.

        as_of is the clock. served gives what loam had ingested by a label's time, which is what a model would have been given.
        event gives what was true in the source by then, even if it was learnt later: a training set that no model will be served.

        known_at takes only what loam had recorded by then (a naive datetime is UTC). at_label_time="exclude" leaves out what
        happened at the very time of a label. require_complete=True refuses labels later than the watermark.

        join_keys says which column of entity_df holds a join key, where that has another name: {"contact_id": "customer"}.
        """
        arguments = ["--as-of", as_of, "--time-column", time_column, *_features(features)]
        if known_at is not None:
            arguments += ["--known-at", known_at if isinstance(known_at, str) else _rfc3339(known_at)]
        if at_label_time not in ("include", "exclude"):
            raise LoamError(f'at_label_time is "include" or "exclude", not {at_label_time!r}')
        if at_label_time == "exclude":
            arguments.append("--exclude-label-time")
        if require_complete:
            arguments.append("--require-complete")
        for key, column in (join_keys or {}).items():
            arguments += ["--join-key", f"{key}={column}"]
        labels = label_tables.take(entity_df)

        def build(out: Path | None) -> exchange.Built:
            return exchange.build(self.binary, self.path, labels, arguments, out)

        return RetrievalJob(labels, build, full_feature_names)

    def list_entities(self) -> list[Entity]:
        """The entities of the project."""
        return list(self._definitions().entities)

    def list_feature_views(self) -> list[FeatureView]:
        """The feature views of the project."""
        return list(self._definitions().feature_views)

    def list_feature_services(self) -> list[FeatureService]:
        """The feature services of the project."""
        return list(self._definitions().feature_services)

    def _definitions(self) -> Definitions:
        return Definitions.of(self._json("validate")["defined"])

    def materialize(self, feature_views: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Builds views anew in the online store that loam.yaml names: those given, or all that are served online.

        Returns a dict for each: view, entities, wall_ms and, where it was left out, skipped with the reason. Workers may go on
        beside it. Unlike Feast's it takes no dates: what is built is the newest value of every entity, whatever its age.
        """
        arguments = [a for name in feature_views or () for a in ("--view", name)]
        done: list[dict[str, Any]] = self._json("materialize", *arguments) or []
        return done

    def _json(self, command: str, *arguments: str) -> Any:
        return json.loads(program.run(self.binary, ["-C", str(self.path), command, "--json", *arguments]))


def _features(features: str | FeatureService | Sequence[str | FeatureView]) -> list[str]:
    if isinstance(features, FeatureService):
        return ["--service", features.name]
    if isinstance(features, str):
        if ":" in features:
            raise LoamError(f"features={features!r} is the name of a feature service; give features as a list: [{features!r}]")
        return ["--service", features]
    names = [f"{f.name}:*" if isinstance(f, FeatureView) else f for f in features]
    if not names:
        raise LoamError("there is no feature to get: name some, such as view:feature or view:*")
    return ["--features", ",".join(names)]


def _rfc3339(t: datetime) -> str:
    if t.tzinfo is None:
        t = t.replace(tzinfo=timezone.utc)
    return t.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
