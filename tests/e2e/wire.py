"""The wire by hand: HTTP/1.1 and HTTP/2 without an SDK in between, so that tests can say what no SDK would.

Nothing here is lenient: an answer that is not well-formed in its protocol fails the test that reads it.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import socket
import struct
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events

TIMEOUT = 20.0

# Numbers of gRPC's codes, as Connect spells them.
CODES = [
    "ok", "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists",
    "permission_denied", "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented",
    "internal", "unavailable", "data_loss", "unauthenticated",
]  # fmt: skip

# The HTTP status of each code in Connect.
STATUSES = {
    "canceled": 499, "unknown": 500, "invalid_argument": 400, "deadline_exceeded": 504, "not_found": 404,
    "already_exists": 409, "permission_denied": 403, "resource_exhausted": 429, "failed_precondition": 400,
    "aborted": 409, "out_of_range": 400, "unimplemented": 501, "internal": 500, "unavailable": 503,
    "data_loss": 500, "unauthenticated": 401,
}  # fmt: skip

# What an answer never tells: where the server keeps things, its sources, its secrets, its insides.
LEAKS = re.compile(
    r"/(root|home|tmp|var|usr|work|proc|etc/passwd.*root:)\b|\.rs\b|panick|RUST_BACKTRACE|unwrap|aloft\.db|master\.key"
    r"|rusqlite|sqlite|SELECT |0x[0-9a-f]{8}",
    re.IGNORECASE,
)


def harmless(text: str, *said: str) -> str:
    """The text, once it is known to leak nothing: `said` is what the client said itself."""
    rest = text
    for words in said:
        rest = rest.replace(words, "")
    found = LEAKS.search(rest)
    assert not found, f"the answer leaks {found[0]!r}: {text[:500]}"
    return text


@dataclass
class Answer:
    """One HTTP answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.headers.get("content-type", "").split(";")[0]

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        assert self.kind == "application/json", f"{self.status} {self.headers} {self.body[:300]!r}"
        return json.loads(self.body)


@dataclass
class Failed(Exception):
    """An error, whichever protocol carried it."""

    code: str
    message: str
    answer: Answer

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def address(server) -> tuple[str, int]:
    host, port = server.authority.rsplit(":", 1)
    return ("127.0.0.1" if host == "localhost" else host), int(port)


def connect(server, timeout: float = TIMEOUT) -> socket.socket:
    return socket.create_connection(address(server), timeout)


# HTTP/1.1


def h1(
    server,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | Iterable[bytes] | None = None,
    timeout: float = TIMEOUT,
) -> Answer:
    """One request; an iterable body is sent in chunks. The path goes out as it is."""
    connection = http.client.HTTPConnection(*address(server), timeout=timeout)
    # The client must not be nicer than an attacker.
    connection._validate_path = lambda url: None
    chunked = body is not None and not isinstance(body, bytes)
    wanted = {"Host": server.authority} | (headers or {})
    if chunked:
        wanted["Transfer-Encoding"] = "chunked"
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in wanted.items():
            connection.putheader(name, value)
        if isinstance(body, bytes) and "Content-Length" not in wanted:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        try:
            if isinstance(body, bytes):
                connection.send(body)
            elif body is not None:
                for part in body:
                    connection.send(b"%x\r\n%s\r\n" % (len(part), part))
                connection.send(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered before it was all sent
        response = connection.getresponse()
        content = response.read()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, content)
    finally:
        connection.close()


def raw(server, data: bytes, timeout: float = TIMEOUT) -> bytes:
    """What comes back for these bytes, until the server closes or falls silent."""
    with connect(server, timeout) as stream:
        try:
            stream.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while part := stream.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer and b"content-length: 0" in answer.lower():
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


# HTTP/2 without TLS, by prior knowledge


class H2:
    """One HTTP/2 connection."""

    def __init__(self, server, timeout: float = TIMEOUT):
        self.server = server
        self.stream = connect(server, timeout)
        # What is sent may be wrong on purpose; what comes back must be right.
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.stream.sendall(self.h2.data_to_send())

    def events(self) -> list[h2.events.Event]:
        data = self.stream.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        found = self.h2.receive_data(data)
        for event in found:
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.flush()
        return found

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"", end: bool = True) -> int:
        """Send a request's head and body, as far as the server lets us; return the stream's number."""
        number = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":authority", self.server.authority), (":path", path)]
        replaced = [(name, headers.get(name, value)) for name, value in pseudo]
        rest = [(name.lower(), value) for name, value in headers.items() if not name.startswith(":")]
        self.h2.send_headers(number, replaced + rest, end_stream=end and not body)
        self.flush()
        while body:
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(body))
            if room == 0:
                self.pending.extend(self.events())
                if any(isinstance(e, h2.events.StreamEnded | h2.events.StreamReset) for e in self.pending):
                    return number
                continue
            part, body = body[:room], body[room:]
            self.h2.send_data(number, part, end_stream=end and not body)
            self.flush()
        return number

    pending: list[h2.events.Event]

    def request(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        self.pending = []
        return self.read(self.send(method, path, headers or {}, body))

    def read(self, number: int) -> Answer:
        """The answer to request `number`."""
        answer = Answer(0, {})
        queue = getattr(self, "pending", [])
        while True:
            for event in queue:
                if isinstance(event, h2.events.ConnectionTerminated):
                    raise ConnectionError(f"the server closed the connection: {event.error_code!r}")
                if getattr(event, "stream_id", None) != number:
                    continue
                match event:
                    case h2.events.ResponseReceived():
                        answer.headers = dict(event.headers)
                        answer.status = int(answer.headers.pop(":status"))
                    case h2.events.DataReceived():
                        answer.body += event.data
                    case h2.events.TrailersReceived():
                        answer.trailers = dict(event.headers)
                    case h2.events.StreamReset():
                        # A server that has answered may tell the client to stop sending.
                        if answer.status and event.error_code == 0:
                            return answer
                        raise ConnectionError(f"the stream was reset: {event.error_code!r}")
                    case h2.events.StreamEnded():
                        return answer
            queue = self.events()

    def close(self) -> None:
        self.stream.close()

    def __enter__(self) -> H2:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(server, version: str, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
    """The same request over either version of HTTP."""
    if version == "1":
        return h1(server, method, path, headers, body)
    with H2(server) as connection:
        return connection.request(method, path, headers, body or b"")


# The three protocols


def envelope(message: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(message)) + message


def envelopes(body: bytes) -> list[tuple[int, bytes]]:
    """The (flags, message) pairs of a body; it must consist of nothing else."""
    found = []
    while body:
        assert len(body) >= 5, f"half an envelope: {body!r}"
        flags, length = struct.unpack(">BI", body[:5])
        assert len(body) >= 5 + length, f"half a message: {body[:100]!r}"
        found.append((flags, body[5 : 5 + length]))
        body = body[5 + length :]
    return found


def connect_error(answer: Answer) -> Failed:
    """The error of a Connect unary answer."""
    body = answer.json()
    assert set(body) <= {"code", "message", "details"}, body
    assert body["code"] in STATUSES, body
    return Failed(body["code"], body.get("message", ""), answer)


def unary(
    server,
    method: str,
    message: bytes | dict[str, Any],
    *,
    version: str = "1",
    compress: bool = False,
    headers: dict[str, str] | None = None,
) -> Any:
    """A Connect unary call: bytes are protobuf, a dictionary is JSON. Raises `Failed`."""
    binary = isinstance(message, bytes)
    kind = "application/proto" if binary else "application/json"
    body = message if binary else json.dumps(message).encode()
    wanted = {"Content-Type": kind, "Connect-Protocol-Version": "1"}
    if compress:
        body = gzip.compress(body)
        wanted["Content-Encoding"] = "gzip"
    answer = ask(server, version, "POST", f"/{method}", wanted | (headers or {}), body)
    if answer.status != 200:
        raise connect_error(answer)
    assert answer.kind == kind, answer.headers
    return answer.body if binary else json.loads(answer.body)


def get(server, method: str, message: bytes | dict[str, Any], version: str = "1") -> Any:
    """A Connect call by GET."""
    if isinstance(message, bytes):
        text = base64.urlsafe_b64encode(message).decode().rstrip("=")
        query = {"connect": "v1", "encoding": "proto", "base64": "1", "message": text}
    else:
        query = {"connect": "v1", "encoding": "json", "message": json.dumps(message)}
    answer = ask(server, version, "GET", f"/{method}?{urllib.parse.urlencode(query)}", {})
    if answer.status != 200:
        raise connect_error(answer)
    return answer.body if isinstance(message, bytes) else json.loads(answer.body)


def stream(
    server, method: str, message: bytes | dict[str, Any], *, version: str = "1", body: bytes | None = None
) -> list[Any]:
    """A Connect server stream, read to its end. `body` replaces the envelope of `message`."""
    binary = isinstance(message, bytes)
    kind = "application/connect+proto" if binary else "application/connect+json"
    content = message if isinstance(message, bytes) else json.dumps(message).encode()
    answer = ask(
        server, version, "POST", f"/{method}", {"Content-Type": kind}, envelope(content) if body is None else body
    )
    return stream_messages(answer, kind)


def stream_messages(answer: Answer, kind: str) -> list[Any]:
    assert (answer.status, answer.kind) == (200, kind), f"{answer.status} {answer.headers} {answer.body[:300]!r}"
    *messages, (flags, last) = envelopes(answer.body)
    assert flags == 2, "the stream does not end in an end-of-stream message"
    end = json.loads(last)
    if "error" in end:
        assert end["error"]["code"] in STATUSES, end
        raise Failed(end["error"]["code"], end["error"].get("message", ""), answer)
    return [content for _, content in messages]


def grpc_outcome(trailers: dict[str, str], answer: Answer) -> None:
    assert trailers.get("grpc-status", "").isdigit(), f"no grpc-status: {answer.headers} {trailers} {answer.body[:300]!r}"
    if (status := int(trailers["grpc-status"])) != 0:
        raise Failed(CODES[status], urllib.parse.unquote(trailers.get("grpc-message", "")), answer)


def grpc(server, method: str, message: bytes, *, body: bytes | None = None, headers: dict[str, str] | None = None) -> list[bytes]:
    """A gRPC call over HTTP/2 without TLS; every message of the answer."""
    wanted = {"content-type": "application/grpc", "te": "trailers"} | (headers or {})
    with H2(server) as connection:
        answer = connection.request("POST", f"/{method}", wanted, envelope(message) if body is None else body)
    assert (answer.status, answer.kind[:16]) == (200, "application/grpc"), f"{answer.status} {answer.headers} {answer.body[:300]!r}"
    found = envelopes(answer.body)
    grpc_outcome(answer.trailers or answer.headers, answer)
    return [content for _, content in found]


def grpc_web(server, method: str, message: bytes, *, version: str = "1", body: bytes | None = None) -> list[bytes]:
    """A gRPC-Web call; every message of the answer."""
    headers = {"Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1"}
    answer = ask(server, version, "POST", f"/{method}", headers, envelope(message) if body is None else body)
    assert answer.status == 200, f"{answer.status} {answer.headers} {answer.body[:300]!r}"
    assert answer.kind.startswith("application/grpc-web"), answer.headers
    *messages, (flags, last) = envelopes(answer.body)
    assert flags == 0x80, "the answer does not end in trailers"
    trailers = dict(line.split(": ", 1) for line in last.decode().split("\r\n") if line)
    grpc_outcome(trailers, answer)
    return [content for _, content in messages]


# Protobuf by hand, for messages that must be wrong and for those that no package here describes


def varint(number: int) -> bytes:
    out = bytearray()
    number &= (1 << 64) - 1
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def bytes_field(number: int, value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """The (number, value) pairs of a message."""
    found, at = [], 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        match tag & 7:
            case 0:
                found.append((tag >> 3, number()))
            case 2:
                length = number()
                found.append((tag >> 3, message[at : at + length]))
                at += length
            case kind:
                raise AssertionError(f"wire type {kind} in {message!r}")
    return found
