"""Follows a log from outside, over its tiles, with nothing but the log's key: what it saw once must stay true."""
