"""Alembic's environment, shared by every service's migrations."""
