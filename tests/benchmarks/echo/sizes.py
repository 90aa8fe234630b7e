"""Bytes of each message of one command, as they were on the wire of a real one (class R, no approvals).

Frozen: were they taken from each run, the floor would move with what it is the floor of.
"""

PREPARE, PREPARED = 40, 6_270
SUBMIT, SUBMITTED = 3_023, 4_444
NONCE, NONCED = 44, 50
DECIDE, DECIDED = 3_032, 4_859
APPEND, APPENDED = 6_023, 3_080
BUNDLE, RECEIPT = 7_866, 2_050
APPEND_RECEIPT, APPENDED_RECEIPT = 2_081, 971
