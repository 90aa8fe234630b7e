"""The witness's tables, version by version."""
