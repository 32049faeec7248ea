#!/usr/bin/env python3
"""What watches of another prefix cost those who write.

    bench/http/watchers.py --firn target/release/firn --dir SCRATCH

Opens so many watches, none of which is told anything, then lets h2load put, buffered and synced, on
50 connections. Shown is the median of the rounds: puts a second, and CPU time of the server for each.
"""

import argparse
import os
import resource
import selectors
import socket
import statistics
import threading

from run import cpu, load, start


class Watches:
    """Connections that read what comes and throw it away."""

    def __init__(self, address, count):
        host, port = address.rsplit(":", 1)
        self.selector = selectors.DefaultSelector()
        self.stop = False
        self.received = 0
        sockets = []
        for _ in range(count):
            connection = socket.create_connection((host, int(port)))
            connection.sendall(b"GET /v1/watch?prefix=other HTTP/1.1\r\nhost: localhost\r\n\r\n")
            sockets.append(connection)
        for connection in sockets:
            assert b"progress" in self.head(connection), "a watch was refused"
            self.selector.register(connection, selectors.EVENT_READ)
        self.sockets = sockets
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def head(self, connection):
        data = b""
        while b"progress" not in data and (more := connection.recv(4096)):
            data += more
        return data

    def read(self):
        while not self.stop:
            for key, _ in self.selector.select(0.2):
                self.received += len(key.fileobj.recv(4096))

    def close(self):
        self.stop = True
        self.thread.join()
        for connection in self.sockets:
            connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--firn", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--counts", default="0,1,100,900")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20_000)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    os.makedirs(args.dir, exist_ok=True)
    server, address = start([args.firn, "serve", "--data-dir", f"{args.dir}/data", "--http", "127.0.0.1:0"])
    counts = [int(count) for count in args.counts.split(",")]
    figures = {(count, kind): [] for count in counts for kind in ["h1-put", "h1-sync"]}
    try:
        load(address, "h1-put", args.requests, 50, args.dir)
        for _ in range(args.rounds):
            for count in counts:
                watches = Watches(address, count)
                for kind in ["h1-put", "h1-sync"]:
                    requests = args.requests if kind == "h1-put" else args.requests // 4
                    before = cpu(server)
                    rate = load(address, kind, requests, 50, args.dir)
                    figures[count, kind].append((rate, (cpu(server) - before) / requests * 1e6))
                watches.close()
        print("| watches | buffered puts/s | CPU µs | synced puts/s | CPU µs |\n|---|---|---|---|---|")
        for count in counts:
            cells = []
            for kind in ["h1-put", "h1-sync"]:
                rates, costs = zip(*figures[count, kind])
                cells += [f"{statistics.median(rates):.0f}", f"{statistics.median(costs):.1f}"]
            print(f"| {count} | {' | '.join(cells)} |")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
