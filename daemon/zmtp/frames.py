"""ZMTP 3.0, the protocol that ZeroMQ's sockets speak (rfc.zeromq.org, 23/ZMTP), as bytes: greeting, handshake, frames.

Why it is spoken here and not by libzmq: that collects the frames of a message before anybody sees one, keeps every
subscription, and ends the process when no descriptor is left for a connection. Nothing of that can be limited.
Connections are daemon.zmtp.peer's. Clients use libzmq.
"""

MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
GREETING_BYTES = 64
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
_VERSION, _MECHANISM = slice(10, 11), slice(12, 32)


class Damaged(ValueError):
    """What came is no ZMTP, or more than is taken."""


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame as it goes over the line."""
    size = len(body)
    if size < 256:
        return bytes((flags, size)) + body
    return bytes((flags | LONG,)) + size.to_bytes(8, "big") + body


def command(name: bytes, data: bytes = b"") -> bytes:
    return frame(bytes((len(name),)) + name + data, COMMAND)


def ready(kind: str) -> bytes:
    """The end of our handshake. `kind`: of socket, e.g. ROUTER."""
    return command(b"READY", b"\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind.encode())


def error(reason: str) -> bytes:
    """In place of a handshake."""
    text = reason.encode()[:255]
    return command(b"ERROR", bytes((len(text),)) + text)


def require_greeting(data: bytes | bytearray) -> bool:
    """Whether a whole greeting is there. Raises Damaged for one that is not ours to speak with: another protocol, one
    older than 3.0, another mechanism than NULL."""
    if data[:1] not in (b"", b"\xff") or (len(data) > 9 and not data[9] & 1):
        raise Damaged("no greeting")
    if len(data) < GREETING_BYTES:
        return False
    if data[_VERSION] < b"\x03":
        raise Damaged("an older protocol than ZMTP 3.0")
    if data[_MECHANISM].rstrip(b"\0") != b"NULL":
        raise Damaged("another security mechanism than NULL")
    return True


def socket_type(properties: bytes) -> str:
    """What the data of a READY command says of it. Raises Damaged."""
    at, found = 0, ""
    while at < len(properties):
        size = properties[at]
        name, at = properties[at + 1 : at + 1 + size], at + 1 + size
        length = int.from_bytes(properties[at : at + 4], "big")
        value, at = properties[at + 4 : at + 4 + length], at + 4 + length
        if at > len(properties):
            raise Damaged("a READY command that is cut off")
        if name.lower() == b"socket-type":
            found = value.decode("ascii", "replace")
    return found


def split_command(body: bytes) -> tuple[bytes, bytes]:
    """(name, data) Raises Damaged."""
    if not body or len(body) < 1 + body[0]:
        raise Damaged("a command without a name")
    return body[1 : 1 + body[0]], body[1 + body[0] :]


class FrameReader:
    """Bytes in, frames out."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: in one frame."""
        self._most, self.held = most_bytes, bytearray()

    def take(self) -> tuple[int, bytes] | None:
        """(flags, body) of the next whole frame. Raises Damaged, for one that is too long as soon as its length is
        known."""
        held = self.held
        if len(held) < 2:
            return None
        flags = held[0]
        head = 9 if flags & LONG else 2
        if flags & ~(MORE | LONG | COMMAND) or (flags & COMMAND and flags & MORE):
            raise Damaged(f"a frame with the flags {flags:#x}")
        if len(held) < head:
            return None
        size = int.from_bytes(held[1:head], "big")
        if size > self._most:
            raise Damaged(f"a frame of {size:,} bytes, and {self._most:,} are taken")
        if len(held) < head + size:
            return None
        body = bytes(held[head : head + size])
        del held[: head + size]
        return flags, body
