"""Requests whose HTTP is hostile, and bytes that are none: methods, targets, headers, framing, smuggling, other protocols."""

from __future__ import annotations

from hypothesis import strategies as st

from trials.hostile_bodies import VALID, encoded
from trials.wire import Ending, Sent

_METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"PATCH",
    b"PROPFIND",
    b"get",
    b"A" * 30,
    b"",
]
_TARGETS = [
    *(path.encode() for path in VALID),
    *(
        b"/health",
        b"/health/ready",
        b"/v2/health/live",
        b"/metrics",
        b"/version",
        b"/openapi.json",
        b"/admin/status",
        b"/v1/models",
    ),
    *(b"/", b"//", b"*", b"", b"health", b"http://other/health", b"http://[::1/health", b"http://", b"//evil.example/%2e%2e"),
    *(b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/v1/models/..%2f..%2fetc%2fpasswd", b"/v1/models/..%5c..%5c"),
    *(b"/v1/models/%00", b"/v1/models/%ff%fe", b"/v1/models/%", b"/v1/models/%zz", b"/v1/models/%c0%ae", b"/v1/models/%0d%0aX:1"),
    *(b"/v1/models/\xff\xfe", b"/v1//models", b"/v1/models/", b"/v1/models/x/quality", b"/v1/models/" + b"a/" * 1500),
    *(
        b"/v1/models/" + b"a" * 5000,
        b"/health?" + b"a=%00&" * 300,
        b"/health#x",
        b"/health;x=1",
        b"/admin/../health",
        b"/ADMIN/status",
    ),
    *(b"/admin/status/", b"/admin//status", b"/%61dmin/status", b"/v1/chat/completions/../../../admin/status"),
]
_VERSIONS = [b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"http/1.1", b"HTTP/1.1 x", b""]
_TYPES = [
    *[b"application/json"] * 6,
    *(b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"application/xml", b""),
    *(
        b"application/json; charset=utf-16",
        b"application/json; charset*=utf-9''%ff",
        b"application/json;;;=",
        b'application/json; a="',
    ),
    *(b"\xff\xfe", b"application/" + b"j" * 5000 + b"+json"),
]
_HEADERS = [
    *(b"Host: xn--", b"Host: \xff\xfe", b"Host: a b", b"Host: [::1", b"Host: x:99999999", b"Host: " + b"a." * 300, b"Host:"),
    *(
        b"Content-Encoding: gzip",
        b"Content-Encoding: br, \x80",
        b"Accept-Encoding: *;q=-1",
        b"Accept: */*;q=nan",
        b"Range: bytes=9-0",
    ),
    *(b"X-Request-Id: a\tb", b"X-Request-Id: " + b"a" * 4000, b"X-Request-Id: {{7*7}}", b"X-Request-Id: \xc3\xa9"),
    *(
        b"Authorization: Bearer",
        b"Authorization: Basic AAAA",
        b"Authorization: Bearer \xff\xfe",
        b"X-Api-Key: \xff",
        b"Authorization: " * 9,
    ),
    *(
        b"Authorization: Bearer " + token
        for token in (b"..", b"W1tb.e30.x", b"eyJhbGciOiJub25lIn0.e30.", b"W1tb" * 1900 + b".e30.x")
    ),
    *(
        b"Expect: 100-continue",
        b"Expect: the unexpected",
        b"Upgrade: h2c",
        b"Upgrade: websocket",
        b"HTTP2-Settings: AAA",
        b"TE: trailers",
    ),
    *(
        b"X-Forwarded-For: ' or 1=1",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Ssl: off",
        b'Forwarded: for="["',
        b"X-Real-IP: ::",
    ),
    *(b"SCRIPT_NAME: /x", b"PATH_INFO: /admin/status", b"Script-Name: /x", b"Proxy: http://x", b"X-HTTP-Method-Override: DELETE"),
    *(b"Cookie: a=" + b"b" * 4000, b'If-None-Match: "', b"traceparent: 00-x-y-z", b"Baggage: a=%", b"Last-Event-ID: \x7f"),
    *(b"X: a\x00b", b"X: a\rb", b"X: a\r\n b", b"X : a", b"X", b": x", b"\x00: x", b"X\x80: y", b"X: " + b"a" * 9000),
    b"\r\n".join(b"X-%d: y" % number for number in range(100)),
]
#: headers of the body's length, with the body behind them; ``%s`` is a body, ``%d`` its length, ``%x`` the same in hexadecimal
_FRAMES = [
    *[b"Content-Length: %d\r\n\r\n%s"] * 6,
    *[b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"] * 2,
    *(b"\r\n", b"\r\n%s", b"Content-Length: 0\r\n\r\n%s", b"Content-Length: 1\r\n\r\n%s", b"Content-Length: 99999\r\n\r\n%s"),
    *(
        b"Content-Length: -1\r\n\r\n%s",
        b"Content-Length: +5\r\n\r\n%s",
        b"Content-Length: 0x10\r\n\r\n%s",
        b"Content-Length: 5 5\r\n\r\n%s",
    ),
    *(
        b"Content-Length: 99999999999999999999\r\n\r\n%s",
        b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n%s",
        b"Content-Length:\r\n\r\n%s",
    ),
    *(
        b"Content-Length: %d\r\nContent-Length: 5\r\n\r\n%s",
        b"Content-Length: %d, %d\r\n\r\n%s",
        b"Content-Length: \xb2\r\n\r\n%s",
    ),
    b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin/status HTTP/1.1\r\nHost: x\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n%x\r\n%s\r\n0\r\n\r\n",
    *(
        b"Transfer-Encoding: " + coding + b"\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        for coding in (
            b"gzip, chunked",
            b"chunked, gzip",
            b"chunked, chunked",
            b"identity",
            b"\x0bchunked",
            b"xchunked",
            b"Chunked ",
            b"",
        )
    ),
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n%x\r\n%s\r\n0\r\n\r\n",
    b"Transfer_Encoding: chunked\r\nContent-Length: %d\r\n\r\n%s",
    *(
        b"Transfer-Encoding: chunked\r\n\r\n" + chunks
        for chunks in (
            *(
                b"zz\r\n%s\r\n0\r\n\r\n",
                b"-5\r\n%s\r\n0\r\n\r\n",
                b"0x5\r\n%s\r\n0\r\n\r\n",
                b"%x;a=\x01\r\n%s\r\n0\r\n\r\n",
                b"%x\n%s\n0\n\n",
            ),
            *(
                b"%x\r\n%sXX0\r\n\r\n",
                b"%x\r\n%s\r\n",
                b"fffffffffffffffff\r\n%s",
                b"%x\r\n%s\r\n0\r\nbad trailer\r\n\r\n",
                b"1\r\n{\r\n0",
            ),
            *(
                b"%x" + b"0" * 9000 + b"\r\n%s",
                b"%x;" + b"a" * 9000 + b"\r\n%s\r\n0\r\n\r\n",
                b"0\r\n" + b"a: b\r\n" * 2000 + b"\r\n",
            ),
        )
    ),
]
_GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,  # a TLS handshake on a plain port
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    b"GET /health\r\n\r\n",
    b"GET /health\n\n",
    b"\r\n" * 50 + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00",
    b"\x00" * 5000,
    b"A" * 100_000,
    b"GET / HTTP/1.1\r\n" + b"A" * 100_000,
    b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"\xff" * 64,
    b"HTTP/1.1 200 OK\r\n\r\n",
]


def request(key: bytes, path: str, body: bytes, headers: tuple[bytes, ...] = ()) -> bytes:
    """An ordinary one, with an end to its connection."""
    lines = [b"POST %s HTTP/1.1" % path.encode(), b"Host: x", b"Connection: close", b"Content-Type: application/json", *headers]
    lines += [b"Authorization: Bearer " + key] if key else []
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", b""]) + body


def _framed(frame: bytes, body: bytes) -> bytes:
    return frame.replace(b"%d", b"%d" % len(body)).replace(b"%x", b"%x" % len(body)).replace(b"%s", body)


@st.composite
def forms(draw: st.DrawFn, key: bytes) -> Sent:
    """A request, of which one part or several are hostile."""
    path = draw(st.sampled_from(sorted(VALID)))
    parts = draw(st.sets(st.sampled_from(["method", "target", "version", "type", "headers", "frame"]), min_size=1, max_size=3))
    escapes = st.binary(min_size=1, max_size=3).map(lambda text: b"".join(b"%%%02x" % byte for byte in text))
    garbage = st.one_of(escapes, st.binary(min_size=1, max_size=8).map(lambda text: text.replace(b"\n", b"")))
    odd_targets = st.sampled_from(_TARGETS) | st.lists(garbage, max_size=4).map(lambda found: b"/v1/models/" + b"/".join(found))
    odd_methods = st.sampled_from(_METHODS) | st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ-!#$", min_size=3, max_size=12).map(str.encode)
    method = draw(odd_methods) if "method" in parts else b"POST"
    target = draw(odd_targets) if "target" in parts else path.encode()
    version = draw(st.sampled_from(_VERSIONS)) if "version" in parts else b"HTTP/1.1"
    declared = draw(st.sampled_from(_TYPES)) if "type" in parts else b"application/json"
    headers = draw(st.lists(st.sampled_from(_HEADERS), min_size=1, max_size=4)) if "headers" in parts else []
    frame = draw(st.sampled_from(_FRAMES)) if "frame" in parts else _FRAMES[0]
    body = encoded(VALID[path])
    lines = [b"%s %s %s" % (method, target, version), b"Host: x", b"Connection: close", b"Authorization: Bearer " + key]
    head = b"\r\n".join([*lines, b"Content-Type: " + declared, *headers, b""])
    ending: Ending = draw(st.sampled_from(["half", "half", "half", "close", "reset"])) if "frame" in parts else "half"
    return Sent("http", head + _framed(frame, body), ending)


@st.composite
def garbage(draw: st.DrawFn, key: bytes) -> Sent:
    """Bytes that are no request, half a request, several at once, or one whose client leaves in its middle."""
    path = draw(st.sampled_from(sorted(VALID)))
    ending: Ending = draw(st.sampled_from(["half", "half", "close", "reset"]))
    kind = draw(st.integers(0, 5))
    whole = request(key, path, encoded(VALID[path]))
    if kind == 0:
        return Sent("garbage", draw(st.binary(min_size=1, max_size=400)), ending)
    if kind == 1:
        return Sent("garbage", draw(st.sampled_from(_GARBAGE)) + draw(st.binary(max_size=40)), ending)
    if kind == 2:  # half a request, or one in two parts
        cut = draw(st.integers(1, len(whole) - 1))
        return Sent("garbage", whole[:cut], ending)
    if kind == 3:  # several at once; the last one is cut, or garbage
        kept = whole.replace(b"Connection: close\r\n", b"")
        rest = draw(st.sampled_from([whole, whole[:40], b"\x00\x01\x02", b""]))
        return Sent("garbage", kept * draw(st.integers(1, 5)) + rest, ending)
    if kind == 4:  # a stream whose reader leaves
        body = encoded({**VALID["/v1/chat/completions"], "stream": True, "ignore_eos": True, "max_tokens": 150})
        return Sent("garbage", request(key, "/v1/chat/completions", body), draw(st.sampled_from(["close", "reset", "half"])))
    at = draw(st.integers(0, len(whole) - 1))
    return Sent("garbage", whole[:at] + draw(st.binary(min_size=1, max_size=4)) + whole[at + 1 :], "half")
