#!/usr/bin/env python3
"""What HTTP costs the server: CPU time per request of FirnDB beside axum over a hash map.

    bench/http/run.py --firn target/release/firn --reference .../release/http-reference --dir SCRATCH

Both servers run at once; one of them is asked at a time, in turn (A B A B ...), by h2load (Debian:
nghttp2-client) over HTTP/1.1, HTTP/2 and, FirnDB only, gRPC. CPU time is user and system time of the
server's process, from /proc. The median of the rounds is shown, with the range.
"""

import argparse
import os
import re
import statistics
import subprocess

VALUE = 100
KEYS = 64
TICK = os.sysconf("SC_CLK_TCK")


def start(command):
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    words = server.stdout.readline().split()[1:]
    return server, dict(word.split("=", 1) for word in words)["http"]


def cpu(server):
    """Seconds; from the scheduler, which counts nanoseconds, summed over threads."""
    total = 0
    for thread in os.listdir(f"/proc/{server.pid}/task"):
        with open(f"/proc/{server.pid}/task/{thread}/schedstat") as f:
            total += int(f.read().split()[0])
    return total / 1e9


def message(fields):
    """A gRPC frame around a protobuf message of byte fields."""
    body = b"".join(bytes([number << 3 | 2, len(data)]) + data for number, data in fields)
    return b"\0" + len(body).to_bytes(4, "big") + body


def load(address, kind, requests, clients, directory):
    proto, op = kind.split("-")
    command = ["h2load", "-n", str(requests), "-c", str(clients), "-t", "1"]
    command += ["--h1"] if proto == "h1" else ["-m", "1"]
    if proto == "grpc":
        path = f"{directory}/message"
        key, value = (2, b"key00"), (3, b"v" * VALUE)
        fields = [key] if op == "get" else [key, value]
        with open(path, "wb") as f:
            # durability = BUFFERED
            f.write(message(fields) if op == "get" else message_buffered(fields))
        name = {"get": "Get", "put": "Put"}[op]
        command += ["-d", path, "-H", "content-type: application/grpc", "-H", "te: trailers"]
        urls = [f"http://{address}/firn.v1.KV/{name}"]
    else:
        urls = [f"http://{address}/v1/keys/key{n:02}" for n in range(KEYS)]
        if op in ("put", "sync"):
            path = f"{directory}/value"
            with open(path, "wb") as f:
                f.write(b"v" * VALUE)
            command += ["-d", path, "-H", ":method: PUT"]
            durability = "buffered" if op == "put" else "sync"
            urls = [f"{url}?durability={durability}" for url in urls]
    out = subprocess.run(command + urls, capture_output=True, text=True)
    done = re.search(r"(\d+) succeeded, (\d+) failed", out.stdout)
    bad = re.search(r"status codes: (\d+) 2xx", out.stdout)
    if not done or int(done[2]) or int(bad[1]) != requests:
        raise SystemExit(f"{' '.join(command + urls[:1])}\n{out.stdout}{out.stderr}")
    return float(re.search(r"finished in [^,]*, ([\d.]+) req/s", out.stdout)[1])


def message_buffered(fields):
    frame = message(fields)[5:] + bytes([7 << 3, 2])
    return b"\0" + len(frame).to_bytes(4, "big") + frame


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--firn", action="append", required=True, help="again to compare two builds")
    parser.add_argument("--reference", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default="h1-put,h1-get,h2-put,h2-get,grpc-put,grpc-get")
    args = parser.parse_args()
    os.makedirs(args.dir, exist_ok=True)
    servers = {"axum": start([args.reference])}
    for index, firn in enumerate(args.firn):
        data = f"{args.dir}/data{index}"
        servers[f"firn{index or ''}"] = start([firn, "serve", "--data-dir", data, "--http", "127.0.0.1:0"])
    try:
        print(f"| kind | {' | '.join(f'{name} CPU µs' for name in servers)} | ratio | "
              f"{' | '.join(f'{name} req/s' for name in servers)} |")
        print("|---" * (2 + 2 * len(servers)) + "|")
        for kind in args.kinds.split(","):
            costs = {name: [] for name in servers}
            rates = {name: [] for name in servers}
            for turn in range(args.rounds + 1):
                for name, (server, address) in servers.items():
                    if kind.startswith("grpc") and name == "axum":
                        continue
                    before = cpu(server)
                    rate = load(address, kind, args.requests, args.clients, args.dir)
                    if turn:  # The first one warms up.
                        costs[name].append((cpu(server) - before) / args.requests * 1e6)
                        rates[name].append(rate)
            def shown(list):
                if not list:
                    return "-"
                return f"{statistics.median(list):.1f} [{min(list):.1f}-{max(list):.1f}]"
            ratios = [
                f"{statistics.median(costs[name]) / statistics.median(costs['axum']):.2f}"
                for name in servers
                if name != "axum" and costs["axum"]
            ]
            cells = [shown(costs[name]) for name in servers]
            speeds = [f"{statistics.median(r):.0f}" if r else "-" for r in rates.values()]
            print(f"| {kind} | {' | '.join(cells)} | {' '.join(ratios) or '-'} | {' | '.join(speeds)} |", flush=True)
    finally:
        for server, _ in servers.values():
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
