"""A conversation of redis-py or valkey-py with the RESP port: python_client.py redis|valkey PORT."""

import importlib
import sys
import threading
import time

module = importlib.import_module(sys.argv[1])
port = int(sys.argv[2])
client_class = module.Redis if sys.argv[1] == "redis" else module.Valkey


def conversation(**options):
    r = client_class(port=port, client_name="python", **options)
    r.flushall()
    assert r.ping()
    # Strings.
    assert r.set("a", "1") and r.get("a") == b"1"
    assert r.set("a", "2", nx=True) is None and r.set("a", "2", xx=True, get=True) == b"1"
    assert r.incr("a") == 3 and r.incrby("a", 7) == 10 and r.incrbyfloat("a", 0.5) == 10.5
    assert r.append("a", "0") == 5 and r.getrange("a", 0, 1) == b"10" and r.strlen("a") == 5
    assert r.mset({"b": 1, "c": 2}) and r.mget("a", "b", "none") == [b"10.50", b"1", None]
    assert r.delete("b", "none") == 1 and r.exists("a", "b") == 1 and r.type("a") == b"string"
    assert r.set(b"\x00\xff", b"\r\n") and r.get(b"\x00\xff") == b"\r\n"
    assert r.getdel("c") == b"2" and r.get("c") is None
    # Expiry.
    assert r.set("t", 1, ex=100) and 98 <= r.ttl("t") <= 100
    assert r.persist("t") and r.ttl("t") == -1 and r.ttl("none") == -2
    assert r.expire("t", 100, gt=True) == 0 and r.expire("t", 50) == 1 and r.pttl("t") > 40000
    r.set("soon", 1, px=30)
    deadline = time.time() + 10
    while r.get("soon") is not None:
        assert time.time() < deadline
        time.sleep(0.01)
    # Pipelines and transactions.
    pipe = r.pipeline(transaction=False)
    for i in range(500):
        pipe.set(f"p:{i:03}", i)
    pipe.get("p:499")
    assert pipe.execute()[-1] == b"499"
    assert r.pipeline().incr("n").incr("n").get("n").execute() == [1, 2, b"2"]
    with r.pipeline() as pipe:
        pipe.watch("n")
        r.incr("n")
        pipe.multi()
        pipe.set("n", 0)
        try:
            pipe.execute()
            raise AssertionError("a watched key was changed")
        except module.WatchError:
            pass
    assert r.transaction(lambda p: (p.multi(), p.incr("n")), "n") == [4]
    try:
        r.execute_command("HSET", "h", "f", "v")
        raise AssertionError("there are no hashes")
    except module.ResponseError as error:
        assert "unknown command" in str(error), error
    # Scans.
    keys = list(r.scan_iter("p:*", count=17))
    assert len(keys) == 500 and len(set(keys)) == 500 and len(r.keys("p:00?")) == 10
    assert r.dbsize() == len(r.keys())
    # Messages.
    listener = r.pubsub()
    listener.subscribe("news")
    assert listener.get_message(timeout=5)["type"] == "subscribe"
    threading.Timer(0.05, lambda: client_class(port=port).publish("news", "hi")).start()
    assert listener.get_message(timeout=10)["data"] == b"hi"
    listener.close()
    # What tools ask.
    assert r.info()["role"] == "master" and r.config_get("maxmemory-policy")
    assert any(c["name"] == "python" for c in r.client_list())
    assert r.command_count() > 80 and r.slowlog_get() is not None and r.time()[0] > 0
    assert r.rename("a", "a2") and r.copy("a2", "a3") and r.touch("a2", "a3") == 2
    assert r.restore("a4", 0, r.dump("a3")) and r.get("a4") == r.get("a3")
    # A lost connection.
    client_class(port=port).client_kill_filter(_type="normal", skipme=True)
    assert r.get("a2") == b"10.50"
    assert r.execute_command("FIRN.RANGE", "[p:000", "+", "LIMIT", 1)[1] == [b"p:000", b"0"]


conversation()
conversation(protocol=2)
conversation(protocol=3)
