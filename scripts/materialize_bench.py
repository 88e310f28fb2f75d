#!/usr/bin/env python3
"""`loam materialize` beside Feast's materialize, into one Redis in turns: rates, and the memory that an entity takes.

  materialize_bench.py WORK [--rounds 3] [--ttl 3650d] [--rows 5000000] [--entities 100000] [--loam bin/loam]

WORK is a folder for data and the lake; what is there is used again. The first run makes the data and takes it in, which is minutes.
Both write two views of ten features of every contact, from their own store: loam from its lake, Feast from Parquet files, by DuckDB.
loam's time is that of the whole process; Feast's is that of its calls alone. It starts a Redis of its own, which is emptied before each.

Needs a Python that has 'feast[redis,duckdb]', and redis-server.
"""
import argparse, json, os, socket, statistics, subprocess, sys
from online_bench import free_port, wait
from pit_bench import run

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.path.join(HERE, "..", "..", "shared", "bench")
VIEWS = ("profile", "engagement")


def project(dir, data, loam, port, ttl):
    """A lake of both files, and a view of the ten columns of each."""
    import pyarrow as pa, pyarrow.parquet as pq
    write = lambda name, text: open(f"{dir}/{name}", "w").write(text)
    kind = lambda t: "int64" if pa.types.is_integer(t) else "double" if pa.types.is_floating(t) else "bool" if pa.types.is_boolean(t) else "string"
    os.makedirs(f"{dir}/streams", exist_ok=True)
    os.makedirs(f"{dir}/features", exist_ok=True)
    write("loam.yaml", f"project: bench\nonline: {{redis: 127.0.0.1:{port}}}\n")
    views = ""
    for name in VIEWS:
        fields = [f for f in pq.read_schema(f"{data}/{name}.parquet") if not f.name.endswith("_timestamp")]
        write(f"streams/{name}.yaml", f"stream: {name}\nkind: state\nformat: row\nkey: [contact_id]\nevent_time: event_timestamp\n"
              "sequence: created_timestamp\nprocessed_time: created_timestamp\ncolumns:\n" + "".join(f"  - {{name: {f.name}, type: {kind(f.type)}}}\n" for f in fields))
        views += f"  - {{name: {name}, entity: contact, stream: {name}, {'ttl: ' + ttl + ', ' if ttl else ''}features: [{', '.join(f.name for f in fields[1:])}]}}\n"
    write("features/bench.yaml", "entities: [{name: contact, join_keys: [contact_id]}]\nviews:\n" + views)
    run([loam, "apply"], cwd=dir)
    if not os.path.exists(f"{dir}/done"):
        for name in VIEWS:
            run([loam, "backfill", "--stream", name, f"{data}/{name}.parquet"], cwd=dir)
        run([loam, "maintain"], cwd=dir)
        write("done", "")


def by_loam(dir, loam, redis):
    redis.flushdb()
    base = redis.info("memory")["used_memory"]
    wall, cpu, rss, _ = run([loam, "materialize"], cwd=dir)
    hashes = sum(1 for _ in redis.scan_iter("bench:*{*", count=1000))
    return {"wall_s": wall, "cpu_s": cpu, "rss_mib": rss, "rows": hashes,
            "bytes": (redis.info("memory")["used_memory"] - base) / (hashes / len(VIEWS))}


def by_feast(data, port):
    out = subprocess.run([sys.executable, "-W", "ignore", f"{SHARED}/feast_materialize.py", "duckdb"], env=os.environ | {"BENCH_DATA": data, "REDIS": f"127.0.0.1:{port}"},
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    said = json.loads(out.splitlines()[-1])
    return said | {"rows": len(VIEWS) * said["keys"], "bytes": said["redis_mib"] * 2**20 / said["keys"]}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("work")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--rows", type=int, default=5_000_000)
    ap.add_argument("--ttl", default="3650d", help="of loam's views, '' for none: what has one takes memory to expire (default %(default)s, which nothing is older than)")
    ap.add_argument("--entities", type=int, default=100_000)
    ap.add_argument("--loam", default=os.path.join(HERE, "..", "bin", "loam"))
    a = ap.parse_args()
    if not os.path.exists(f"{SHARED}/feast_materialize.py"):
        sys.exit("the generator and the peer are not in ../shared/bench: nothing to measure beside")
    import redis
    loam, data, dir = os.path.abspath(a.loam), os.path.abspath(f"{a.work}/data"), os.path.abspath(f"{a.work}/online")
    if not os.path.exists(f"{data}/params.json"):
        subprocess.run([sys.executable, f"{SHARED}/gen.py", "--out", data, "--rows", str(a.rows), "--entities", str(a.entities), "--labels", "1"], check=True,
                       stdout=subprocess.DEVNULL)
    port = free_port()
    server = subprocess.Popen(["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port)
        wait("Redis", lambda: socket.create_connection(("127.0.0.1", port)).close(), server)
        project(dir, data, loam, port, a.ttl)
        ours, theirs = [], []
        for _ in range(a.rounds):
            for name, runs, one in (("loam", ours, lambda: by_loam(dir, loam, client)), ("Feast", theirs, lambda: by_feast(data, port))):
                runs.append(one())
                r = runs[-1]
                print(f"{name:5}  {r['rows']:,} rows in {r['wall_s']:.2f} s, {r['cpu_s']:.1f} s of processors, {r['rss_mib']:.0f} MiB; {r['bytes']:.0f} bytes of Redis an entity", flush=True)
        rate = lambda runs: statistics.median(r["rows"] / r["wall_s"] for r in runs)
        size = lambda runs: statistics.median(r["bytes"] for r in runs)
        print(f"loam {rate(ours):,.0f} rows/s, Feast {rate(theirs):,.0f} rows/s: {rate(ours) / rate(theirs):.1f} x\n"
              f"loam {size(ours):.0f} bytes an entity, Feast {size(theirs):.0f}: {size(ours) / size(theirs):.2f} x")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
