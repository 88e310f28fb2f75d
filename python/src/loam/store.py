"""A project folder, and what can be asked of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from loam import binary as program
from loam import exchange, online
from loam import labels as label_tables
from loam.binary import LoamError
from loam.definitions import Definitions, Entity, FeatureService, FeatureView
from loam.job import RetrievalJob
from loam.request import Features, asked_features, flags

# How many entities one run of the binary is asked for: a command line is bounded.
ENTITIES_MAX = 500


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
        features: Features,
        *,
        full_feature_names: bool = True,
        as_of: Literal["served", "event"] = "served",
        known_at: datetime | str | None = None,
        time_column: str = "event_timestamp",
        at_label_time: Literal["include", "exclude"] = "include",
        require_complete: bool = False,
        join_keys: Mapping[str, str] | None = None,
        outcomes: Mapping[str, str] | None = None,
        sample: int | float | None = None,
        split: str | None = None,
        seed: int | None = None,
    ) -> RetrievalJob:
        """Asks for the features of labels, each as it was at the label's time. Nothing runs until the job is asked for a result.

        entity_df has a row a label: the join keys of the entities, a time, and any other columns, which pass through. It is a
        DataFrame of pandas or polars, an Arrow table or stream, or the path of a .parquet or .csv file. No zone means UTC. A
        LakeTable or a Query takes the labels from the lake.

        features are view:feature, view:* or a FeatureView for all of a view; or the name of a feature service, or one itself.

        full_feature_names=False names columns <feature> in place of <view>__<feature>, and refuses if two would be the same.
        That is Feast's default; here the full name is, so that a column of labels can hardly be in the way.

        as_of is the clock. served gives what loam had ingested by a label's time, which is what a model would have been given.
        event gives what was true in the source by then, even if it was learnt later: a training set that no model will be served.

        known_at takes only what loam had recorded by then (a naive datetime is UTC). at_label_time="exclude" leaves out what
        happened at the very time of a label. require_complete=True refuses labels later than the watermark.

        join_keys says which column of entity_df holds a join key, where that has another name: {"contact_id": "customer"}.

        outcomes adds label columns of what came true later, by stream:within:condition: {"won": "opportunity:30d:stage = 'won'"}.
        Labels for which that can't be known yet are left out. sample takes so many labels, or below 1 that share of them; split
        adds a column split, "time:T1[,T2]" or "key[=COLUMN]:SHARE[,SHARE]"; seed is of the hashes that both go by.
        """
        asked = flags(
            features,
            as_of=as_of,
            known_at=known_at,
            time_column=time_column,
            at_label_time=at_label_time,
            require_complete=require_complete,
            join_keys=join_keys,
            outcomes=outcomes,
            sample=sample,
            split=split,
            seed=seed,
        )
        arguments = [f"--{name}={value}" for name, value in asked]
        labels = label_tables.take(entity_df)
        own = bool(outcomes) or sample is not None or split is not None

        def build(out: Path | None) -> exchange.Built:
            return exchange.build(self.binary, self.path, labels, arguments, out, fewer=own)

        return RetrievalJob(labels, build, full_feature_names, whole=own)

    def get_online_features(
        self, features: Features, entity_rows: Any, *, full_feature_names: bool = True
    ) -> online.OnlineResponse:
        """The features of entities as of now, from the online store that loam.yaml names, or else from the lake.

        It runs `loam get`, once for every 500 entities, so it is for looking at values: what serves a model asks a Client, which
        takes the same arguments. Decimals, times and dates have Python's own types.
        """
        [(kind, names)] = asked_features(features)
        columns = online.entity_columns(entity_rows)
        entities = [self._entity(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        rows: list[Any] = []
        for first in range(0, len(entities), ENTITIES_MAX):
            asked = [a for e in entities[first : first + ENTITIES_MAX] for a in ("--entity", e)]
            rows += self._json("get", f"--{kind}={names}", *asked)
        dtypes = {f"{v.name}:{f.name}": f.dtype for v in self.list_feature_views() for f in v.features}
        return online.of_rows(columns, rows, dtypes, full_feature_names)

    def _entity(self, keys: Mapping[str, Any]) -> str:
        """An entity as the command line has it."""
        parts = []
        for name, value in keys.items():
            text = str(online.encode(value)) if not isinstance(value, (str, int)) else str(value)
            if "," in text:
                raise LoamError(f"join key {name} has a comma, which a command line can't: ask a Client")
            parts.append(f"{name}={text}")
        return ",".join(parts)

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
