"""Migrations of the release service."""
