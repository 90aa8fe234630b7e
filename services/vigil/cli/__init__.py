"""The `vigil` command: what people do, said at a prompt. It imports no service."""
