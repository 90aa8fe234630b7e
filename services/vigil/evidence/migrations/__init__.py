"""The log's tables, version by version."""
