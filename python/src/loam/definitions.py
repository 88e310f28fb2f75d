"""What a project defines: entities, feature views and feature services, as `loam validate` lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entity:
    """Something that features describe. join_keys are the label columns that find it."""

    name: str
    join_keys: tuple[str, ...]


@dataclass(frozen=True)
class Field:
    """A feature of a view. dtype is loam's type: bool, int64, double, decimal(p,s), string, timestamp, date, json, list<…>."""

    name: str
    dtype: str


@dataclass(frozen=True)
class FeatureView:
    """The features of one entity that come from one stream; of a view on demand entity and stream are None.

    ttl is how long a value counts, as the project folder writes it (90d), and None where that is for ever.
    """

    name: str
    entity: str | None
    stream: str | None
    ttl: str | None
    features: tuple[Field, ...]


@dataclass(frozen=True)
class FeatureService:
    """A named list of features, each written view:feature, that a model uses."""

    name: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class Definitions:
    entities: tuple[Entity, ...]
    feature_views: tuple[FeatureView, ...]
    feature_services: tuple[FeatureService, ...]

    @classmethod
    def of(cls, defined: Mapping[str, Any]) -> Definitions:
        return cls(
            entities=tuple(Entity(e["name"], tuple(e["join_keys"])) for e in defined["entities"]),
            feature_views=tuple(
                FeatureView(
                    name=v["name"],
                    entity=v["entity"] or None,
                    stream=v["stream"] or None,
                    ttl=None if v["ttl"] == "0" else v["ttl"],
                    features=tuple(Field(f["name"], f["type"]) for f in v["features"]),
                )
                for v in defined["feature_views"]
            ),
            feature_services=tuple(FeatureService(s["name"], tuple(s["features"])) for s in defined["feature_services"]),
        )
