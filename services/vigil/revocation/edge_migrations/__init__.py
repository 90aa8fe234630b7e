"""An edge's tables, version by version."""
