"""Asking Rego: one port, and behind it OPA compiled to WebAssembly or an OPA server."""
