"""A TCP proxy that a test puts between two servers, to delay, count, hang and cut.

    wire = proxy(up)                     # up: a Redis of this library, or a port
    t = tiercel(upstream=wire)

    wire.delay(up=0.01, down=0.01)       # latency; pipelined requests do not add up
    wire.delay(down=0.2, where=seen("SUBSCRIBE"))
    wire.count("GET"), wire.count()      # commands seen; all of them
    wire.count_keys("GET")               # Counter of their first arguments
    wire.bytes_up, wire.bytes_down
    wire.hang(where=...), wire.resume()  # connections stay, nothing passes; then all of it does
    wire.cut(where=...)                  # connections are reset; returns how many
    wire.swallow(where=...)              # half-open from now on: connections stay, and their bytes are lost for ever
    wire.drop(fn, where=...)             # replies and pushes for which fn(bytes) is true are left out
    wire.down(), wire.up()               # nobody listens, all are cut; back on the same port
    wire.refuse()                        # nobody listens, and what is connected stays
    wire.connections                     # open ones: .commands, .saw(name), .bytes_up, ...

"up" is from the client to the target, "down" is back. `where` is a predicate of a Connection;
it is asked again for every piece of data, so a rule also holds for connections to come.
"""
import asyncio
import collections
import socket
import threading
import time

from ports import free_port


def seen(*names):
    """A predicate: the connection has carried one of these commands."""
    return lambda connection: any(connection.saw(n) for n in names)


def unseen(*names):
    return lambda connection: not any(connection.saw(n) for n in names)


class _Replies:
    """Splits a stream of replies and pushes, so that some can be left out."""

    def __init__(self):
        self.buf = bytearray()

    def feed(self, data):
        """The whole ones, as bytes."""
        self.buf += data
        out, start = [], 0
        while True:
            end = self._end(start)
            if end is None:
                break
            out.append(bytes(self.buf[start:end]))
            start = end
        del self.buf[:start]
        return out

    def _end(self, at):
        todo = 1
        while todo:
            end = self.buf.find(b"\r\n", at)
            if end < 0:
                return None
            kind, text, at = self.buf[at:at + 1], self.buf[at + 1:end], end + 2
            todo -= 1
            if kind in b"*~>" and text != b"-1":
                todo += int(text)
            elif kind in b"%|":
                todo += 2 * int(text) + (kind == b"|")
            elif kind in b"$=!" and text != b"-1":
                at += int(text) + 2
                if at > len(self.buf):
                    return None
        return at


class _Commands:
    """Finds commands (arrays of bulk strings, or inline) in a stream."""

    KEEP = 256  # bytes kept of an argument

    def __init__(self, found):
        self.found = found
        self.buf = bytearray()
        self.args = None
        self.want = 0
        self.bulk = None
        self.skip = 0

    def feed(self, data):
        self.buf += data
        while self._step():
            pass

    def _line(self):
        end = self.buf.find(b"\r\n")
        if end < 0:
            return None
        line = bytes(self.buf[:end])
        del self.buf[:end + 2]
        return line

    def _step(self):
        if self.skip:  # the rest of a long argument
            n = min(self.skip, len(self.buf))
            del self.buf[:n]
            self.skip -= n
            if self.skip:
                return False
            return self._argument_done()
        if self.bulk is not None:
            take = min(self.bulk, self.KEEP)
            if len(self.buf) < take:
                return False
            self.args.append(bytes(self.buf[:take]))
            self.skip = self.bulk + 2 - take
            del self.buf[:take]
            self.bulk = None
            return True
        line = self._line()
        if line is None:
            return False
        if self.args is None:
            if line[:1] == b"*":
                self.args = []
                self.want = int(line[1:])
                if self.want <= 0:
                    self.args = None
            elif line:
                self.found(tuple(line.split()))
        else:
            self.bulk = int(line[1:])
        return True

    def _argument_done(self):
        if len(self.args) == self.want:
            args, self.args = self.args, None
            self.found(tuple(args))
        return True


class Connection:
    """One proxied connection."""

    def __init__(self, proxy):
        self.proxy = proxy
        self.names = collections.Counter()
        self.commands = collections.deque(maxlen=100000)
        self.bytes_up = 0
        self.bytes_down = 0
        self.opened = time.monotonic()
        self.writers = []
        self.tasks = []
        self.parser = _Commands(self._found)
        self.lost_up = self.lost_down = False
        self.task = None  # asyncio itself keeps no task alive
        self.replies = None

    def __str__(self):
        return "%d bytes up, %d down, %s" % (self.bytes_up, self.bytes_down, dict(self.names))

    def _found(self, args):
        if not args:
            return
        name = args[0].decode("latin-1").upper()
        self.names[name] += 1
        if name == "CLIENT" and len(args) > 1:
            self.names["CLIENT " + args[1].decode("latin-1").upper()] += 1
        self.commands.append((name,) + args[1:])
        self.proxy._count(name, args)

    def saw(self, name):
        return self.names[name.upper()] > 0

    def abort(self):
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            if sock is not None:
                try:  # a reset, not an orderly end
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                except OSError:
                    pass
            writer.transport.abort()


class Proxy:
    log_path = None

    def __init__(self, target, port=None):
        self.target = target if isinstance(target, int) else target.port
        self.port = port or free_port()
        self.accepted = 0
        self.closed_bytes_up = 0
        self.closed_bytes_down = 0
        self.names = collections.Counter()
        self.keys = collections.defaultdict(collections.Counter)
        self._open = set()
        self._delays = []
        self._hangs = []
        self._drops = []
        self._lock = threading.Lock()
        self._loop = None
        self._thread = None
        self._server = None

    def __str__(self):
        return "proxy on port %s to %d" % (self.port, self.target)

    @property
    def url(self):
        return "redis://127.0.0.1:%d" % self.port

    # -- life

    def start(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.up()
        return self

    def close(self):
        if self._loop is None:
            return
        self.down()
        self._run(self._drain())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._loop = None

    def remove(self):
        pass

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _drain(self):
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def up(self):
        """Listens (again)."""
        if self._server is None:
            self._run(self._listen())

    def down(self):
        """Nobody listens any more and all connections are cut."""
        self._run(self._close())
        self.cut()

    def refuse(self):
        """Nobody listens any more; connections stay."""
        self._run(self._close())

    async def _listen(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 18, backlog=1024)

    async def _close(self):
        if self._server is not None:
            self._server.close()
            self._server = None
        # connections that were accepted but not yet served
        await asyncio.sleep(0)

    # -- what a test does to it

    def delay(self, up=0.0, down=0.0, where=None):
        """Seconds of latency from now on. Without `where`, replaces all earlier delays."""
        with self._lock:
            rules = [] if where is None else self._delays
            self._delays = rules + [(where, up, down)]

    def hang(self, where=None, up=True, down=True):
        """Nothing passes (in these directions) until resume()."""
        with self._lock:
            self._hangs = self._hangs + [(where, up, down)]

    def resume(self):
        with self._lock:
            self._hangs = []

    def swallow(self, where=None, up=True, down=True):
        """Bytes of these connections are lost from now on, and the connections stay; returns how many."""

        async def work():
            hit = [c for c in self._open if where is None or where(c)]
            for c in hit:
                c.lost_up |= up
                c.lost_down |= down
            return len(hit)

        return self._run(work())

    def drop(self, fn, where=None):
        """Leaves out what comes back and fn(bytes of one reply or push) is true for, until restore()."""
        with self._lock:
            self._drops = self._drops + [(where, fn)]

    def restore(self):
        with self._lock:
            self._drops = []

    def cut(self, where=None):
        """Resets connections; returns how many."""

        async def work():
            hit = [c for c in self._open if where is None or where(c)]
            for c in hit:
                c.abort()
            return len(hit)

        return self._run(work())

    # -- what a test learns from it

    @property
    def connections(self):
        async def work():
            return sorted(self._open, key=lambda c: c.opened)

        return self._run(work())

    def count(self, name=None):
        """How many commands of that name (or at all) were seen, over all connections ever."""
        with self._lock:
            return self.names[name.upper()] if name else sum(self.names.values())

    def count_keys(self, name):
        """A Counter of the first arguments of that command."""
        with self._lock:
            return collections.Counter(self.keys[name.upper()])

    def reset_counts(self):
        with self._lock:
            self.names.clear()
            self.keys.clear()

    @property
    def bytes_up(self):
        return self.closed_bytes_up + sum(c.bytes_up for c in self.connections)

    @property
    def bytes_down(self):
        return self.closed_bytes_down + sum(c.bytes_down for c in self.connections)

    def _count(self, name, args):
        with self._lock:
            self.names[name] += 1
            if len(args) > 1:
                self.keys[name][args[1]] += 1

    # -- the work

    def _latency(self, connection, upwards):
        out = 0.0
        for where, up, down in self._delays:
            if where is None or where(connection):
                out = up if upwards else down
        return out

    def _hung(self, connection, upwards):
        return any((up if upwards else down) and (where is None or where(connection))
                   for where, up, down in self._hangs)

    async def _serve(self, reader, writer):
        connection = Connection(self)
        connection.task = asyncio.current_task()
        self.accepted += 1
        connection.writers.append(writer)
        self._open.add(connection)
        tasks = []
        try:
            out_reader, out_writer = await asyncio.open_connection("127.0.0.1", self.target, limit=1 << 18)
            connection.writers.append(out_writer)
            for w in connection.writers:
                w.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink, upwards in ((reader, out_writer, True), (out_reader, writer, False)):
                queue = asyncio.Queue(maxsize=10000)
                tasks.append(asyncio.ensure_future(self._read(connection, source, queue, upwards)))
                tasks.append(asyncio.ensure_future(self._write(connection, queue, sink, upwards)))
            # A direction that has ended passes its end on; when both have, it is over.
            pending = {tasks[1], tasks[3]}
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if any(t.exception() for t in done):
                    break
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for t in tasks:
                t.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            connection.abort()
            self._open.discard(connection)
            self.closed_bytes_up += connection.bytes_up
            self.closed_bytes_down += connection.bytes_down

    def _filtered(self, connection, data):
        """What of it is passed on. From the first rule on for this connection only whole replies are."""
        rules = [fn for where, fn in self._drops if where is None or where(connection)]
        if connection.replies is None:
            if not rules:
                return data
            connection.replies = _Replies()
        return b"".join(r for r in connection.replies.feed(data) if not any(fn(r) for fn in rules))

    async def _read(self, connection, source, queue, upwards):
        due = 0.0
        while True:
            try:
                data = await source.read(1 << 16)
            except OSError:
                data = None  # a reset is passed on as one
            if data:
                if upwards:
                    connection.bytes_up += len(data)
                    connection.parser.feed(data)
                else:
                    connection.bytes_down += len(data)
                    data = self._filtered(connection, data)
                    if not data:
                        continue
            due = max(due, time.monotonic() + self._latency(connection, upwards))
            await queue.put((due, data))
            if not data:
                return

    async def _write(self, connection, queue, sink, upwards):
        while True:
            due, data = await queue.get()
            left = due - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            while self._hung(connection, upwards):
                await asyncio.sleep(0.005)
            if connection.lost_up if upwards else connection.lost_down:
                continue  # half-open: not even its end is told
            if data is None:
                raise ConnectionResetError
            if not data:
                if sink.can_write_eof():
                    sink.write_eof()
                return
            sink.write(data)
            await sink.drain()
