"""A model checker for the path of a command: the real services under a seeded scheduler, network and disks.

`python -m tests.model --schedules 1000` explores; `python -m tests.model --seed 7` replays one and tells what happened.
"""
