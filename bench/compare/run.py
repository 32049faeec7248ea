#!/usr/bin/env python3
"""Runs engine x suite x repetition, interleaved (A B C A B C ...), under the measuring lock.

  run.py --bin PATH/engine-bench --dir SCRATCH --out results/results.jsonl [--lock FILE]
         [--engines rocksdb,fjall,redb,lmdb] [--suites core,sync,...] [--reps 3] [--hold 240]
         [--plan "2:core 1:core,sync@rocksdb 3:core"]   (repetition:suites@engines, in this order)

The lock is given back every --hold seconds. A job that is already in --out.done is skipped,
so the same command goes on where it stopped.
"""
import argparse, fcntl, os, shutil, subprocess, sys, time

ALL = ["firn", "rocksdb", "fjall", "redb", "lmdb"]
BLOBS = ["firn-blob", "rocksdb", "rocksdb-blob", "fjall", "fjall-blob", "redb", "lmdb"]
SUITES = {  # name: (engines, options, phases of each process in turn)
    "core": (ALL, "--n 2000000 --value 100 --cache-mb 64 --read-secs 1 --write-secs 12", [
        "fresh,fillseq,fresh,fillbatch,fresh,fillrandom,warm,readrandom,readhot,readmissing,multiget32,"
        "readseq,readreverse,seek10,seek100,seekrev10,readcold,multicold32,seqcold,readwhilewriting,overwrite,"
        "ycsb-a,ycsb-b,ycsb-c,ycsb-d,ycsb-e,ycsb-f,deleterandom,scanafterdelete,wipe"]),
    "kib": (ALL, "--n 400000 --value 1024 --cache-mb 64 --read-secs 1 --write-secs 6", [
        "fresh,fillrandom,warm,readrandom,readseq,seek10,readcold,overwrite,ycsb-a,ycsb-b,wipe"]),
    "sync": (ALL, "--n 100000 --value 100 --cache-mb 64 --read-secs 1.5", [
        "sync-mode,fresh,load,fillsync,fillsync16,fillsyncbatch,wipe"]),
    "big16k": (BLOBS, "--n 24576 --value 16384 --cache-mb 64 --read-secs 0.5 --write-secs 8", [
        "fresh,fillrandom,readrandom,overwrite,seek10,wipe"]),
    "big64k": (BLOBS, "--n 6144 --value 65536 --cache-mb 64 --read-secs 0.5 --write-secs 8", [
        "fresh,fillrandom,readrandom,overwrite,wipe"]),
    "recovery": (ALL, "--n 500000 --value 100 --memtable-mb 128", ["fresh,crashfill", "recover,reopen,wipe"]),
    "direct": (["rocksdb-direct"], "--n 2000000 --value 100 --cache-mb 64", ["fresh,load,readcold,wipe"]),
    "versions": (["firn", "rocksdb", "fjall"], "--n 2000000 --value 100 --cache-mb 64 --read-secs 2", [
        "fresh,load,ycsb-e:settled,ycsb-a:then,ycsb-e:after-a,settle,ycsb-e:settled-again,wipe"]),
    "limits": (["machine"], "", []),
    "deep": (["firn", "rocksdb", "fjall"], "--n 5000000 --value 100 --cache-mb 128 --read-secs 2 --write-secs 60", [
        "fresh,fillrandom,warm,readrandom,readmissing,readseq,seek10,readcold,overwrite,readrandom:after-overwrite,wipe"]),
    "deepbtree": (["redb", "lmdb"], "--n 5000000 --value 100 --cache-mb 128 --read-secs 2 --write-secs 10", [
        "fresh,load,warm,readrandom,readmissing,readseq,seek10,readcold,overwrite,wipe"]),
}

ap = argparse.ArgumentParser()
for n, d in (("bin", None), ("dir", None), ("out", None), ("lock", os.environ.get("MEASURE_LOCK", "measure.lock")), ("engines", ""),
             ("suites", "core,sync,recovery,kib,big16k,big64k,direct"), ("reps", "3"), ("hold", "240"), ("scale", "1"),
             ("first", "1"), ("until", ""), ("lock-fd", ""), ("plan", "")):
    ap.add_argument("--" + n, default=d, required=d is None)
a = ap.parse_args()
done_path = a.out + ".done"
done = set(open(done_path).read().split("\n")) if os.path.exists(done_path) else set()
jobs = []
for rep in range(int(a.first), int(a.reps) + 1):
    for s in a.suites.split(","):
        for e in SUITES[s][0]:
            if not a.engines or e in a.engines.split(","):
                jobs.append((rep, s, e))
if a.plan:
    jobs = []
    for w in a.plan.split():
        rep, rest = w.split(":")
        ss, _, es = rest.partition("@")
        jobs += [(int(rep), s, e) for s in ss.split(",") for e in SUITES[s][0] if not es or e in es.split(",")]

lock = os.fdopen(int(a.lock_fd), "a") if a.lock_fd else open(a.lock, "a")
held = time.time() if a.lock_fd else None  # an inherited descriptor: the lock is already ours
for rep, s, e in jobs:
    job = f"{rep} {s} {e}"
    if job in done:
        continue
    if a.until and time.strftime("%H:%M") >= a.until:
        print("time is up before", job, flush=True)
        break
    if held and time.time() - held > float(a.hold):
        fcntl.flock(lock, fcntl.LOCK_UN)
        held = None
        time.sleep(1)
    if not held:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = time.time()
    t = time.time()
    _, opts, procs = SUITES[s]
    if s == "limits":
        with open(os.path.join(os.path.dirname(a.out), "limits.jsonl"), "a") as f:
            subprocess.run([a.bin, "limits", "--dir", a.dir, "--secs", "0.8"], stdout=f, timeout=200)
    shutil.rmtree(a.dir, ignore_errors=True)
    ok = True
    for ph in procs:
        cmd = [a.bin, "suite", "--engine", e, "--suite", s, "--rep", str(rep), "--seed", str(rep), "--dir", a.dir,
               "--out", a.out, "--phases", ph, "--scale", a.scale] + opts.split()
        try:
            r = subprocess.run(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=200)
            if r.returncode not in (0, -9):
                ok = False
                print(job, "FAILED", r.returncode, r.stderr.decode()[-600:], flush=True)
        except subprocess.TimeoutExpired:
            ok = False
            print(job, "TIMED OUT", flush=True)
    shutil.rmtree(a.dir, ignore_errors=True)
    os.sync()
    print(time.strftime("%H:%M:%S"), job, f"{time.time() - t:.1f}s", "ok" if ok else "NOT OK", flush=True)
    with open(done_path, "a") as f:
        f.write(job + "\n")
