"""How labels get to the binary and a training set comes back: as Parquet files, today.

Labels in memory are written to a folder that lives as long as the result does. Only this module knows that: where the binary
takes Arrow by its standard input and output, this is what changes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from loam import binary
from loam.binary import LoamError
from loam.labels import Labels, LakeTable, Query

# How long snapshots may take to be unpinned, before it is left to `loam dataset list` and `unpin`.
UNPIN_SECONDS = 60


class TrainingSet(Protocol):
    """A training set that was built, by whomever."""

    @property
    def out(self) -> Path | None: ...

    @property
    def card(self) -> dict[str, Any]: ...

    def features(self) -> pa.Table: ...

    def whole(self) -> pa.Table: ...

    def keep(self, out: Path, labels_given: bool) -> None: ...


@dataclass(frozen=True)
class Built:
    """A training set that was built, and its card.

    A folder that it stands in for the time being goes when this does, and then the snapshots that it was made from are unpinned,
    unless it was kept elsewhere.
    """

    out: Path
    labels: Path
    card: dict[str, Any]
    kept: list[Path] = field(default_factory=list)

    def features(self) -> pa.Table:
        """The columns of features, as many rows as there are labels, in their order."""
        return pq.read_table(self.out, columns=[f["column"] for f in self.card["features"]])

    def whole(self) -> pa.Table:
        """All columns: those of the labels, then the features."""
        return pq.read_table(self.out)

    def keep(self, out: Path, labels_given: bool) -> None:
        """Copies the training set, its card and, where they were given in memory, its labels to where they stay."""
        out.parent.mkdir(parents=True, exist_ok=True)
        if labels_given:
            shutil.copyfile(self.labels, labels_beside(out))
        shutil.copyfile(card_beside(self.out), card_beside(out))
        shutil.copyfile(self.out, out)
        self.kept.append(out)


def card_beside(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".parquet") + ".card.json")


def labels_beside(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".parquet") + ".labels.parquet")


def build(program: Path, project: Path, labels: Labels, arguments: Sequence[str], out: Path | None, fewer: bool) -> Built:
    """Has the binary build a training set, at out where that is given and else in a folder that goes with the result. fewer says
    that not every label may be taken."""
    folder = None
    if out is None:
        folder = tempfile.mkdtemp(prefix="loam-")
        out = Path(folder) / "dataset.parquet"
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
    path = labels.path or labels_beside(out)
    source = ["--labels", str(path)]
    if isinstance(labels.lake, LakeTable):
        source = ["--labels-table", labels.lake.name]
    elif isinstance(labels.lake, Query):
        source = ["--labels-sql", labels.lake.sql]
    try:
        with _replaced(path) if labels.in_memory else contextlib.nullcontext():
            if labels.table is not None:
                _write(labels.table, path)
            command = ["-C", str(project), "dataset", "build", "--json", *source, "--out", str(out), *arguments]
            card = json.loads(binary.run(program, command))
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    built = Built(out, path, card)
    if folder is not None:
        weakref.finalize(built, _forget, program, project, card_beside(out), folder, built.kept)
    if labels.table is not None and not fewer and card["rows"] != labels.table.num_rows:
        raise LoamError(f"{labels.table.num_rows} labels went in and {card['rows']} rows came out: this is a defect of loam")
    return built


def _forget(program: Path, project: Path, card: Path, folder: str, kept: list[Path]) -> None:
    """Removes what was built for the time being. It may run while Python ends, when no thread can be started any more."""
    if not kept:
        command = [str(program), "-C", str(project), "dataset", "unpin", str(card)]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=UNPIN_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[None]:
    """Lets a file be written at path. If what is done with it fails, what stood there before stands there again."""
    before = path.with_name(path.name + ".before")
    if path.exists():
        path.rename(before)
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        if before.exists():
            before.rename(path)
        raise
    before.unlink(missing_ok=True)


def _write(table: pa.Table, path: Path) -> None:
    for column in table.schema:
        if pa.types.is_interval(column.type) or pa.types.is_union(column.type):
            raise LoamError(
                f"column {column.name} of the labels is {column.type}, which Parquet has no type for: leave it out or convert it"
            )
    try:
        pq.write_table(plain(table), path, store_schema=False)
    except (pa.ArrowException, NotImplementedError) as e:
        raise LoamError(f"the labels can't be written as Parquet: {e}") from e


def plain(table: pa.Table) -> pa.Table:
    """The table without the kinds of text and bytes that not every Parquet writer takes."""
    views = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}
    fields = [f.with_type(views.get(str(f.type), f.type)) for f in table.schema]
    schema = pa.schema(fields)
    return table if schema.equals(table.schema) else table.cast(schema)
