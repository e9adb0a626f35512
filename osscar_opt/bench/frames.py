"""Messages between the runner and the process of a run: a kind, a length and bytes; nothing that could run code.

The runner reads what a process sends that runs other people's code.  So there is no pickle here, every length has a
limit, and the reader never waits: it is fed with what there is.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = [
    "ANSWER",
    "CERTIFICATE",
    "ERROR",
    "GO",
    "INCUMBENT",
    "READY",
    "Frames",
    "NonsenseError",
    "frame",
    "parsed",
]

READY, GO, INCUMBENT, ANSWER, CERTIFICATE, ERROR = range(1, 7)

_HEAD = struct.Struct("<BQ")


class NonsenseError(Exception):
    """What was received is not a message.

    Examples
    --------
    >>> issubclass(NonsenseError, Exception)
    True
    """


class Frames:
    """Cuts a stream of bytes into messages.

    Parameters
    ----------
    longest : mapping of int to int
        For every kind that may come, how many bytes it may have.

    Examples
    --------
    >>> frames = Frames({READY: 10})
    >>> list(frames.feed(frame(READY, b"yes")[:5])), list(frames.feed(frame(READY, b"yes")[5:]))
    ([], [(1, b'yes')])
    """

    def __init__(self, longest: Mapping[int, int]) -> None:
        self._longest = longest
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take what was received, and hand out the messages that are complete.

        Raises
        ------
        NonsenseError
            If it cannot be a message, or is too long for one of its kind.

        Examples
        --------
        >>> list(Frames({READY: 10}).feed(frame(READY) + frame(READY, b"x")))
        [(1, b''), (1, b'x')]
        """
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._buffer)
            if length > self._longest.get(kind, -1):
                raise NonsenseError(f"a message of kind {kind} with {length} bytes")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            yield kind, payload


def frame(kind: int, payload: bytes = b"") -> bytes:
    r"""Put a message together.

    Examples
    --------
    >>> frame(READY, b"yes")
    b'\x01\x03\x00\x00\x00\x00\x00\x00\x00yes'
    """
    return _HEAD.pack(kind, len(payload)) + payload


def parsed(payload: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    NonsenseError
        If it is not one, or not strictly JSON.

    Examples
    --------
    >>> parsed(b'{"seed": true}')
    {'seed': True}
    """
    try:
        document = json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NonsenseError(str(error)) from error
    if not isinstance(document, dict):
        raise NonsenseError("something that is not an object")
    return document


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def receive(channel: socket.socket, kind: int, longest: int) -> tuple[bytes, list[int]]:
    """Wait for one message of a kind, and for the files that come with its first byte; for the trusting side.

    Raises
    ------
    EOFError
        If the other side is gone.
    NonsenseError
        If it is something else.

    Examples
    --------
    >>> ours, theirs = socket.socketpair()
    >>> ours.sendall(frame(GO, b"now"))
    >>> receive(theirs, GO, 10)
    (b'now', [])
    >>> ours.close(), theirs.close()
    (None, None)
    """
    frames, files = Frames({kind: longest}), list[int]()
    while True:
        data, found, _, _ = socket.recv_fds(channel, 1 << 16, 4)
        files += found
        if not data:
            raise EOFError("the other side is gone")
        for _, payload in frames.feed(data):
            return payload, files
