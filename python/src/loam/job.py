"""What asking for historical features gives."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from loam import exchange
from loam.binary import LoamError
from loam.labels import Labels, is_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

# Whole numbers beyond it are not all doubles.
DOUBLE_EXACT_MAX = 1 << 53


class RetrievalJob:
    """A training set that was asked for.

    Nothing runs until something of it is asked for, and it is built once. Rows are the labels, as many and in their order;
    columns are those of the labels, as they were given, and then one a feature, named <view>__<feature>. Where outcomes, a sample
    or a split are asked for, rows are the labels that are taken, and the columns of outcomes and of the split stand among them.
    """

    def __init__(
        self,
        labels: Labels,
        build: Callable[[Path | None], exchange.TrainingSet],
        full_feature_names: bool,
        whole: bool = False,
    ) -> None:
        self._labels = labels
        self._build = build
        self._full_feature_names = full_feature_names
        # Whether rows or columns of the labels are others in the training set, so that its own are taken.
        self._whole = whole or labels.table is None
        self._built: exchange.TrainingSet | None = None

    def _result(self) -> exchange.TrainingSet:
        if self._built is None:
            self._built = self._build(None)
        return self._built

    @property
    def card(self) -> dict[str, Any]:
        """The training set's card: what was asked, what it was made of, what it lacks, and the audit. docs/card.md has it all."""
        return self._result().card

    def to_arrow(self) -> pa.Table:
        """The training set as an Arrow table. Columns of labels in memory are those very arrays."""
        table = self._labels.table
        if self._whole or table is None:
            whole = self._result().whole()
            return whole.rename_columns(self._named(whole.column_names))
        features = self._features()
        for name in features.column_names:
            table = table.append_column(features.schema.field(name), features.column(name))
        return table

    def to_df(
        self,
        *,
        dtype_backend: Literal["pyarrow", "numpy_nullable"] | None = None,
        types_mapper: Callable[[pa.DataType], Any] | None = None,
    ) -> pd.DataFrame:
        """The training set as a DataFrame of pandas. Labels of pandas keep their dtypes and index.

        What pandas has no null for becomes what pandas makes of it: an int64 feature with nulls is float64, a bool is object.
        dtype_backend="numpy_nullable" gives Int64 and boolean in their place, "pyarrow" Arrow's own types; types_mapper is
        Arrow's, from a type to a dtype, and takes the place of both. A whole number that a float64 can't hold is refused.
        """
        mapper = types_mapper or dtype_mapper(dtype_backend)
        if self._whole or not is_of("pandas", "DataFrame", self._labels.given):
            return to_pandas(self.to_arrow(), mapper)
        import pandas as pd

        features = to_pandas(self._features(), mapper)
        features.index = self._labels.given.index
        return pd.concat([self._labels.given, features], axis="columns")

    def to_polars(self) -> pl.DataFrame:
        """The training set as a DataFrame of polars. Labels of polars keep their dtypes."""
        import polars as pl

        if self._whole or not isinstance(self._labels.given, pl.DataFrame):
            return _to_polars(self.to_arrow())
        return self._labels.given.hstack(_to_polars(self._features()))

    def persist(self, path: str | os.PathLike[str], *, allow_overwrite: bool = False) -> Path:
        """Keeps the training set at path, which ends in .parquet, with its card and the labels that were given in memory:

        churn.parquet, churn.card.json, churn.labels.parquet. Its columns have their full names. Returns the path.
        """
        out = Path(path).expanduser().absolute()
        if out.suffix.lower() != ".parquet":
            raise LoamError(f"{out} is no name of a Parquet file: end it in .parquet")
        if not allow_overwrite:
            for there in (out, exchange.card_beside(out)):
                if there.exists():
                    raise LoamError(f"{there} is there already: name another file, or give allow_overwrite=True")
        if self._built is None:
            self._built = self._build(out)
        elif self._built.out != out:
            self._built.keep(out, labels_given=self._labels.in_memory)
        return out

    def _features(self) -> pa.Table:
        table = self._result().features()
        return table.rename_columns(self._named(table.column_names))

    def _named(self, columns: list[str]) -> list[str]:
        """Names of columns, those of features without their view where they were asked for so."""
        if self._full_feature_names:
            return columns
        request = self.card["request"]["features"]
        short = {f["column"]: ref.partition(":")[2] for f, ref in zip(self.card["features"], request, strict=True)}
        names = [short.get(c, c) for c in columns]
        taken = names if self._whole or self._labels.table is None else names + self._labels.table.column_names
        for name in short.values():
            if taken.count(name) > 1:
                raise LoamError(f"two columns would be called {name}: leave full_feature_names as it is")
        return names


def dtype_mapper(dtype_backend: str | None) -> Callable[[pa.DataType], Any] | None:
    if dtype_backend is None:
        return None
    import pandas as pd

    if dtype_backend == "pyarrow":
        mapper: Callable[[pa.DataType], Any] = pd.ArrowDtype
        return mapper
    if dtype_backend == "numpy_nullable":
        dtypes = {
            pa.int8(): pd.Int8Dtype(),
            pa.int16(): pd.Int16Dtype(),
            pa.int32(): pd.Int32Dtype(),
            pa.int64(): pd.Int64Dtype(),
            pa.uint8(): pd.UInt8Dtype(),
            pa.uint16(): pd.UInt16Dtype(),
            pa.uint32(): pd.UInt32Dtype(),
            pa.uint64(): pd.UInt64Dtype(),
            pa.float32(): pd.Float32Dtype(),
            pa.float64(): pd.Float64Dtype(),
            pa.bool_(): pd.BooleanDtype(),
            pa.string(): pd.StringDtype(),
            pa.large_string(): pd.StringDtype(),
        }
        return dtypes.get
    raise LoamError(f'dtype_backend is "pyarrow" or "numpy_nullable", not {dtype_backend!r}')


def to_pandas(table: pa.Table, mapper: Callable[[pa.DataType], Any] | None) -> Any:
    for name, column in zip(table.column_names, table.columns, strict=True):
        mapped = mapper is not None and mapper(column.type) is not None
        if mapped or column.null_count == 0 or not pa.types.is_integer(column.type):
            continue
        ends = pc.min_max(column).as_py()
        if ends["max"] is not None and max(ends["max"], -ends["min"]) > DOUBLE_EXACT_MAX:
            raise LoamError(
                f"column {name} has nulls, so pandas makes it float64, and whole numbers that float64 can't hold: "
                'give dtype_backend="numpy_nullable" or "pyarrow"'
            )
    return table.to_pandas(types_mapper=mapper)


def _to_polars(table: pa.Table) -> Any:
    import polars as pl

    return pl.from_arrow(table)
