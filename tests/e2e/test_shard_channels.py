"""SSUBSCRIBE and its kin: names of their own beside channels, as Redis has them without a cluster."""
import re

from harness import wait_until


def conversation(server):
    """What a listener and a sender are told, as bytes."""
    out = []
    with server.raw() as listener, server.raw() as sender, server.raw() as other:
        for c in (listener, other):
            c.call("HELLO", 3)
        out.append(listener.pipeline(("SSUBSCRIBE", "a", "b", "a"), ("SUBSCRIBE", "a"), ("PSUBSCRIBE", "*")))
        out.append([listener.read_reply() for _ in range(2)])
        for command in (("SPUBLISH", "a", "one"), ("PUBLISH", "a", "two"), ("SPUBLISH", "c", "nobody"),
                        ("PUBSUB", "SHARDNUMSUB", "a", "b", "c"), ("PUBSUB", "NUMSUB", "a", "b"),
                        ("PUBSUB", "SHARDCHANNELS", "b*"), ("PUBSUB", "CHANNELS"), ("SPUBLISH", "a"),
                        ("PUBSUB", "SHARDCHANNELS", "a", "b")):
            out.append(sender.call(*command))
        out.append([listener.read_reply() for _ in range(3)])
        out.append(other.call("SSUBSCRIBE", "b"))
        out.append(sender.call("SPUBLISH", "b", "x" * 20000))
        out.append([listener.read_reply(), other.read_reply()])
        out.append(listener.pipeline(("SUNSUBSCRIBE", "b", "nope"), ("SUNSUBSCRIBE",), ("SUNSUBSCRIBE",)))
        out.append(listener.read_reply())
        out.append(sender.call("PUBSUB", "SHARDNUMSUB", "a", "b"))
    with server.raw() as old:
        out.append(old.call("SSUBSCRIBE", "a"))
        out.append(old.call("GET", "k"))
        out.append(old.call("PING"))
        out.append(old.call("SUNSUBSCRIBE"))
        out.append(old.call("GET", "k"))
    return out


def test_as_redis(tiercel, redis_server):
    ours, theirs = (conversation(server) for server in (tiercel(threads=3), redis_server()))
    for a, b in zip(ours, theirs):
        assert a == b


def test_subscriptions_count_as_the_clients_memory(tiercel):
    t = tiercel(threads=2)
    with t.raw() as a, t.raw() as b:
        for first in range(0, 50000, 1000):
            a.send_command("PSUBSCRIBE", *["pattern:%d:*" % i for i in range(first, first + 1000)])
            for _ in range(1000):
                a.read_value()
        line = [x for x in b.ask("CLIENT", "LIST").decode().splitlines() if "psub=50000" in x][0]
        assert int(re.search(r"tot-mem=(\d+)", line).group(1)) > 50000 * 64
        b.ask("CONFIG", "SET", "maxmemory-clients", "2mb")
        wait_until(lambda: b.ask("PUBSUB", "NUMPAT") == 0, what="its end")
        assert t.info("stats")["evicted_clients"] == 1
