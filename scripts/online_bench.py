#!/usr/bin/env python3
"""Look-ups of online values: raw go-redis, the Go package, loam serve and Feast's server, in turns, from one Redis.

  online_bench.py [FLAG...]      flags are those of `loam bench online`, such as --lookups 20000

It starts a Redis of its own, makes Feast's data, writes them as Feast does, starts `feast serve`, and runs the benchmark; then it
ends what it started. Run it by a Python that has 'feast[redis,duckdb]': CI's is not one.

  LOAM       the binary                                   (default bin/loam)
  BENCH      the folder of gen.py and feast_repo.py       (default ../shared/bench)
  CONTACTS   contacts of both                             (default 100000)
  WORKERS    processes of Feast's server                  (default 1, as feast serve)

Feast's server ends a process after 1,000 requests and starts another one, which takes seconds; here it does not.
"""
import os, socket, subprocess, sys, tempfile, time, urllib.request

root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
loam = os.environ.get("LOAM", root + "/bin/loam")
bench = os.path.abspath(os.environ.get("BENCH", root + "/../shared/bench"))
contacts = int(os.environ.get("CONTACTS", "100000"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait(what, ready, process, seconds=120):
    end = time.time() + seconds
    while time.time() < end:
        if process.poll() is not None:
            sys.exit(f"online_bench.py: error: {what} ended: {process.returncode}")
        try:
            ready()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"online_bench.py: error: {what} did not answer within {seconds} s")


def serve_feast(port):
    """Writes both views' rows to Redis by Feast, and serves them."""
    sys.path.insert(0, bench)
    import feast_repo
    import pandas as pd
    store = feast_repo.store("dask")
    for view in ("profile", "engagement"):
        rows = pd.read_parquet(os.path.join(os.environ["BENCH_DATA"], view + ".parquet"))
        for i in range(0, len(rows), 20000):
            store.write_to_online_store(view, rows[i:i + 20000])
    store.serve("127.0.0.1", port, "http", True, workers=int(os.environ.get("WORKERS", "1")), max_requests=0)


def main(flags):
    for path in (loam, bench + "/feast_repo.py"):
        if not os.path.exists(path):
            sys.exit(f"online_bench.py: error: there is no {path}: see LOAM and BENCH in {__file__}")
    started = []
    with tempfile.TemporaryDirectory() as data:
        try:
            port = free_port()
            started.append(subprocess.Popen(["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"],
                                            stdout=subprocess.DEVNULL))
            wait("Redis", lambda: socket.create_connection(("127.0.0.1", port)).close(), started[-1])
            subprocess.run([sys.executable, bench + "/gen.py", "--out", data, "--entities", str(contacts), "--rows", str(contacts), "--labels", "1"],
                           check=True, stdout=subprocess.DEVNULL)
            feast = free_port()
            env = dict(os.environ, REDIS=f"127.0.0.1:{port}", BENCH_DATA=data)
            started.append(subprocess.Popen([sys.executable, __file__, "--serve-feast", str(feast)], env=env, stdout=subprocess.DEVNULL))
            url = f"http://127.0.0.1:{feast}"
            wait("Feast", lambda: urllib.request.urlopen(url + "/health").close(), started[-1], 900)
            return subprocess.run([loam, "bench", "online", "--redis", f"127.0.0.1:{port}", "--feast", url, "--contacts", str(contacts), *flags]).returncode
        finally:
            for p in reversed(started):
                p.terminate()
                p.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve-feast"]:
        serve_feast(int(sys.argv[2]))
    else:
        sys.exit(main(sys.argv[1:]))
