#!/usr/bin/env python3
"""The RESP port beside Redis and Valkey: rate, latency and processor time of the server per operation.

    run.py --firn target/release/firn [--redis redis-server] [--valkey valkey-server]
           --dir SCRATCH --out FILE [--cells set1,get1,set16,get16] [--servers a,b] [--reps 3]
    run.py --report FILE...

Every server runs all the time, with a directory of its own below SCRATCH, filled with --keys keys; the
cells are measured in turn, one server after the other, again and again (A B C, A B C). The client is
redis-benchmark, one thread, 50 connections, values of 100 bytes, random keys. Processor time is utime
and stime of the server's /proc/PID/stat, its threads together, divided by the operations.

Servers: firn-sync, firn-buffered, base-sync, base-buffered (the firn of --base); redis-none, redis-everysec, redis-always; valkey-none,
valkey-everysec, valkey-always (none: no log).
Cells: set1, get1, set16, get16 (the number is the pipeline), incr1, incr16, mset16; get16@10000 takes
only that many of the keys.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

TICK = os.sysconf("SC_CLK_TCK")
LOGS = {"none": ["--appendonly", "no"], "everysec": ["--appendonly", "yes", "--appendfsync", "everysec"],
        "always": ["--appendonly", "yes", "--appendfsync", "always"]}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, name, args):
        self.name, self.port = name, free_port()
        directory = os.path.join(args.dir, name)
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        kind, mode = name.split("-", 1)
        if kind in ("firn", "base"):
            command = [args.firn if kind == "firn" else args.base, "serve", "--data-dir", directory,
                       "--http", "127.0.0.1:0", "--resp", f"127.0.0.1:{self.port}", "--durability", mode, "--log-level", "warn"]
        else:
            command = [args.redis if kind == "redis" else args.valkey, "--port", str(self.port),
                       "--dir", directory, "--save", "", *LOGS[mode]]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.1)
        sys.exit(f"{name} did not start")

    def ticks(self):
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return int(fields[11]), int(fields[12])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def benchmark(server, test, pipeline, ops, keys):
    """Rate, and latency in milliseconds by percentile."""
    command = ["redis-benchmark", "-p", str(server.port), "-c", "50", "-d", "100", "-P", str(pipeline),
               "-r", str(keys), "-n", str(ops), "-t", test, "--precision", "3"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate = float(re.findall(r"throughput summary: ([0-9.]+)", text)[-1])
    points = [(float(a), float(b)) for a, b in re.findall(r"([0-9.]+)% <= ([0-9.]+) milliseconds", text)]
    at = {p: next((ms for percent, ms in points if percent >= p), points[-1][1] if points else 0)
          for p in (50, 99, 99.9)}
    return rate, at, max((ms for _, ms in points), default=0)


def measure(args):
    servers = [Server(name, args) for name in args.servers.split(",")]
    try:
        for server in servers:
            benchmark(server, "set", 64, 2 * args.keys, args.keys)
            benchmark(server, "get", 64, args.keys, args.keys)
        # What the fill left to flush and compact is not what is measured.
        time.sleep(args.settle)
        print("filled", flush=True)
        with open(args.out, "a") as out:
            for rep in range(args.reps):
                for cell in args.cells.split(","):
                    test, pipeline, hot = re.fullmatch(r"([a-z]+)(\d+)(?:@(\d+))?", cell).groups()
                    ops = int(args.seconds * (80_000 if pipeline == "1" else 500_000))
                    for server in servers:
                        before = server.ticks()
                        rate, at, longest = benchmark(server, test, int(pipeline), ops, int(hot or args.keys))
                        after = server.ticks()
                        user, system = ((b - a) / TICK * 1e6 / ops for a, b in zip(before, after))
                        row = {"cell": cell, "server": server.name, "rep": rep, "rate": rate,
                               "user_us": round(user, 3), "system_us": round(system, 3),
                               "p50": at[50], "p99": at[99], "p999": at[99.9], "max": longest}
                        out.write(json.dumps(row) + "\n")
                        out.flush()
                        print(f"{cell:6} {server.name:16} {rate:9.0f}/s  cpu {user + system:6.2f} us "
                              f"({user:.2f}+{system:.2f})  p99 {at[99]:.2f}  p99.9 {at[99.9]:.2f}", flush=True)
    finally:
        for server in servers:
            server.stop()


def report(files):
    rows = [json.loads(line) for name in files for line in open(name)]
    for cell in dict.fromkeys(row["cell"] for row in rows):
        print(f"\n| {cell} | rate | server CPU, µs/op | of it in the kernel | p50 ms | p99 ms | p99.9 ms |")
        print("|---|---|---|---|---|---|---|")
        for server in dict.fromkeys(row["server"] for row in rows):
            mine = [row for row in rows if row["cell"] == cell and row["server"] == server]
            if not mine:
                continue
            m = lambda key: statistics.median(row[key] for row in mine)
            cpus = sorted(row["user_us"] + row["system_us"] for row in mine)
            print(f"| {server} | {m('rate') / 1000:.0f}k | {statistics.median(cpus):.2f} "
                  f"[{cpus[0]:.2f}-{cpus[-1]:.2f}] | {m('system_us'):.2f} | {m('p50'):.2f} | "
                  f"{m('p99'):.2f} | {m('p999'):.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--firn", default="target/release/firn")
    parser.add_argument("--base", default="", help="another firn, to compare with: servers base-sync, base-buffered")
    parser.add_argument("--redis", default="redis-server")
    parser.add_argument("--valkey", default="valkey-server")
    parser.add_argument("--dir")
    parser.add_argument("--out")
    parser.add_argument("--cells", default="set1,get1,set16,get16")
    parser.add_argument("--servers", default="firn-sync,firn-buffered,redis-everysec,redis-always,valkey-none")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5, help="about so long for each measurement")
    parser.add_argument("--settle", type=float, default=5, help="seconds between filling and measuring")
    parser.add_argument("--report", nargs="+")
    args = parser.parse_args()
    if args.report:
        report(args.report)
    elif args.dir and args.out:
        measure(args)
    else:
        parser.error("give --dir and --out, or --report")


main()
