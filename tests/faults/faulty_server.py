"""An OpenAI-compatible server, over real HTTP, that can fail in every way of FAULTS, at the first call, always or at times."""

import gzip
import json
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Mode = Literal["first", "always", "every other"]
LogProbs = dict[str, Any]
DRIP_SECONDS = 0.05  # between two bytes of a response that never ends
LEAKED = "the server sends the key back: "


def is_judging(asked: dict[str, Any]) -> bool:
    return bool(asked.get("logprobs"))


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """A sound response: the text `answer to …`, or log-probabilities in favour of B."""
    logprobs = None
    if is_judging(asked):
        top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in (("B", 0.75), (" A", 0.25))]
        logprobs = {"content": [{"token": "B", "logprob": math.log(0.75), "bytes": None, "top_logprobs": top}]}
    text = f"answer to {asked['messages'][0]['content']}"
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": logprobs,
        }],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Answers soundly, or by the fault of its server."""

    service: "FaultyServer"
    asked: dict[str, Any]

    def do_GET(self) -> None:
        if self.service.lists is not None:
            self.service.lists(self)
            return
        self.send({"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "me"}]})

    def do_POST(self) -> None:
        self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":  # which few servers have
            self.send({"error": {"message": "no such path"}}, 404)
            return
        with suppress(OSError):  # the client has given up
            if self.service.fails_now():
                FAULTS[self.service.fault](self)
            else:
                self.send(answer(self.asked))

    def send(self, body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", headers.pop("length", str(len(data))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def status(number: int, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.send({"error": {"message": f"fault {number}"}}, number, **headers)


def body(data: bytes, kind: str = "application/json", **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.send(data, 200, kind, **headers)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Handler], None]:
    """A sound response but for one thing."""

    def send(handler: Handler) -> None:
        response = answer(handler.asked)
        change(response)
        handler.send(response)

    return send


def choice(**fields: Any) -> Callable[[Handler], None]:
    return changed(lambda response: response["choices"][0].update(fields))


def text(value: Any) -> Callable[[Handler], None]:
    return choice(message={"role": "assistant", "content": value})


def log_prob(value: Any) -> Callable[[Handler], None]:
    """In place of the first option's log-probability; without effect on a text."""

    def change(response: dict[str, Any]) -> None:
        logprobs = response["choices"][0]["logprobs"]
        if logprobs is None:
            response["choices"] = []
        else:
            logprobs["content"][0]["top_logprobs"][0]["logprob"] = value

    return changed(change)


def hang(handler: Handler) -> None:
    handler.service.closing.wait(60)


def drip(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not handler.service.closing.wait(DRIP_SECONDS):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def hang_in_body(handler: Handler) -> None:
    handler.send(b'{"choices": [', length="99")
    hang(handler)


def reset(data: bytes) -> Callable[[Handler], None]:
    """Bytes, then a connection that is reset and not closed."""

    def send(handler: Handler) -> None:
        handler.wfile.write(data)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(handler.connection.detach())

    return send


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"[" * 2**16)


def raw(data: bytes) -> Callable[[Handler], None]:
    """Bytes in place of a response, then the end of the connection."""

    def write(handler: Handler) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return write


def send_key_back(handler: Handler) -> None:
    handler.send({"error": {"message": f"{LEAKED}{handler.headers['Authorization']}"}}, 500)


def with_key(send: Callable[[Handler, str], None]) -> Callable[[Handler], None]:
    """A response that is made of the header with the key."""
    return lambda handler: send(handler, handler.headers["Authorization"])


def text_with_key(handler: Handler, key: str) -> None:
    text(f"Sure, {key}")(handler)


def thought_with_key(handler: Handler, key: str) -> None:
    choice(message={"role": "assistant", "content": "Sure.", "reasoning_content": key})(handler)


def escaped_key(handler: Handler, key: str) -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in key).encode()
    response = json.dumps(answer(handler.asked)).encode()
    handler.send(response.replace(b"answer", escaped))


KEYS: dict[str, Callable[[Handler], None]] = {
    "sends the key back": send_key_back,
    "the key where a message is cut": with_key(
        lambda handler, key: handler.send({"error": {"message": f"{'x' * 280} {key}"}}, 500)
    ),
    "the key where a page is cut": with_key(
        lambda handler, key: handler.send(f"<html>{'x' * 52}{key}".encode(), 200, "text/html")
    ),
    "the key in an error in a 200": with_key(lambda handler, key: handler.send({"error": {"message": key}})),
    "the key for a status": with_key(lambda handler, key: raw(key.encode())(handler)),
}
"""Responses that hold the key, for any request."""
TEXT_KEYS = {
    "the key in a text": with_key(text_with_key),
    "the key in a chain of thought": with_key(thought_with_key),
    "the key escaped": with_key(escaped_key),
}
"""Answers that hold it."""


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
RETRIED = {
    "html": body(b"<html><body>Sign in</body></html>", "text/html"),
    "error in a 200": body(b'{"error": {"message": "overloaded", "code": 500}}'),
    "empty body": body(b""),
    "broken JSON": body(b'{"choices": [{"message"'),
    "truncated body": body(b'{"choices": [', length="5000"),
    "events": body(b'data: {"choices": []}\n\n', "text/event-stream"),
    "not UTF-8": body(b'{"choices": "\xff\xfe"}'),
    "not gzip": body(b"plain", content_encoding="gzip"),
    "deep JSON": body(b"[" * 100_000),
    "a list": body(b"[]"),
    "null": body(b"null"),
    "no choices": changed(lambda response: response.pop("choices")),
    "empty choices": changed(lambda response: response["choices"].clear()),
    "choices of null": changed(lambda response: response.update(choices=[None])),
    "content filter": choice(finish_reason="content_filter"),
    "finish error": choice(finish_reason="error"),
    "NaN": log_prob(math.nan),
    "infinite": log_prob(math.inf),
    "null for a number": log_prob(None),
    "a positive log-probability": log_prob(0.7),
    "a text for a number": log_prob("-1"),
    "a huge number": log_prob(-(10**400)),
    "hangs": hang,
    "drips": drip,
    "endless body": endless,
    "closed without a word": raw(b""),
    "no HTTP": raw(b"\x16\x03\x01 what is this?\r\n\r\n"),
    "status 408": status(408),
    "status 429": status(429),
    "status 429 for years": status(429, retry_after="1e9"),
    "status 429 until a date": status(429, retry_after="Fri, 31 Dec 2100 23:59:59 GMT"),
    "status 500": status(500),
    "status 502 in HTML": lambda handler: handler.send(b"<h1>Bad gateway</h1>", 502, "text/html"),
    "status 503": status(503),
    "status 429 until the past": status(429, retry_after="Thu, 01 Jan 1970 00:00:00 GMT"),
    "status 429 for less than nothing": status(429, retry_after="-5"),
    "status 429 for NaN": status(429, retry_after="nan"),
    "status 429 for infinity": status(429, retry_after="inf"),
    "status 429 for nonsense": status(429, retry_after="soon"),
    "status 504": status(504),
    "status 500 without a body": lambda handler: handler.send(b"", 500),
    "status 500 in broken JSON": lambda handler: handler.send(b'{"error": ', 500),
    "status 500 with a list for an error": lambda handler: handler.send({"error": [None]}, 500),
    "a text": body(b'"ok"'),
    "a number": body(b"7"),
    "NUL bytes": body(b"\0" * 100),
    "choices of a number": changed(lambda response: response.update(choices=7)),
    "choices of texts": changed(lambda response: response.update(choices=["ok"])),
    "choices by name": changed(lambda response: response.update(choices={"0": response["choices"][0]})),
    "true for a number": log_prob(True),
    "a list for a number": log_prob([-0.1]),
    "longer than its length": body(b'{"choices": [{"message": {}}]}', length="10"),
    "a length that is no number": body(b'{"choices": [', length="many"),
    "a length below 0": body(b'{"choices": [', length="-1"),
    "chunks without sizes": raw(CHUNKED + b"what?\r\n{}\r\n0\r\n\r\n"),
    "chunks without an end": raw(CHUNKED + b'b\r\n{"choices":\r\n'),
    "half of a gzip": body(gzip.compress(b'{"choices": []}')[:-9], content_encoding="gzip"),
    "a gzip of a huge body": body(gzip.compress(b" " * 2**24), content_encoding="gzip"),
    "headers without an end": raw(b"HTTP/1.1 200 OK\r\nA: b\r\n"),
    "a header without end": raw(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 2**18 + b"\r\n\r\n{}"),
    "a status that is no number": raw(b"HTTP/1.1 fine OK\r\n\r\n{}"),
    "hangs in a body": hang_in_body,
    "reset": reset(b""),
    "reset in a body": reset(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"choices": ['),
    **KEYS,
}
"""Faults that another try may mend."""

TEXT_FAULTS = {
    "null text": text(None),
    "a number for a text": text(7),
    "parts for a text": text([{"type": "text", "text": "hello"}]),
    "no message": choice(message=None),
    "a text without end": text("word " * 100_000),
    "half a surrogate pair": text("half \ud83d"),
    "true for a text": text(True),
    "an object for a text": text({"text": "hello"}),
    "a text for a message": choice(message="hello"),
    **TEXT_KEYS,
}
"""Of a text alone: a judge's verdict does not look at it."""

JUDGE_FAULTS = {
    "no log-probabilities": choice(logprobs=None),
    "empty log-probabilities": choice(logprobs={"content": []}),
    "empty top": choice(logprobs={"content": [{"token": "B", "logprob": -0.1, "top_logprobs": []}]}),
    "a list for log-probabilities": choice(logprobs=[]),
    "log-probabilities of null": choice(logprobs={"content": None}),
    "tokens of a number": choice(logprobs={"content": [{"top_logprobs": [{"token": 7, "logprob": -0.1}]}]}),
    "tokens of null": choice(logprobs={"content": [{"top_logprobs": [{"token": None, "logprob": -0.1}]}]}),
}
"""Of a verdict alone."""

REFUSED = {"status 400": status(400), "status 413": status(413), "status 422": status(422)}
"""Of one request, which is not asked again."""

FINAL = {
    "status 401": status(401),
    "status 403": status(403),
    "status 404": status(404),
    "redirect": status(302, location="http://user:secret@elsewhere.example/v1?key=secret"),
    "redirect to itself": lambda handler: handler.send({}, 307, location=handler.path),
    "redirect to nowhere": status(308),
    "redirect to the key": with_key(lambda handler, key: handler.send({}, 302, location=f"/v2/{key.split()[1]}/chat")),
}
"""Of the server as a whole: the end of the command."""

HARMLESS = {
    "plain text for JSON": lambda handler: handler.send(answer(handler.asked), 200, "text/plain"),
    "no usage": changed(lambda response: response.pop("usage")),
    "usage of nonsense": changed(
        lambda response: response.update(usage={"prompt_tokens": -1, "completion_tokens": None})
    ),
}

FAULTS: dict[str, Callable[[Handler], object]] = RETRIED | TEXT_FAULTS | JUDGE_FAULTS | REFUSED | FINAL | HARMLESS


class FaultyServer:
    """A server at `url` with one of FAULTS, until it is `mended`. `calls` counts its requests for answers.

    `lists` answers for its models in place of a sound list.
    """

    def __init__(self, fault: str, mode: Mode) -> None:
        self.fault, self.mode = fault, mode
        self.lists: Callable[[Handler], object] | None = None
        self.mended = False
        self.calls = 0
        self.closing = threading.Event()
        self._lock = threading.Lock()
        handler = type("Bound", (Handler,), {"service": self})
        self._http = type("Http", (ThreadingHTTPServer,), {"request_queue_size": 256, "daemon_threads": True})(
            ("127.0.0.1", 0), handler
        )
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def fails_now(self) -> bool:
        """Count a call; whether it is one that fails."""
        with self._lock:
            self.calls += 1
            due = {"first": self.calls == 1, "always": True, "every other": self.calls % 2 == 1}[self.mode]
            return due and not self.mended

    def close(self) -> None:
        """End, with all its responses."""
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def faulty_server(fault: str, mode: Mode) -> Iterator[FaultyServer]:
    """A FaultyServer inside the block."""
    server = FaultyServer(fault, mode)
    try:
        yield server
    finally:
        server.close()


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
