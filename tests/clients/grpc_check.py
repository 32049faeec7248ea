"""Talks to a real server with the gRPC library that most of the world uses (grpcio, in C), knowing
nothing of ours: the messages are learnt by reflection.

    cargo xtask grpc-client

does all that is needed. By hand: a Python with grpcio, grpcio-reflection and grpcio-health-checking,

    python3 tests/clients/grpc_check.py target/debug/firn
"""

import os
import signal
import subprocess
import sys
import tempfile
import time

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

checks = 0


def check(condition, what):
    global checks
    checks += 1
    if not condition:
        sys.exit(f"FAILED: {what}")


class Rpc:
    """Every service that the server describes, by the names in its descriptors."""

    def __init__(self, channel):
        self.channel = channel
        self.reflection = ProtoReflectionDescriptorDatabase(channel)
        self.pool = DescriptorPool(self.reflection)

    def message(self, name, **fields):
        kind = GetMessageClass(self.pool.FindMessageTypeByName(f"firn.v1.{name}"))
        return kind(**fields)

    def __call__(self, service, method, timeout=10, metadata=None, **fields):
        described = self.pool.FindServiceByName(f"firn.v1.{service}").FindMethodByName(method)
        ask = GetMessageClass(described.input_type)
        answer = GetMessageClass(described.output_type)
        make = self.channel.unary_stream if described.server_streaming else self.channel.unary_unary
        call = make(
            f"/firn.v1.{service}/{method}",
            request_serializer=ask.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(ask(**fields), timeout=timeout, metadata=metadata)


def refused(code, reason, action):
    try:
        result = action()
        if hasattr(result, "__next__"):
            list(result)
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata())
        check(error.code() == code, f"{reason}: got {error.code()}: {error.details()}")
        check(trailers.get("firn-code") == reason, f"{reason}: trailers are {trailers}")
        check("grpc-status-details-bin" in trailers, f"{reason}: no details")
        return trailers
    sys.exit(f"FAILED: {reason}: it was accepted")


def watch_it(rpc):
    """Every change in order, from any version on; what cannot be watched is refused."""
    codes = grpc.StatusCode
    begun = rpc("KV", "Watch", all_namespaces=True, timeout=30)
    first = next(begun).progress
    rpc("Namespaces", "Create", name="w")
    op = "BatchRequest.Op"
    rpc("KV", "Batch", namespace="w", ops=[
        rpc.message(op, put=rpc.message("BatchRequest.Put", key=b"a", value=b"\xff")),
        rpc.message(op, delete=rpc.message("BatchRequest.Delete", key=b"b")),
        rpc.message(op, delete_range=rpc.message("KeyRange", prefix=b"c")),
    ])
    rpc("Namespaces", "Drop", name="w")

    def told(stream, count):
        events = []
        while len(events) < count:
            message = next(stream)
            events += message.events
        check(message.progress >= events[-1].version, "progress")
        stream.cancel()
        return events

    events = told(begun, 4)
    kinds = [event.WhichOneof("change") for event in events]
    check(kinds == ["put", "delete", "delete_range", "drop_namespace"], f"changes {kinds}")
    check([e.version for e in events] == [first + n for n in range(1, 5)], "versions")
    check([e.more for e in events] == [True, True, False, False], "batches")
    check(events[0].put.value == b"\xff" and events[0].namespace == "w", "the put")
    again = told(rpc("KV", "Watch", all_namespaces=True, from_version=first + 2), 3)
    check(again == events[1:], "from a version on")
    refused(codes.INVALID_ARGUMENT, "invalid_argument",
            lambda: rpc("KV", "Watch", from_version=1 << 40))
    refused(codes.NOT_FOUND, "namespace_not_found", lambda: rpc("KV", "Watch", namespace="w"))
    waiting = rpc("KV", "Watch", timeout=0.3)
    next(waiting)
    try:
        next(waiting)
        sys.exit("FAILED: a watch outlived its deadline")
    except grpc.RpcError as error:
        check(error.code() == codes.DEADLINE_EXCEEDED, f"deadline: {error.code()}")


def exercise(address):
    options = [("grpc.max_receive_message_length", 128 << 20)]
    with grpc.insecure_channel(address, options) as channel:
        rpc = Rpc(channel)
        services = set(rpc.reflection.get_services())
        for name in ["firn.v1.KV", "firn.v1.Namespaces", "firn.v1.Admin", "grpc.health.v1.Health"]:
            check(name in services, f"{name} is not among {services}")
        health = health_pb2_grpc.HealthStub(channel)
        status = health.Check(health_pb2.HealthCheckRequest(service="firn.v1.KV")).status
        check(status == health_pb2.HealthCheckResponse.SERVING, "not serving")

        key = bytes(range(256))
        put = rpc("KV", "Put", key=key, value=b"\x00\xff")
        got = rpc("KV", "Get", key=key)
        check((got.value, got.version) == (b"\x00\xff", put.version), "put, get")
        large = os.urandom(20 << 20)
        rpc("KV", "Put", key=b"large", value=large)
        check(rpc("KV", "Get", key=b"large").value == large, "20 MiB and back")
        codes = grpc.StatusCode
        refused(codes.NOT_FOUND, "not_found", lambda: rpc("KV", "Get", key=b"none"))
        absent = rpc.message("Condition", absent=True)
        refused(
            codes.FAILED_PRECONDITION,
            "condition_failed",
            lambda: rpc("KV", "Put", key=key, value=b"", condition=absent),
        )
        same = rpc.message("Condition", version=put.version)
        rpc("KV", "Put", key=key, value=b"2", condition=same, ttl_ms=60_000)
        check(rpc("KV", "Get", key=key).HasField("expires_at_ms"), "expiry")
        refused(
            codes.INVALID_ARGUMENT,
            "key_too_large",
            lambda: rpc("KV", "Put", key=b"k" * 70_000, value=b""),
        )
        refused(
            codes.INVALID_ARGUMENT,
            "value_too_large",
            lambda: rpc("KV", "Put", key=b"k", value=b"v" * (65 << 20), timeout=60),
        )
        refused(
            codes.NOT_FOUND,
            "namespace_not_found",
            lambda: rpc("KV", "Get", namespace="nowhere", key=b"k"),
        )

        rpc("Namespaces", "Create", name="list")
        op, put_op = "BatchRequest.Op", "BatchRequest.Put"
        ops = [
            rpc.message(op, put=rpc.message(put_op, key=b"%04d" % i, value=b"v" * 100))
            for i in range(10_000)
        ]
        done = rpc("KV", "Batch", namespace="list", ops=ops)
        check(len(done.versions) == 10_000, "batch")
        keys = [e.key for m in rpc("KV", "Range", namespace="list") for e in m.entries]
        check(keys == [b"%04d" % i for i in range(10_000)], "range")
        pages, cursor = [], ""
        while True:
            found = rpc("KV", "Range", namespace="list", reverse=True, keys_only=True,
                        limit=4_000, cursor=cursor)
            cursor = ""
            for message in found:
                pages += [e.key for e in message.entries]
                cursor = message.next_cursor
            if not cursor:
                break
        check(pages == keys[::-1], "pages backwards")
        left = rpc("KV", "Range", namespace="list")
        next(left)
        left.cancel()
        found = rpc("KV", "MultiGet", namespace="list", keys=[b"0001", b"x"]).found
        check([f.HasField("entry") for f in found] == [True, False], "multi-get")
        prefix = rpc.message("KeyRange", prefix=b"00")
        rpc("KV", "DeleteRange", namespace="list", range=prefix)
        keys = [e.key for m in rpc("KV", "Range", namespace="list") for e in m.entries]
        check(len(keys) == 9_900, "delete_range")
        watch_it(rpc)
        rpc("Admin", "Flush")
        rpc("Admin", "Compact", namespace="list")
        check(rpc("Admin", "Verify", timeout=60).clean, "verify")
        check(rpc("Admin", "Stats").counters["flushes"] > 0, "statistics")
        rpc("Namespaces", "Drop", name="list")
        names = [ns.name for ns in rpc("Namespaces", "List").namespaces]
        check(names == ["default"], f"namespaces {names}")


def main():
    firn = sys.argv[1] if len(sys.argv) == 2 else sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        command = [firn, "serve", "--data-dir", f"{directory}/data", "--http", "127.0.0.1:0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            line = server.stdout.readline()
            address = dict(word.split("=", 1) for word in line.split()[1:])["http"]
            started = time.monotonic()
            exercise(address)
            # A stream that is open when the server stops ends by itself.
            with grpc.insecure_channel(address) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                watch = health.Watch(health_pb2.HealthCheckRequest())
                next(watch)
                feed = Rpc(channel)("KV", "Watch", timeout=None)
                next(feed)
                server.send_signal(signal.SIGTERM)
                check(
                    [m.status for m in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING],
                    "the watch says that the server stops",
                )
                next(feed)
                refused(grpc.StatusCode.UNAVAILABLE, "shutting_down", lambda: next(feed))
            check(server.wait(30) == 0, "it stops with 0")
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    print(f"grpcio {grpc.__version__}: {checks} checks in {time.monotonic() - started:.1f} s")


main()
