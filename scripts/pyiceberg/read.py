"""Reads tables of a loam project with PyIceberg, a reader that shares no code with loam.

    read.py [--dump DIR] CATALOG NAMESPACE.TABLE[@SNAPSHOT] ...

CATALOG is the sqlite file of the catalog, or the project folder that has it in .loam/catalog.db. NAMESPACE.* stands for all
tables that the catalog lists. A table is read as it is now, or as it was in the snapshot of that id. For every table one line
of JSON goes to stdout:

    {"table": "crm.contact_history", "rows": 3, "digest": "9f86..."}

The digest is of the rows as a set: neither their order nor the files they are in change it. With --dump, the rows are also
written to DIR/NAMESPACE.TABLE[@SNAPSHOT].parquet, in PyIceberg's order, for whoever wants to compare them one by one.
"""

import argparse
import hashlib
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog

CATALOG_NAME = "loam"  # the name that loam gives its catalog: another one sees no tables
DIGEST_MODULUS = 1 << 256


def open_catalog(path):
    if os.path.isdir(path):
        path = os.path.join(path, ".loam", "catalog.db")
    if not os.path.isfile(path):
        sys.exit(f"read.py: error: no catalog at {path}")
    # The tables of the catalog are loam's to make: a reader that made them would hide that they are missing.
    return SqlCatalog(CATALOG_NAME, uri="sqlite:///" + os.path.abspath(path), init_catalog_tables="false")


def row_hashes(batch):
    """Hashes each row by the JSON of its values in the order of the columns' names: times as numbers, in the unit of their
    column, and what else JSON has no type for (decimals, bytes) as text."""
    columns = []
    for name in sorted(batch.schema.names):
        column = batch.column(name)
        columns.append((column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist())
    for row in zip(*columns):
        text = json.dumps(row, ensure_ascii=False, default=str, separators=(",", ":"))
        yield int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def read(catalog, table, dump):
    name, _, snapshot = table.partition("@")
    scan = catalog.load_table(name).scan(snapshot_id=int(snapshot) if snapshot else None)
    rows, digest = 0, 0
    with scan.to_arrow_batch_reader() as batches:
        writer = pq.ParquetWriter(os.path.join(dump, table + ".parquet"), batches.schema) if dump else None
        try:
            for batch in batches:
                rows += batch.num_rows
                for h in row_hashes(batch):
                    # A sum doesn't depend on order and, unlike exclusive or, does not lose a row that is there twice.
                    digest = (digest + h) % DIGEST_MODULUS
                if writer:
                    writer.write_table(pa.Table.from_batches([batch], batches.schema))
        finally:
            if writer:
                writer.close()
    return {"table": table, "rows": rows, "digest": f"{digest:064x}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", metavar="DIR", help="write the rows of each table to DIR/NAMESPACE.TABLE[@SNAPSHOT].parquet")
    parser.add_argument("catalog", metavar="CATALOG", help="catalog.db, or the project folder with .loam/catalog.db")
    parser.add_argument("tables", metavar="NAMESPACE.TABLE[@SNAPSHOT]", nargs="+")
    args = parser.parse_args()
    catalog = open_catalog(args.catalog)
    if args.dump:
        os.makedirs(args.dump, exist_ok=True)
    for name in args.tables:
        try:
            listed = [name]
            if name.endswith(".*"):
                listed = sorted(".".join(i) for i in catalog.list_tables(name[:-2]))
            for table in listed:
                print(json.dumps(read(catalog, table, args.dump)), flush=True)
        except Exception as e:  # one line of error, whatever went wrong, and never half an answer for a whole one
            sys.exit(f"read.py: error: {name}: {type(e).__name__}: {e}")


if __name__ == "__main__":
    main()
