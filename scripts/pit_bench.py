#!/usr/bin/env python3
"""Training sets beside DuckDB by hand, on the data of ../shared/bench/gen.py.

  pit_bench.py WORK [--rounds 3] [--labels 100000 1000000] [--noops] [--all-history] [--feast] [--loam bin/loam]

WORK is a folder for data, lakes and results; what is there is used again. The first run makes the data and takes it in, which
is minutes. A line is printed for each statement: the median wall time, processor time and peak memory of loam and of its peer,
and the ratio of the wall times. loam and its peer take turns, so that what else the machine does meets both. loam's time is
that of the whole process, labels in to Parquet and card out; the peer's is that of its statement and of writing Parquet.

Needs: pip install duckdb==1.5.6 pyarrow numpy, and 'feast[duckdb]' for --feast.
"""
import argparse, glob, json, os, resource, statistics, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.path.join(HERE, "..", "..", "shared", "bench")
P = ["f_age", "f_orders", "f_ltv", "f_avg_basket", "f_churn_score", "f_country", "f_tier", "f_lang", "f_opted_in", "f_is_business"]
E = ["e_opens_7d", "e_clicks_7d", "e_sends_30d", "e_sessions_30d", "e_ctr", "e_dwell_s", "e_recency_h", "e_last_channel", "e_last_campaign", "e_bounced"]
TYPES = dict.fromkeys(["f_age", "f_orders", "e_opens_7d", "e_clicks_7d", "e_sends_30d", "e_sessions_30d"], "int64")
TYPES |= dict.fromkeys(["f_ltv", "f_avg_basket", "f_churn_score", "e_ctr", "e_dwell_s", "e_recency_h"], "double")
TYPES |= dict.fromkeys(["f_opted_in", "f_is_business", "e_bounced"], "bool")


def project(dir, data):
    """A lake of the two files as state streams, and of the second as an event stream."""
    if os.path.exists(f"{dir}/done"):
        return
    os.makedirs(f"{dir}/streams", exist_ok=True)
    os.makedirs(f"{dir}/features", exist_ok=True)
    write = lambda name, text: open(f"{dir}/{name}", "w").write(text)
    write("loam.yaml", "project: bench\n")
    column = lambda c: f"  - {{name: {c}, type: {TYPES.get(c, 'string')}}}\n"
    for name, columns in (("profile", P), ("usage", E)):
        write(f"streams/{name}.yaml", f"stream: {name}\nkind: state\nformat: row\nkey: [contact_id]\nevent_time: event_timestamp\n"
              "sequence: created_timestamp\nprocessed_time: created_timestamp\ncolumns:\n" + "".join(map(column, ["contact_id"] + columns)))
    events = ["contact_id", "e_opens_7d", "e_ctr", "e_dwell_s"]
    write("streams/touch.yaml", "stream: touch\nkind: event\nformat: row\nkey: [touch_id]\nid: position\nevent_time: event_timestamp\n"
          "processed_time: created_timestamp\ncluster_by: contact_id\ncolumns:\n" + "".join(map(column, ["touch_id"] + events)))
    aggregates = [("n", "count", None), ("opens", "sum", "e_opens_7d"), ("ctr", "avg", "e_ctr"), ("most", "max", "e_dwell_s"), ("least", "min", "e_dwell_s")]
    write("features/bench.yaml", "entities: [{name: contact, join_keys: [contact_id]}]\nviews:\n"
          f"  - {{name: p, entity: contact, stream: profile, ttl: 7d, features: [{', '.join(P)}]}}\n"
          f"  - {{name: e, entity: contact, stream: usage, ttl: 7d, features: [{', '.join(E)}]}}\n"
          "  - name: w\n    entity: contact\n    stream: touch\n    aggregates:\n"
          + "".join(f"      - {{name: {n}, fn: {fn}, {'column: ' + c + ', ' if c else ''}windows: [7d, 30d, 90d]}}\n" for n, fn, c in aggregates))
    import duckdb
    duckdb.sql(f"COPY (SELECT 't' || row_number() OVER () AS touch_id, contact_id, event_timestamp, created_timestamp, e_opens_7d, e_ctr, e_dwell_s "
               f"FROM '{data}/engagement.parquet') TO '{data}/touch.parquet' (FORMAT parquet)")
    for command in (["apply"], ["backfill", "--stream", "profile", f"{data}/profile.parquet"], ["backfill", "--stream", "usage", f"{data}/engagement.parquet"],
                    ["backfill", "--stream", "touch", f"{data}/touch.parquet"], ["maintain"]):
        subprocess.run([LOAM, *command], cwd=dir, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    write("done", "")


def data(dir, a):
    if not os.path.exists(f"{dir}/params.json"):
        subprocess.run([sys.executable, f"{SHARED}/gen.py", "--out", dir, "--labels", *map(str, a.labels)], check=True, stdout=subprocess.DEVNULL)
    return dir


def noops(of, dir):
    """Of the changes seven in ten, and of these three in seven once more a second later, as they were."""
    if os.path.exists(f"{dir}/params.json"):
        return dir
    os.makedirs(dir, exist_ok=True)
    import duckdb
    for name in ("profile", "engagement"):
        duckdb.sql(f"""COPY (WITH kept AS (SELECT * FROM '{of}/{name}.parquet' WHERE hash(contact_id, event_timestamp, created_timestamp) % 10 < 7)
            FROM kept UNION ALL BY NAME SELECT * REPLACE (event_timestamp + INTERVAL 1 second AS event_timestamp, created_timestamp + INTERVAL 1 second AS created_timestamp)
            FROM kept WHERE hash(created_timestamp, contact_id) % 7 < 3 ORDER BY event_timestamp) TO '{dir}/{name}.parquet' (FORMAT parquet, COMPRESSION zstd)""")
    for labels in glob.glob(f"{of}/labels_*.parquet"):
        os.symlink(os.path.abspath(labels), f"{dir}/{os.path.basename(labels)}")
    open(f"{dir}/params.json", "w").write("{}")
    return dir


def all_history(of, dir, a):
    """The same changes, with labels over all 90 days."""
    if os.path.exists(f"{dir}/params.json"):
        return dir
    subprocess.run([sys.executable, f"{SHARED}/gen.py", "--out", dir, "--rows", "1000", "--label-days", "90", "--labels", *map(str, a.labels)], check=True, stdout=subprocess.DEVNULL)
    for name in ("profile", "engagement"):
        os.remove(f"{dir}/{name}.parquet")
        os.symlink(os.path.abspath(f"{of}/{name}.parquet"), f"{dir}/{name}.parquet")
    return dir


MEASURED = """
import json, os, subprocess, sys, time
start = time.time()
p = subprocess.Popen(sys.argv[2:], stderr=subprocess.DEVNULL)
_, status, used = os.wait4(p.pid, 0)
open(sys.argv[1], "w").write(json.dumps([status, time.time() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def run(command, **options):
    """Wall seconds, processor seconds and MiB at the peak of a process, and what it printed."""
    with tempfile.NamedTemporaryFile() as told:
        # By a small process in between: the peak of a child begins with that of its parent.
        out = subprocess.run([sys.executable, "-S", "-c", MEASURED, told.name, *command], stdout=subprocess.PIPE, text=True, check=True, **options).stdout
        status, *used = json.loads(open(told.name).read())
    if status:
        sys.exit(f"{command} ended with {status}")
    return *used, out


def loam(dir, labels, features, clock):
    return run([LOAM, "dataset", "build", "--labels", labels, "--features", features, "--as-of", clock, "--out", os.path.abspath(f"{dir}/out.parquet")], cwd=dir)[:3]


def peer(engine, data, n, out):
    wall, cpu, rss, text = run([sys.executable, "-W", "ignore", f"{SHARED}/peers.py", engine, str(n), out], env=os.environ | {"BENCH_DATA": data})
    said = json.loads(text.splitlines()[-1])
    start = time.time()
    import pyarrow.parquet as pq
    pq.write_table(pq.read_table(out), out + ".again", compression="zstd")  # peers.py writes after it has taken its time
    return said["wall_s"] + (time.time() - start), said["cpu_s"], said["rss_mib"]


WINDOWS = """
import duckdb, json, resource, sys, time
files, labels, column, out = json.loads(sys.argv[1]), *sys.argv[2:]
c = duckdb.connect(); c.execute("SET TimeZone = 'UTC'"); start = time.time()
hop = {7: 3600000000, 30: 86400000000, 90: 86400000000}
floor = lambda d: f"make_timestamptz(((epoch_us(event_timestamp) - {d * 86400000000}) // {hop[d]}) * {hop[d]}) AS f{d}"
items = []
for d in hop:
    f = f"FILTER (e.event_time >= l.f{d})"
    items += [f"count(*) {f} AS n{d}, sum(e_opens_7d) {f} AS o{d}, avg(e_ctr) {f} AS c{d}, max(e_dwell_s) {f} AS m{d}, min(e_dwell_s) {f} AS l{d}"]
c.execute(f"CREATE TEMP TABLE l AS SELECT row_number() OVER () AS r, * FROM '{labels}'")
c.execute(f"CREATE TEMP TABLE w AS WITH b AS (SELECT r, contact_id, event_timestamp, {', '.join(map(floor, hop))} FROM l) SELECT l.r, {', '.join(items)} "
          f"FROM read_parquet({files}) e JOIN b l ON e.contact_id = l.contact_id AND e.{column} <= l.event_timestamp AND e.event_time >= l.f90 GROUP BY l.r")
c.execute(f"COPY (SELECT l.* EXCLUDE (r), w.* EXCLUDE (r) FROM l LEFT JOIN w USING (r) ORDER BY r) TO '{out}' (FORMAT parquet, COMPRESSION zstd)")
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([time.time() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def live(dir):
    """The data files of the event stream's log, as its newest metadata names them."""
    import duckdb
    files = sorted(glob.glob(f"{dir}/.loam/warehouse/**/touch_log/data/**/*.parquet", recursive=True), key=os.path.getmtime, reverse=True)
    rows, kept = 0, []
    want = duckdb.sql(f"SELECT count(*) FROM '{dir}/../data/touch.parquet'").fetchone()[0]
    for f in files:  # compaction wrote the newest, and they hold every row once
        n = duckdb.sql(f"SELECT sum(num_rows) FROM parquet_file_metadata('{f}')").fetchone()[0]
        if rows + n <= want:
            rows, kept = rows + n, kept + [f]
    assert rows == want, (rows, want)
    return kept


def windows(files, labels, clock, out):
    return tuple(json.loads(run([sys.executable, "-c", WINDOWS, json.dumps(files), labels, {"event": "event_time", "served": "ingested_at"}[clock], out])[3].splitlines()[-1]))


def beside(name, rounds, ours, theirs):
    a, b = [], []
    for _ in range(rounds):
        a.append(ours())
        b.append(theirs())
    m = lambda runs, i: statistics.median(r[i] for r in runs)
    print(f"| {name} | {m(a, 0):.2f} s, {m(a, 1):.1f} s, {m(a, 2):.0f} MiB | {m(b, 0):.2f} s, {m(b, 1):.1f} s, {m(b, 2):.0f} MiB | {m(a, 0) / m(b, 0):.2f} |", flush=True)


def main():
    global LOAM
    ap = argparse.ArgumentParser()
    ap.add_argument("work")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--labels", type=int, nargs="*", default=[100_000, 1_000_000])
    ap.add_argument("--noops", action="store_true")
    ap.add_argument("--all-history", action="store_true")
    ap.add_argument("--feast", action="store_true")
    ap.add_argument("--no-windows", action="store_true")
    ap.add_argument("--loam", default=os.path.join(HERE, "..", "bin", "loam"))
    a = ap.parse_args()
    LOAM = os.path.abspath(a.loam)
    if not os.path.exists(f"{SHARED}/gen.py"):
        sys.exit("the generator and the peers are not in ../shared/bench: nothing to measure beside")
    work = os.path.abspath(a.work)
    plain = data(f"{work}/data", a)
    sets = [("", plain, f"{work}/lake")]
    if a.noops:
        sets.append((", 30 % no-ops", noops(plain, f"{work}/data-noops"), f"{work}/lake-noops"))
    for _, files, lake in sets:
        project(lake, files)
    if a.all_history:
        sets.append((", labels over all history", all_history(plain, f"{work}/data-all", a), f"{work}/lake"))
    print("| | loam: wall, processor, peak | peer: wall, processor, peak | wall, ratio |\n|---|---|---|---|")
    for what, files, lake in sets:
        for n in a.labels:
            labels = f"{files}/labels_{n}.parquet"
            for clock in ("event", "served"):
                beside(f"{n:,} labels, {clock}{what}; duckdb-narrow", a.rounds, lambda: loam(lake, labels, "p:*,e:*", clock), lambda: peer("duckdb-narrow", files, n, f"{work}/peer.parquet"))
            if a.feast and not what:
                beside(f"{n:,} labels, event; Feast on DuckDB", a.rounds, lambda: loam(lake, labels, "p:*,e:*", "event"), lambda: peer("feast-duckdb", files, n, f"{work}/peer.parquet"))
    if not a.no_windows:
        files = live(f"{work}/lake")
        for n in a.labels:
            labels = f"{plain}/labels_{n}.parquet"
            for clock in ("event", "served"):
                beside(f"15 windows, {n:,} labels, {clock}; one statement by hand", a.rounds, lambda: loam(f"{work}/lake", labels, "w:*", clock), lambda: windows(files, labels, clock, f"{work}/peer.parquet"))


if __name__ == "__main__":
    main()
