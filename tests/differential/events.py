"""A subscriber to the keyspace notifications of both sides. Their order is compared, but for
"expired": that depends on when a server comes across a key."""
import collections

from wire import Connection, encode, parse

CHANNELS = b"__key*@*__:*"
MARKS = b"marks"


def misses_sorted(events):
    """SORT looks for the weights of a set's members in any order."""
    out, run = [], []
    for e in events + [None]:
        if e and (e[1] == b"keymiss" or e[0].endswith(b":keymiss")):
            run.append(e)
            continue
        out += sorted(run) + [e]
        run = []
    return out[:-1]


class Events:
    def __init__(self, servers, behind=None):
        """behind: whose notifications the second server passes on."""
        self.flags = b"KEAn" if behind else b"KEAnm"  # what a copy answers nobody misses
        self.subscribers = [Connection(server, 2) for server in servers]
        self.control = [Connection(server, 2) for server in servers]
        self.settings = [self.control[0], Connection(behind, 2) if behind else self.control[1]]
        self.marks = 0
        self.compared = 0
        self.on = False
        for c in self.subscribers:
            c.exchange(encode([b"PSUBSCRIBE", CHANNELS]) + encode([b"SUBSCRIBE", MARKS]), 2)

    def close(self):
        for c in self.subscribers + self.control + self.settings[1:]:
            c.close()

    def toggle(self):
        """Without notifications some commands ask less of the tiers: both ways are to be compared."""
        self.on = not self.on
        for c in self.settings:
            c.exchange(encode([b"CONFIG", b"SET", b"notify-keyspace-events", self.flags if self.on else b""]), 1)

    def _until_mark(self, subscriber, mark):
        events = []
        while True:
            message = [part[1:] for part in parse(subscriber.read_reply())[1:]]
            if message == [b"message", MARKS, mark]:
                return events
            channel, text = message[-2:]
            if text != b"expired" and not channel.endswith(b"__:expired"):
                events.append((channel, text))

    def difference(self):
        """Of what came since the last call: None, or the text of a mismatch."""
        self.marks += 1
        mark = b"%d" % self.marks
        both = []
        for subscriber, control in zip(self.subscribers, self.control):
            control.exchange(encode([b"PUBLISH", MARKS, mark]), 1)
            both.append(self._until_mark(subscriber, mark))
        both = [misses_sorted(events) for events in both]
        self.compared += len(both[0])
        if both[0] == both[1]:
            return None
        at = next((i for i, (a, b) in enumerate(zip(*both)) if a != b), min(map(len, both)))
        lost, more = (collections.Counter(both[i]) - collections.Counter(both[1 - i]) for i in (0, 1))
        lines = ["events differ from the %dth on:" % at]
        lines += ["    %-8s %s" % (name, events[max(0, at - 3):at + 3]) for name, events in zip(("redis:", "tiercel:"), both)]
        lines += ["    only redis: %s, only tiercel: %s" % (list(lost)[:5], list(more)[:5])]
        return "\n".join(lines)
