"""Expiry over a slow link: a copy may go early, an answer may not be missing."""
from harness import seen


def test_a_value_that_lives_is_answered(tiercel, redis_server, proxy):
    """The request was a long time on its way there, longer than what is left of the key's life when it is executed."""
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=1)
    t.wait_tiers(tier_upstream_state="up")
    wire.delay(up=0.4, where=seen("CLIENT TRACKING"))
    for i in range(3):
        up.client().set("k:%d" % i, "v", px=700)
        assert t.client().get("k:%d" % i) == b"v"
        assert t.call("TYPE", "k:%d" % i) in ("string", "none")
