"""Channel arguments of gRPC, for both ends, with the reason beside each."""

from dataclasses import dataclass

MAX_MESSAGE_BYTES = 4 << 20
"""No message of Vigil is larger; bytes of firmware travel in chunks."""
DEFAULT_MESSAGE_BYTES = 1 << 20
"""What a server takes unless its wiring says otherwise."""
MAX_METADATA_BYTES = 32 << 10
"""Room for a rich status with all its refusals."""
PENDING_REQUESTS = 20_000
"""1,200 gateways with 16 streams each, opened at once; gRPC's own bound cancels them beyond about 1,000."""

Options = list[tuple[str, int | str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How a server treats its connections.

    ``keepalive_seconds``: silence after which a peer is pinged; ``keepalive_timeout_seconds``: silence after
    that which ends the connection; ``max_streams``: concurrent calls on one connection;
    ``max_calls_per_caller``: over all its connections, None for no bound; ``max_unary_calls``: of all callers at once,
    and as many again for callers that have precedence; ``stall_seconds``: how long one message of a stream may wait
    for its reader; ``sweep_seconds``: how often open streams are held against expiry, revocation and that besides the
    check of each message.
    """

    keepalive_seconds: float = 10.0
    keepalive_timeout_seconds: float = 5.0
    max_streams: int = 2048
    max_calls_per_caller: int | None = 1_024
    max_unary_calls: int = 4_096
    pending_requests: int = PENDING_REQUESTS
    stall_seconds: float = 30.0
    sweep_seconds: float = 0.5


def server_options(settings: StreamSettings, *, max_message_bytes: int) -> Options:
    """Give the arguments of a server. Raises ValueError for a message bound above MAX_MESSAGE_BYTES."""
    if not 0 < max_message_bytes <= MAX_MESSAGE_BYTES:
        raise ValueError(f"a message bound lies between 1 and {MAX_MESSAGE_BYTES} bytes")
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", settings.max_streams),
        ("grpc.server.max_pending_requests", settings.pending_requests),
        ("grpc.server.max_pending_requests_hard_limit", 2 * settings.pending_requests),
        ("grpc.keepalive_time_ms", int(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_seconds * 1000)),
        # gRPC waits a minute for the answer to a ping, whatever the line above says, unless it is told otherwise.
        ("grpc.http2.ping_timeout_ms", int(settings.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Clients ping every 10 s; twice as often is still no attack.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # Two processes on one port would each get half of the calls: the second one must fail instead.
        ("grpc.so_reuseport", 0),
    ]


def client_options(server_name: str) -> Options:
    """Give the arguments of a channel to the server that must prove to be ``server_name``."""
    return [
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.default_authority", server_name),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 3_000),
        # A channel's connections are its own: another identity in this process never rides on them.
        ("grpc.use_local_subchannel_pool", 1),
        # Neither the environment's proxy nor DNS gets a say in how services are called.
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
    ]
