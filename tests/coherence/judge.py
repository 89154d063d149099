"""Judges what clients saw by what the upstream did.

A read is right if some version of its key, with the answer that came, was current between the read's start minus the
bound and its end, and if it is not older than any write of the key that was acknowledged through the same sidecar before
the read began (or before it on the same connection).
"""
import bisect
import collections

import reads

SLACK = 0.03  # seconds: clocks of servers are read once per turn of their loops


class Track:
    """A Timeline with the ends of expiring versions in it: [index, from, until, value, expire] in order."""

    def __init__(self, t):
        self.entries = []
        self.until = []
        n = len(t.value)
        for i in range(n):
            until = t.hi[i + 1] if i + 1 < n else float("inf")
            expire = t.expire[i]
            if expire is not None and expire < until:
                self.entries.append((i, t.lo[i], max(expire, t.lo[i]), t.value[i], expire))
                self.entries.append((i + 0.5, expire - SLACK, until, None, None))
            else:
                self.entries.append((i, t.lo[i], until, t.value[i], expire))
        top = 0.0
        for e in self.entries:  # monotonic, so that bisect finds the first that may count
            top = max(top, e[2])
            self.until.append(top)


class Judge:
    def __init__(self, timelines, bound):
        self.timelines = timelines
        self.bound = bound
        self.tracks = {}
        self.violations = collections.defaultdict(list)
        self.counts = collections.Counter()
        self.age = 0.0  # the oldest answer, in seconds: how far the bound was used

    def track(self, key):
        if key not in self.tracks:
            self.tracks[key] = Track(self.timelines[key])
        return self.tracks[key]

    # -- writes

    def version_of(self, op, proof):
        """The version that an acknowledged write made, or the first that it can be. None: not known."""
        key, how = proof[0], proof[1]
        t = self.timelines[key]
        if how == "has":
            return t.first.get(proof[2])
        if how == "took":
            return t.removed.get(proof[2])
        first = t.after(op[4])
        if how == "is":
            want = ("s", proof[2])
            for i in range(first if first is not None else len(t.value), len(t.value)):
                if t.value[i] == want:
                    return i
            return None
        return first

    def floors(self, ops):
        """{(target, key): ([time of acknowledgement], [least version from then on])}, and the same for connections."""
        writes = sorted((op for op in ops if op[0] == "w"), key=lambda op: op[5])
        out = collections.defaultdict(lambda: ([], []))
        own = collections.defaultdict(lambda: ([], []))
        for op in writes:
            for proof in op[6]:
                self.counts["writes"] += 1
                i = self.version_of(op, proof)
                if i is None:
                    if proof[1] in ("has", "took"):
                        self.violations["lost"].append("acknowledged through %s, and not in the upstream's history: %s" % (op[3], proof))
                    continue
                for table, at, when in ((out, (op[3], proof[0]), op[5]), (own, (op[1], proof[0]), op[2])):
                    times, floor = table[at]
                    times.append(when)
                    floor.append(max(i, floor[-1]) if floor else i)
        for times, floor in own.values():
            order = sorted(range(len(times)), key=lambda n: times[n])
            times[:] = [times[n] for n in order]
            top = -1
            floor[:] = [top := max(top, floor[n]) for n in order]
        return out, own

    # -- reads

    def judge(self, ops):
        shared, own = self.floors(ops)
        newest = {}
        for op in sorted((op for op in ops if op[0] == "r"), key=lambda op: (op[1], op[2])):
            _, conn, seq, target, start, end, key, name, value = op
            self.counts["reads"] += 1
            self.counts[target] += 1
            bound = 0.0 if target == "up" else self.bound
            track = self.track(key)
            floor = -1
            if target != "up":
                times, floors = shared[target, key]
                n = bisect.bisect_left(times, start)
                floor = max(floor, floors[n - 1] if n else -1)
            times, floors = own[conn, key]
            n = bisect.bisect_left(times, seq)
            floor = max(floor, floors[n - 1] if n else -1)
            n = bisect.bisect_left(track.until, start - bound - SLACK)
            match, least, age = [], None, None
            for e in track.entries[n:]:
                if e[1] > end + SLACK:
                    break
                if e[2] < start - bound - SLACK or reads.expected(name, e[3], e[4]) != value:
                    continue
                least = e[0] if least is None else least
                if e[0] >= floor:
                    match.append(e[0])
                    age = start - e[2] if age is None else min(age, start - e[2])
            if not match:
                self.wrong(op, track, floor, least)
                continue
            self.age = max(self.age, age)
            at = (conn, key)
            if newest.get(at, -1) > match[-1]:
                self.counts["not monotonic"] += 1
            newest[at] = max(newest.get(at, -1), match[0])

    def wrong(self, op, track, floor, least):
        _, conn, _, target, start, end, key, name, value = op
        then = [e for e in track.entries if reads.expected(name, e[3], e[4]) == value]
        older = [e for e in then if e[2] < start]
        text = "%s %s through %s (connection %s, %.3f s long) answered %.200r" % (name, key, target, conn, end - start, value)
        if least is not None:
            kind = "own write"
            text += ": older than version %s, acknowledged there before" % floor
        elif older:
            kind = "stale"
            text += ": not current for %.3f s" % (start - older[-1][2])
        else:
            kind = "never"
            text += ": no version of the key, %d there are" % len(track.entries)
        now = [e for e in track.entries if e[1] <= start <= e[2]]
        if now:
            text += "; current was version %s: %.200r" % (now[-1][0], reads.expected(name, now[-1][3], now[-1][4]))
            if now[-1][4] is not None:
                text += ", which expires %.3f s after the read's end" % (now[-1][4] - end)
        if older:
            text += "; the answer is that of version %s" % older[-1][0]
        self.violations[kind].append("%.3f %s" % (start, text))
