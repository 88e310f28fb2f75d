"""Labels as they are given: a file, or a table in memory of whatever library."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from loam.binary import LoamError


@dataclass(frozen=True)
class LakeTable:
    """Labels that are an Iceberg table of the project's catalog: <namespace>.<name>, or a name in the project's namespace."""

    name: str


@dataclass(frozen=True)
class Query:
    """Labels that a SELECT gives over the streams' tables: <stream>_log, <stream>_history and <stream>_current."""

    sql: str


@dataclass(frozen=True)
class Labels:
    """Labels. One of path, table and lake is set; given is what the caller handed in, where its own library can add columns."""

    path: Path | None = None
    table: pa.Table | None = None
    lake: LakeTable | Query | None = None
    given: Any = None

    @property
    def in_memory(self) -> bool:
        """Whether they stand nowhere but here."""
        return self.table is not None


def take(entity_df: Any) -> Labels:
    """Takes labels: the path of a label file, or a table that pandas, polars, Arrow or anything with an Arrow stream holds.

    What is in memory is taken as it is now: a later change to it does not show.
    """
    if isinstance(entity_df, (LakeTable, Query)):
        return Labels(lake=entity_df)
    if isinstance(entity_df, (str, os.PathLike)):
        path = Path(entity_df).expanduser().absolute()
        if not path.is_file():
            raise LoamError(f"there is no label file {path}")
        return Labels(path=path)
    if is_of("pandas", "DataFrame", entity_df):
        given = entity_df.copy()
        return Labels(table=_checked(_from_pandas(given)), given=given)
    if is_of("polars", "LazyFrame", entity_df):
        entity_df = entity_df.collect()
    if is_of("polars", "DataFrame", entity_df):
        return Labels(table=_checked(entity_df.to_arrow()), given=entity_df)
    if isinstance(entity_df, pa.Table):
        return Labels(table=_checked(entity_df))
    if isinstance(entity_df, pa.RecordBatch):
        return Labels(table=_checked(pa.Table.from_batches([entity_df])))
    if isinstance(entity_df, pa.RecordBatchReader):
        return Labels(table=_checked(entity_df.read_all()))
    if hasattr(entity_df, "__arrow_c_stream__"):
        return Labels(table=_checked(pa.RecordBatchReader.from_stream(entity_df).read_all()))
    kind = f"{type(entity_df).__module__}.{type(entity_df).__qualname__}"
    raise LoamError(f"labels are a DataFrame of pandas or polars, an Arrow table or stream, or the path of a file, not {kind}")


def in_memory(labels: Labels) -> Labels:
    """The labels as a table: those of a file are read here."""
    if labels.path is None:
        if labels.table is None:
            raise LoamError("a server takes labels in memory or of a file: a table or a query of the lake is a Store's to read")
        return labels
    try:
        if labels.path.suffix.lower() == ".parquet":
            return Labels(table=_checked(pq.read_table(labels.path)))
        if labels.path.suffix.lower() == ".csv":
            return Labels(table=_checked(pa_csv.read_csv(labels.path)))
    except (pa.ArrowException, OSError) as e:
        raise LoamError(f"the labels {labels.path} can't be read: {e}") from e
    raise LoamError(f"labels {labels.path}: a file of labels ends in .parquet or .csv")


def is_of(module: str, name: str, value: Any) -> bool:
    """Reports whether value is an instance of a class of a library, which is not imported for it."""
    library = sys.modules.get(module)
    return library is not None and isinstance(value, getattr(library, name))


def _from_pandas(frame: Any) -> pa.Table:
    odd = [c for c in frame.columns if not isinstance(c, str)]
    if odd:
        raise LoamError(f"column {odd[0]!r} of the labels has a name that is not text: rename it")
    if not frame.columns.is_unique:
        _refuse_twice(list(frame.columns))
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except pa.ArrowException as e:
        raise LoamError(f"the labels can't be made Arrow: {e}") from e


def _checked(table: pa.Table) -> pa.Table:
    if len(set(table.column_names)) < table.num_columns:
        _refuse_twice(table.column_names)
    if table.num_columns == 0:
        raise LoamError("the labels have no columns: they need the join keys and a time")
    return table


def _refuse_twice(names: list[str]) -> None:
    twice = next(n for n in names if names.count(n) > 1)
    raise LoamError(f"the labels have column {twice} more than once: rename one")
