"""One call over TLS 1.2, which no gRPC library makes any more: HTTP/2 frames by hand (RFC 9113, RFC 7541)."""

import socket
import ssl
import struct
from typing import Any


def _literal(name: bytes, value: bytes) -> bytes:
    # RFC 7541 6.2.2: literal header field without indexing, new name, no Huffman code.
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def status_over_tls_1_2(
    port: int, files: Any, root_pem: bytes, path: str, *, server_name: str = "policy.vigil.test"
) -> bytes:
    """What the server sends back, undecoded, until it has ended the stream."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=root_pem.decode())
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    headers = b"".join(
        _literal(name, value)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", path.encode()),
            (b":authority", server_name.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        )
    )
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=server_name) as secure,
    ):
        assert secure.version() == "TLSv1.2"
        secure.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(4, 0, 0, b"")
            + _frame(1, 0x4, 1, headers)
            + _frame(0, 0x1, 1, b"\x00\x00\x00\x00\x00")
        )
        received = b""
        while b"grpc-status" not in received:
            part = secure.recv(65536)
            if not part:
                break
            received += part
        return received
