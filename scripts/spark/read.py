"""Reads tables of a loam project with Spark and Iceberg's Java library, which share no code with loam.

    read.py --dump DIR CATALOG NAMESPACE.TABLE[@SNAPSHOT] ...

CATALOG is the sqlite file of the catalog, or the project folder that has it in .loam/catalog.db. The rows of each table, as
they are now or as they were in the snapshot of that id, are written to DIR/NAMESPACE.TABLE[@SNAPSHOT].parquet, and one line
of JSON for each goes to stdout:

    {"table": "crm.contact_history@3372167183983888349", "rows": 3}

The Python that `scripts/services/spark.sh install` prints has what this needs, besides a Java on PATH.
"""

import argparse
import glob
import json
import os
import shutil
import sys

from pyspark.sql import SparkSession

CATALOG = "loam"  # the name that loam gives its catalog: another one sees no tables


def open_session(path):
    if os.path.isdir(path):
        path = os.path.join(path, ".loam", "catalog.db")
    if not os.path.isfile(path):
        sys.exit(f"read.py: error: no catalog at {path}")
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",  # else 96 bits, which nobody else writes
        f"spark.sql.catalog.{CATALOG}": "org.apache.iceberg.spark.SparkCatalog",
        f"spark.sql.catalog.{CATALOG}.catalog-impl": "org.apache.iceberg.jdbc.JdbcCatalog",
        f"spark.sql.catalog.{CATALOG}.io-impl": "org.apache.iceberg.hadoop.HadoopFileIO",
        f"spark.sql.catalog.{CATALOG}.uri": "jdbc:sqlite:" + os.path.abspath(path),
        f"spark.sql.catalog.{CATALOG}.warehouse": os.path.dirname(os.path.abspath(path)),  # wanted, though nothing is written
        # The tables of the catalog are loam's to make: a reader that made them would hide that they are missing.
        f"spark.sql.catalog.{CATALOG}.jdbc.init-catalog-tables": "false",
    }
    builder = SparkSession.builder.master("local[2]").appName("loam")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def read(session, table, dump):
    name, _, snapshot = table.partition("@")
    namespace, _, short = name.partition(".")
    statement = f"SELECT * FROM {CATALOG}.`{namespace}`.`{short}`"
    if snapshot:
        statement += f" VERSION AS OF {int(snapshot)}"
    parts = os.path.join(dump, table + ".parts")
    session.sql(statement).coalesce(1).write.mode("overwrite").parquet(parts)
    to = os.path.join(dump, table + ".parquet")
    os.replace(glob.glob(os.path.join(parts, "*.parquet"))[0], to)
    shutil.rmtree(parts)
    return {"table": table, "rows": session.read.parquet(to).count()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", metavar="DIR", required=True, help="write the rows of each table to DIR/NAMESPACE.TABLE.parquet")
    parser.add_argument("catalog", metavar="CATALOG", help="catalog.db, or the project folder with .loam/catalog.db")
    parser.add_argument("tables", metavar="NAMESPACE.TABLE[@SNAPSHOT]", nargs="+")
    args = parser.parse_args()
    session = open_session(args.catalog)
    os.makedirs(args.dump, exist_ok=True)
    for table in args.tables:
        try:
            print(json.dumps(read(session, table, args.dump)), flush=True)
        except Exception as e:  # one line of error, whatever went wrong, and never half an answer for a whole one
            sys.exit(f"read.py: error: {table}: {type(e).__name__}: {str(e).splitlines()[0]}")
    session.stop()


if __name__ == "__main__":
    main()
