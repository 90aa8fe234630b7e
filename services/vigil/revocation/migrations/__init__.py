"""The chain's tables, version by version."""
