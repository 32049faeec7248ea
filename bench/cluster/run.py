#!/usr/bin/env python3
"""A cluster of three firn servers beside three etcd members, on this machine, in one run.

    run.py rates    --firn target/release/firn [--etcd etcd] [--etcd-reads etcd] --dir SCRATCH [--seconds 4]
                    [--reps 2] [--clients 1,16,64,256] [--streams 1] [--out FILE]
    run.py failover --firn ... [--etcd ...] --dir SCRATCH [--trials 10] [--timers default|short]
    run.py transfer --firn ... --dir SCRATCH [--trials 10]
    run.py isolate  --firn ... --dir SCRATCH [--trials 5]
    run.py catchup  --firn ... [--etcd ...] --dir SCRATCH [--writes 200000]
    run.py files    --firn ... --dir SCRATCH [--gib 5]

rates: puts of 16-byte keys and 100-byte values and gets of one key, one system after the other, again and
again (A B A B). All are asked over gRPC by h2load (one thread, a connection a client, one request at a
time; with --streams N a connection for N of them), firn over HTTP by wrk too. --etcd-reads may name another
version for the gets. The processor time is that of the three servers together, divided by the requests; the rest of the two cores is the generator's.

failover: kill -9 of the leader; the time to the first write that another node accepts after it, while one
writer a node tries without a pause, and again after 0.2 s without an answer. transfer: the longest silence of three writers while leadership is
handed over. isolate: a follower stands still (SIGSTOP), or is in a network namespace whose wire is cut, for three
seconds and goes on; the longest silence of a writer at the leader from then on. catchup: a follower is killed, misses so many writes, and is started again:
the time until it has applied what the leader had. files: it misses so many GiB; what it was sent, and what a
load on the leader felt meanwhile.
"""

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")


def processor_seconds(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def field(number, data):
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


def frame(message):
    return b"\0" + len(message).to_bytes(4, "big") + message


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def get(port, path, host="127.0.0.1"):
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


class Cluster:
    """Three processes. A kind of them knows how to `start` one, how to `settle`, which one `leads`, how many
    entries one has `applied`, how many writes a leader has `written`, and how to `put_one`."""

    def __init__(self, binary, directory, flags=()):
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        self.binary, self.directory, self.flags = binary, directory, list(flags)
        self.processes = {}
        ports = free_ports(6)
        self.client = dict(zip((1, 2, 3), ports))
        self.peer = dict(zip((1, 2, 3), ports[3:]))
        for i in (1, 2, 3):
            self.start(i)
        self.settle()

    def host(self, i):
        return "127.0.0.1"

    def port(self, i):
        return self.client[i]

    def metric(self, i, name):
        text = get(self.client[i], "/metrics", self.host(i)).decode()
        found = re.search(rf"^{name} (\S+)$", text, re.M)
        return float(found.group(1)) if found else 0.0

    def leader(self):
        while True:
            for i in self.processes:
                try:
                    if self.leads(i):
                        return i
                except (OSError, http.client.HTTPException, ValueError):
                    pass
            time.sleep(0.02)

    def pids(self):
        return [process.pid for process in self.processes.values()]

    def kill(self, i):
        self.processes[i].kill()
        self.processes.pop(i).wait()

    def end(self):
        for i in list(self.processes):
            self.kill(i)
        shutil.rmtree(self.directory, ignore_errors=True)


class Firn(Cluster):
    name = "firn"

    def start(self, i):
        how = ["--init-cluster"] if i == 1 else ["--join", f"{self.host(1)}:{self.client[1]}"]
        command = [*self.where(i), self.binary, "serve", "--data-dir", f"{self.directory}/{i}",
                   "--http", f"{self.host(i)}:{self.client[i]}", "--resp", "off",
                   "--peer-addr", f"{self.host(i)}:{self.peer[i]}", "--memory", "256MiB",
                   "--log-level", "error", *self.flags, *how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        if not process.stdout.readline().startswith(b"ready"):
            raise SystemExit(f"node {i} does not start")
        self.processes[i] = process

    def where(self, i):
        return []

    def status(self, i):
        return json.loads(get(self.client[i], "/v1/cluster", self.host(i)))

    def settle(self):
        """Waits until all three are voters and well."""
        while True:
            try:
                all_status = [self.status(i) for i in self.processes]
                if all(s["trouble"] is None and sum(m["role"] != "learner" for m in s["members"]) == 3
                       for s in all_status):
                    return
            except (OSError, http.client.HTTPException, ValueError):
                pass
            time.sleep(0.05)

    def leads(self, i):
        return self.status(i)["role"] == "leader"

    def written(self, i):
        return self.metric(i, "firn_raft_proposed_writes_total")

    def applied(self, i):
        return self.status(i)["applied_index"] or 0

    def put_one(self, connection, key, value):
        connection.request("PUT", f"/v1/keys/{key}", body=value)
        answer = connection.getresponse()
        answer.read()
        return answer.status == 204

    put_path, get_path = "/firn.v1.KV/Put", "/firn.v1.KV/Get"
    put_body = frame(field(2, b"k" * 16) + field(3, b"v" * 100))
    get_body = frame(field(2, b"k" * 16))


class Apart(Firn):
    """The third node behind a wire of its own, which can be cut."""

    near, far = "10.214.7.1", "10.214.7.2"

    def __init__(self, binary, directory):
        self.tag = f"firn{os.getpid() % 10000}"
        for line in (f"ip netns add {self.tag}",
                     f"ip link add {self.tag}v type veth peer name {self.tag}w netns {self.tag}",
                     f"ip addr add {self.near}/24 dev {self.tag}v", f"ip link set {self.tag}v up",
                     f"ip -n {self.tag} addr add {self.far}/24 dev {self.tag}w",
                     f"ip -n {self.tag} link set {self.tag}w up", f"ip -n {self.tag} link set lo up"):
            subprocess.run(line.split(), check=True)
        super().__init__(binary, directory, ["--insecure"])

    def host(self, i):
        return self.far if i == 3 else self.near

    def where(self, i):
        return ["ip", "netns", "exec", self.tag] if i == 3 else []

    def wire(self, is_whole):
        subprocess.run(["ip", "link", "set", f"{self.tag}v", "up" if is_whole else "down"], check=True)

    def end(self):
        super().end()
        subprocess.run(["ip", "netns", "del", self.tag], check=True)


class Etcd(Cluster):
    name = "etcd"

    def start(self, i):
        peers = ",".join(f"e{n}=http://127.0.0.1:{port}" for n, port in self.peer.items())
        command = [self.binary, "--name", f"e{i}", "--data-dir", f"{self.directory}/{i}",
                   "--listen-client-urls", f"http://127.0.0.1:{self.client[i]}",
                   "--advertise-client-urls", f"http://127.0.0.1:{self.client[i]}",
                   "--listen-peer-urls", f"http://127.0.0.1:{self.peer[i]}",
                   "--initial-advertise-peer-urls", f"http://127.0.0.1:{self.peer[i]}",
                   "--initial-cluster", peers, "--log-level", "error", *self.flags]
        self.processes[i] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def settle(self):
        while True:
            try:
                if all(self.metric(i, "etcd_server_has_leader") == 1 for i in self.processes):
                    return
            except OSError:
                pass
            time.sleep(0.05)

    def leads(self, i):
        return self.metric(i, "etcd_server_is_leader") == 1

    def written(self, i):
        return self.applied(i)

    def applied(self, i):
        return self.metric(i, "etcd_server_proposals_applied_total")

    def put_one(self, connection, key, value):
        import base64
        code = lambda data: base64.b64encode(data.encode()).decode()
        body = json.dumps({"key": code(key), "value": code(value)})
        connection.request("POST", "/v3/kv/put", body=body, headers={"content-type": "application/json"})
        answer = connection.getresponse()
        return b"header" in answer.read() and answer.status == 200

    put_path, get_path = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"
    put_body = frame(field(1, b"k" * 16) + field(2, b"v" * 100))
    get_body = frame(field(1, b"k" * 16))


def h2load(cluster, path, body, clients, seconds, most=None, streams=1):
    """Requests a second, the 99th percentile in ms, requests in all."""
    data = os.path.join(cluster.directory, "body")
    log = os.path.join(cluster.directory, "h2load.log")
    with open(data, "wb") as out:
        out.write(body)
    if os.path.exists(log):
        os.remove(log)
    amount = ["-n", str(most)] if most else ["-D", str(seconds)]
    leader = cluster.leader()
    before = cluster.written(leader)
    url = f"http://127.0.0.1:{cluster.port(leader)}{path}"
    done = subprocess.run(["h2load", "-c", str(clients // streams), "-m", str(streams), "-t", "1", *amount, "--log-file", log,
                           "-H", "content-type: application/grpc", "-H", "te: trailers", "-d", data, url],
                          capture_output=True, text=True)
    rate = re.search(r"finished in ([0-9.]+)(m?s), ([0-9.]+) req/s", done.stdout)
    if not rate:
        raise SystemExit(f"h2load: {done.stdout}{done.stderr}")
    good = int(re.search(r"status codes: (\d+) 2xx", done.stdout).group(1))
    # gRPC says 200 to what it refuses, too.
    if path == cluster.put_path and cluster.written(leader) - before < good:
        raise SystemExit(f"{cluster.name}: of {good} puts {cluster.written(leader) - before:.0f} were written")
    with open(log) as lines:
        micros = sorted(int(line.split("\t")[2]) for line in lines)
    p99 = micros[len(micros) * 99 // 100] / 1000 if micros else None
    return float(rate.group(3)), p99, good


def wrk(port, path, clients, seconds, script=None):
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency"]
    if script:
        command += ["-s", script]
    out = subprocess.run([*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True).stdout
    if "Non-2xx" in out:
        raise SystemExit(out)
    number, unit = re.search(r"99%\s+([0-9.]+)(us|ms|s)", out).groups()
    p99 = float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
    rate = float(re.search(r"Requests/sec:\s+([0-9.]+)", out).group(1))
    return rate, p99, int(re.search(r"(\d+) requests in", out).group(1))


WRK_PUT = """
local value = string.rep("v", 100)
local n = 0
request = function()
  n = n + 1
  return wrk.format("PUT", string.format("/v1/keys/%016d", n % 1000000), nil, value)
end
"""


def rates(args):
    firn = Firn(args.firn, f"{args.dir}/firn")
    systems = [(firn, ("put", "get"))]
    if args.etcd:
        same = not args.etcd_reads or args.etcd_reads == args.etcd
        systems.append((Etcd(args.etcd, f"{args.dir}/etcd"), ("put", "get") if same else ("put",)))
        if not same:
            systems.append((Etcd(args.etcd_reads, f"{args.dir}/etcd-reads"), ("get",)))
    script = f"{args.dir}/put.lua"
    with open(script, "w") as out:
        out.write(WRK_PUT)
    rows = []

    def row(what, clients, system, door, measure):
        before, began = processor_seconds(system.pids()), time.time()
        rate, p99, requests = measure()
        micros = (processor_seconds(system.pids()) - before) * 1e6 / max(requests, 1)
        rows.append({"what": what, "clients": clients, "streams": args.streams, "system": system.name, "door": door, "rate": round(rate),
                     "p99_ms": p99, "cpu_us": round(micros, 1), "at": round(began)})
        print(json.dumps(rows[-1]), flush=True)
        if args.out:
            with open(args.out, "a") as out:
                out.write(json.dumps(rows[-1]) + "\n")

    for system, _ in systems:
        h2load(system, system.put_path, system.put_body, 16, 1)
    for _ in range(args.reps):
        for what in ("put", "get"):
            for clients in args.clients:
                for system, does in systems:
                    if what not in does:
                        continue
                    path, body = (system.put_path, system.put_body) if what == "put" else (system.get_path, system.get_body)
                    ask = lambda: h2load(system, path, body, clients, args.seconds, streams=args.streams)
                    row(what, clients, system, "grpc", ask)
                if args.streams > 1:
                    continue
                port = firn.port(firn.leader())
                if what == "put":
                    row(what, clients, firn, "http", lambda: wrk(port, "/", clients, args.seconds, script))
                else:
                    key = "/v1/keys/" + "k" * 16
                    row(what, clients, firn, "http", lambda: wrk(port, key, clients, args.seconds))
    for system, _ in systems:
        system.end()
    table(rows)


def table(rows):
    """The medians of all rows of a kind."""
    print("\n| | clients | system | rate/s | 99th percentile, ms | processor time, µs |\n|---|---|---|---|---|---|")
    kinds = dict.fromkeys((r["what"], r["clients"], r["system"], r["door"]) for r in rows)
    for kind in kinds:
        mine = [r for r in rows if (r["what"], r["clients"], r["system"], r["door"]) == kind]
        middle = lambda name: statistics.median(r[name] for r in mine if r[name] is not None)
        what, clients, system, door = kind
        print(f"| {what} | {clients} | {system} ({door}) | {middle('rate'):.0f} | {middle('p99_ms'):.2f} | {middle('cpu_us'):.0f} |")


class Writer(threading.Thread):
    """Writes one key after the other through one node, and notes when each was accepted."""

    def __init__(self, cluster, i, patience):
        super().__init__(daemon=True)
        self.cluster, self.i, self.patience = cluster, i, patience
        self.accepted, self.refused, self.is_over = [], 0, False

    def run(self):
        connection, n = None, 0
        while not self.is_over:
            try:
                if connection is None:
                    host = self.cluster.host(self.i)
                    connection = http.client.HTTPConnection(host, self.cluster.port(self.i), timeout=self.patience)
                    connection.connect()
                    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                n += 1
                if self.cluster.put_one(connection, f"w{self.i}-{n}", "1"):
                    self.accepted.append(time.monotonic())
                else:
                    self.refused += 1
            except (OSError, http.client.HTTPException):
                connection = None
                self.refused += 1
                time.sleep(0.005)

    def end(self):
        self.is_over = True
        self.join(15)


def writers(cluster, nodes, patience=12):
    started = [Writer(cluster, i, patience) for i in nodes]
    for writer in started:
        writer.start()
    return started


def longest_silence(started, begin, end):
    times = sorted(t for w in started for t in w.accepted if begin <= t <= end)
    return max((b - a for a, b in zip(times, times[1:])), default=end - begin) * 1000


def told(what, values):
    values = sorted(values)
    print(f"{what}: median {statistics.median(values):.0f} ms [{values[0]:.0f}-{values[-1]:.0f}] of {len(values)}", flush=True)


def failover(args):
    short = args.timers == "short"
    firn_flags = ["--cluster-election-timeout", "100ms"] if short else []
    etcd_flags = ["--heartbeat-interval", "50", "--election-timeout", "250"] if short else []
    systems = [Firn(args.firn, f"{args.dir}/firn", firn_flags)]
    if args.etcd:
        systems.append(Etcd(args.etcd, f"{args.dir}/etcd", etcd_flags))
    found = {system.name: [] for system in systems}
    for _ in range(args.trials):
        for system in systems:
            leader = system.leader()
            others = [i for i in system.processes if i != leader]
            started = writers(system, others, 0.2)
            time.sleep(0.7)
            system.kill(leader)
            killed = time.monotonic()
            while not any(w.accepted and w.accepted[-1] > killed + 0.05 for w in started):
                time.sleep(0.02)
            time.sleep(0.5)
            for writer in started:
                writer.end()
            # What was on its way when it died may still be accepted: the silence after it counts.
            found[system.name].append(longest_silence(started, killed - 0.2, time.monotonic()))
            system.start(leader)
            system.settle()
            time.sleep(0.5)
    for system in systems:
        told(f"{system.name} fail-over, {args.timers} timers", found[system.name])
        system.end()


def transfer(args):
    firn = Firn(args.firn, f"{args.dir}/firn")
    silences, refused = [], 0
    for _ in range(args.trials):
        leader = firn.leader()
        started = writers(firn, firn.processes)
        time.sleep(0.6)
        begin = time.monotonic()
        subprocess.run([args.firn, "cluster", "transfer", "--server", f"127.0.0.1:{firn.client[leader]}"],
                       stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        time.sleep(0.6)
        for writer in started:
            writer.end()
        silences.append(longest_silence(started, begin - 0.3, time.monotonic()))
        refused += sum(writer.refused for writer in started)
    told("firn transfer, longest silence", silences)
    print(f"requests refused: {refused}")
    firn.end()


def isolate(args):
    for how in ("stands still", "is cut off"):
        firn = Apart(args.firn, f"{args.dir}/firn") if how == "is cut off" else Firn(args.firn, f"{args.dir}/firn")
        silences, refused, changed = [], 0, 0
        for _ in range(args.trials):
            if firn.leader() == 3:
                subprocess.run([args.firn, "cluster", "transfer", "1", "--server",
                                f"{firn.host(3)}:{firn.client[3]}"], stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, check=True)
            leader = firn.leader()
            started = writers(firn, [leader])
            if how == "stands still":
                firn.processes[3].send_signal(signal.SIGSTOP)
                time.sleep(3)
                firn.processes[3].send_signal(signal.SIGCONT)
            else:
                firn.wire(False)
                time.sleep(3)
                firn.wire(True)
            begin = time.monotonic()
            time.sleep(3)
            for writer in started:
                writer.end()
            silences.append(longest_silence(started, begin - 0.1, time.monotonic() - 0.05))
            refused += sum(writer.refused for writer in started)
            changed += firn.leader() != leader
        told(f"firn, a follower that {how} comes back, longest silence", silences)
        print(f"requests refused: {refused}, leaders changed: {changed}")
        firn.end()


def level(system, i, target):
    while True:
        try:
            if system.applied(i) >= target:
                return
        except (OSError, http.client.HTTPException, ValueError):
            pass
        time.sleep(0.005)


def catchup(args):
    systems = [Firn(args.firn, f"{args.dir}/firn")]
    if args.etcd:
        systems.append(Etcd(args.etcd, f"{args.dir}/etcd"))
    found = {system.name: [] for system in systems}
    for _ in range(args.trials):
        for system in systems:
            leader = system.leader()
            follower = next(i for i in system.processes if i != leader)
            system.kill(follower)
            h2load(system, system.put_path, system.put_body, 64, 0, args.writes)
            target = system.applied(leader)
            begin = time.monotonic()
            system.start(follower)
            level(system, follower, target)
            found[system.name].append((time.monotonic() - begin) * 1000)
            system.settle()
    for system in systems:
        told(f"{system.name}, a follower that missed {args.writes} writes, from its start until it is level", found[system.name])
        system.end()


WRK_FILL = """
local value = {}
math.randomseed(SEED)
for i = 1, 100000 do value[i] = string.char(math.random(0, 255)) end
value = table.concat(value)
local n = START
request = function()
  n = n + 1
  return wrk.format("PUT", string.format("/v1/keys/big%012d", n), nil, value)
end
"""


def fill(firn, args, start, gib):
    """Values of 100 kB until so much was written: where to go on, and how many bytes."""
    script = f"{args.dir}/fill.lua"
    written = 0
    while written < gib * 2**30:
        with open(script, "w") as out:
            out.write(WRK_FILL.replace("SEED", str(start + 1)).replace("START", str(start)))
        requests = wrk(firn.port(firn.leader()), "/", 16, 2, script)[2]
        start += requests + 100
        written += requests * 100000
    return start, written


def files(args):
    firn = Firn(args.firn, f"{args.dir}/firn")
    script = f"{args.dir}/put.lua"
    with open(script, "w") as out:
        out.write(WRK_PUT)
    at, had = fill(firn, args, 0, 1)
    leader = firn.leader()
    follower = next(i for i in firn.processes if i != leader)
    time.sleep(3)
    firn.kill(follower)
    _, missed = fill(firn, args, at, args.gib)
    # Until what the writes left to do is done.
    time.sleep(20)
    load = lambda: wrk(firn.port(leader), "/", 8, 2, script)
    before = [load() for _ in range(10)]
    target = firn.applied(leader)
    begin = time.monotonic()
    firn.start(follower)
    done = threading.Event()
    waiter = threading.Thread(target=lambda: (level(firn, follower, target), done.set()))
    waiter.start()
    during = []
    while not done.is_set():
        during.append(load())
    took = time.monotonic() - begin
    text = get(firn.client[follower], "/metrics").decode()
    received = float(re.search(r"^firn_raft_received_bytes_total (\S+)", text, re.M).group(1))
    loaded = sum(r[2] for r in before + during) * 160
    print(f"the follower had {had / 2**30:.2f} GiB and missed {missed / 2**30:.2f} GiB and about "
          f"{loaded / 2**30:.2f} GiB of small writes; level after {took:.1f} s; received {received / 2**30:.2f} GiB")
    for name, rows in (("before", before), ("during", during)):
        p99 = sorted(r[1] for r in rows)
        print(f"8 writers at the leader {name}: {statistics.median(r[0] for r in rows):.0f}/s, p99 of two seconds: "
              f"median {statistics.median(p99):.1f} ms [{p99[0]:.1f}-{p99[-1]:.1f}]")
    firn.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rates", "failover", "transfer", "isolate", "catchup", "files"])
    parser.add_argument("--firn", required=True)
    parser.add_argument("--etcd")
    parser.add_argument("--etcd-reads")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--out")
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--reps", type=int, default=2)
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16, 64, 256])
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--timers", choices=["default", "short"], default="default")
    parser.add_argument("--writes", type=int, default=200000)
    parser.add_argument("--gib", type=float, default=5)
    args = parser.parse_args()
    os.makedirs(args.dir, exist_ok=True)
    globals()[args.what](args)


if __name__ == "__main__":
    main()
