#!/usr/bin/env python3
"""Compares builds or engines on a noisy machine: their processes take turns of some milliseconds on one processor.

    turns.py --dir DIR --phases fresh,fillrandom,warm,readrandom --rounds 4 before=OLD/engine-bench after=NEW/engine-bench
    turns.py --dir DIR --phases fresh,fillrandom,readrandom rocks=engine-bench@rocksdb firn=engine-bench

One runs while the others are stopped (SIGSTOP), so all of them meet the same moods of the machine. What is compared is
processor time for each operation, of all threads of a process: background work counts, waiting for the disk does not.
Medians of the rounds, and the ratio to the first in each round. With --from, all begin with a copy of that database."""
import argparse, json, os, shutil, signal, statistics, subprocess, time

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("builds", nargs="+", metavar="NAME=BIN[@ENGINE]")
ap.add_argument("--dir", required=True, help="a directory for the databases, which are removed")
ap.add_argument("--phases", required=True)
ap.add_argument("--from", dest="origin", help="a database to begin with")
ap.add_argument("--options", default="--n 2000000 --value 100 --cache-mb 64 --read-secs 3 --write-secs 25")
ap.add_argument("--rounds", type=int, default=4)
ap.add_argument("--turn-ms", type=float, default=30)
a = ap.parse_args()

costs = {}  # phase -> name -> processor time for an operation in each round, in microseconds
for r in range(a.rounds):
    running = []
    for name, build in (b.split("=", 1) for b in a.builds):
        binary, _, engine = build.partition("@")
        db = os.path.join(a.dir, name)
        shutil.rmtree(db, ignore_errors=True)
        if a.origin:
            shutil.copytree(a.origin, db)
        cmd = ["taskset", "-c", str(r % os.cpu_count()), binary, "suite", "--engine", engine or "firn", "--seed", str(r + 1),
               "--dir", db, "--phases", a.phases] + a.options.split()
        running.append((name, subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)))
    for _, p in running[1:]:
        p.send_signal(signal.SIGSTOP)
    turn = 0
    while all(p.poll() is None for _, p in running):
        time.sleep(a.turn_ms / 1000)
        running[turn][1].send_signal(signal.SIGSTOP)
        turn = (turn + 1) % len(running)
        running[turn][1].send_signal(signal.SIGCONT)
    for _, p in running:
        p.send_signal(signal.SIGCONT)
    for name, p in running:
        out, _ = p.communicate()
        for row in (json.loads(line) for line in out.splitlines() if line.startswith("{")):
            costs.setdefault(row["phase"], {}).setdefault(name, []).append(row["cpu"] / row["ops"] * 1e6)
        shutil.rmtree(os.path.join(a.dir, name), ignore_errors=True)

for phase, names in costs.items():
    first = next(iter(names.values()))
    for name, of in names.items():
        ratios = [x / y for x, y in zip(first, of)]
        each = " ".join(f"{x:.2f}" for x in ratios)
        print(f"{phase:18} {name:12} {statistics.median(of):9.3f} us  {statistics.median(ratios):.2f}x  [{each}]")
