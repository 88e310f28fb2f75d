"""What is asked of a training set, as the flags of `loam dataset build` have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Literal

from loam.binary import LoamError
from loam.definitions import FeatureService, FeatureView

Features = str | FeatureService | Sequence[str | FeatureView]


def flags(
    features: Features,
    *,
    as_of: Literal["served", "event"],
    known_at: datetime | str | None,
    time_column: str,
    at_label_time: Literal["include", "exclude"],
    require_complete: bool,
    join_keys: Mapping[str, str] | None,
    outcomes: Mapping[str, str] | None,
    sample: int | float | None,
    split: str | None,
    seed: int | None,
) -> list[tuple[str, str]]:
    """Names of flags, and their values."""
    asked = [("as-of", as_of), ("time-column", time_column), *asked_features(features)]
    if known_at is not None:
        asked.append(("known-at", known_at if isinstance(known_at, str) else _rfc3339(known_at)))
    if at_label_time not in ("include", "exclude"):
        raise LoamError(f'at_label_time is "include" or "exclude", not {at_label_time!r}')
    if at_label_time == "exclude":
        asked.append(("exclude-label-time", "true"))
    if require_complete:
        asked.append(("require-complete", "true"))
    asked += [("join-key", f"{key}={column}") for key, column in (join_keys or {}).items()]
    asked += [("outcome", f"{name}={condition}") for name, condition in (outcomes or {}).items()]
    if sample is not None:
        asked.append(("sample", str(sample)))
    if split is not None:
        asked.append(("split", split))
    if seed is not None:
        asked.append(("seed", str(seed)))
    return asked


def asked_features(features: Features) -> list[tuple[str, str]]:
    """The flag that says which features are wanted."""
    if isinstance(features, FeatureService):
        return [("service", features.name)]
    if isinstance(features, str):
        if ":" in features:
            raise LoamError(f"features={features!r} is the name of a feature service; give features as a list: [{features!r}]")
        return [("service", features)]
    names = [f"{f.name}:*" if isinstance(f, FeatureView) else f for f in features]
    if not names:
        raise LoamError("there is no feature to get: name some, such as view:feature or view:*")
    return [("features", ",".join(names))]


def _rfc3339(t: datetime) -> str:
    if t.tzinfo is None:
        t = t.replace(tzinfo=timezone.utc)
    return t.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
