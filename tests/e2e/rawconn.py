"""A connection that shows the bytes: what is sent and every reply exactly as it came."""
import socket


class RespError(Exception):
    """An error reply, as a value."""

    def __eq__(self, other):
        return isinstance(other, RespError) and self.args == other.args

    __hash__ = Exception.__hash__


def encode(*args):
    """A command as RESP: an array of bulk strings."""
    out = [b"*%d\r\n" % len(args)]
    for a in args:
        if isinstance(a, str):
            a = a.encode()
        elif not isinstance(a, (bytes, bytearray)):
            a = str(a).encode()
        out.append(b"$%d\r\n%s\r\n" % (len(a), bytes(a)))
    return b"".join(out)


class _Bytes:
    """The byte source of parse()."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def line(self):
        end = self.data.index(b"\r\n", self.at)
        out = self.data[self.at:end]
        self.at = end + 2
        return out

    def exactly(self, n):
        out = self.data[self.at:self.at + n]
        self.at += n
        return out


def _hashable(value):
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _value(src):
    line = src.line()
    kind, rest = line[:1], line[1:]
    if kind == b"+":
        return rest.decode()
    if kind == b"-":
        return RespError(rest.decode())
    if kind in b":(":
        return int(rest)
    if kind == b"_":
        return None
    if kind == b",":
        return float(rest)
    if kind == b"#":
        return rest == b"t"
    if kind in b"$=!":
        if rest == b"-1":
            return None
        data = src.exactly(int(rest) + 2)[:-2]
        if kind == b"=":
            return data[4:]
        return RespError(data.decode()) if kind == b"!" else data
    if kind in b"*~>":
        if rest == b"-1":
            return None
        return [_value(src) for _ in range(int(rest))]
    if kind == b"%":
        pairs = [(_value(src), _value(src)) for _ in range(int(rest))]
        return {_hashable(k): v for k, v in pairs}
    if kind == b"|":
        for _ in range(2 * int(rest)):
            _value(src)
        return _value(src)
    raise ValueError("not RESP: %r" % line)


def parse(reply):
    """The bytes of one reply as a Python value: str for +, bytes for $, RespError for -."""
    return _value(_Bytes(reply))


class RawConn:
    """RawConn(port) or RawConn(path="/run/x.sock"). Use as a context manager, or close()."""

    def __init__(self, port=None, path=None, host="127.0.0.1", timeout=30, rcvbuf=None):
        if path is not None:
            self.sock = socket.socket(socket.AF_UNIX)
            address = path
        else:
            self.sock = socket.socket()
            address = (host, port)
        try:
            if rcvbuf:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            self.sock.settimeout(timeout)
            self.sock.connect(address)
            if path is None:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            self.sock.close()
            raise
        self.buf = bytearray()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def fileno(self):
        return self.sock.fileno()

    # -- sending

    def send(self, data):
        """Bytes as they are."""
        self.sock.sendall(data)

    def send_command(self, *args):
        self.send(encode(*args))

    def call(self, *args):
        """Sends a command and returns the bytes of its reply."""
        self.send_command(*args)
        return self.read_reply()

    def ask(self, *args):
        """Sends a command and returns its reply as a Python value."""
        return parse(self.call(*args))

    def pipeline(self, *commands):
        """Sends commands (tuples) at once and returns the bytes of their replies."""
        self.send(b"".join(encode(*c) for c in commands))
        return [self.read_reply() for _ in commands]

    # -- receiving

    def _fill(self):
        data = self.sock.recv(65536)
        if not data:
            raise EOFError("closed by the server")
        self.buf += data

    def read_exact(self, n):
        while len(self.buf) < n:
            self._fill()
        out = bytes(self.buf[:n])
        del self.buf[:n]
        return out

    def read_line(self):
        """A line with its CR LF."""
        start = 0
        while True:
            end = self.buf.find(b"\r\n", start)
            if end >= 0:
                return self.read_exact(end + 2)
            start = max(0, len(self.buf) - 1)
            self._fill()

    def read_reply(self):
        """The bytes of exactly one reply (or push message). EOFError when the server closed."""
        out = bytearray()
        todo = 1
        while todo:
            line = self.read_line()
            out += line
            kind, rest = line[:1], line[1:-2]
            todo -= 1
            if kind in b"$=!":
                if rest != b"-1":
                    out += self.read_exact(int(rest) + 2)
            elif kind in b"*~>":
                todo += max(int(rest), 0)
            elif kind == b"%":
                todo += 2 * int(rest)
            elif kind == b"|":
                todo += 2 * int(rest) + 1
            elif kind not in b"+-:(_,#":
                raise ValueError("not RESP: %r" % bytes(line))
        return bytes(out)

    def read_value(self):
        return parse(self.read_reply())

    def read_to_end(self):
        """Everything until the server closes."""
        try:
            while True:
                self._fill()
        except (EOFError, ConnectionResetError):
            pass
        out = bytes(self.buf)
        self.buf.clear()
        return out

    def is_closed(self):
        """Whether the server has closed; what it sent meanwhile stays readable."""
        before = self.sock.gettimeout()
        self.sock.settimeout(0)
        try:
            while True:
                data = self.sock.recv(65536)
                if not data:
                    return True
                self.buf += data
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:
            return True
        finally:
            self.sock.settimeout(before)

    def silent_for(self, seconds):
        """True if nothing arrives for that long."""
        if self.buf:
            return False
        before = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        try:
            self._fill()
            return False
        except (socket.timeout, TimeoutError):
            return True
        finally:
            self.sock.settimeout(before)
