"""How Vigil uses gRPC: servers, channels, mutual TLS, admission, errors, streams. Nothing else knows it."""
