"""The frozen echo: a command's hops with nothing done at any of them, the floor of `bench_command`.

Client, gateway, policy, evidence and devices are five processes over mTLS. Prepare and submit are unary calls; each
internal hop has 16 streams, one message in flight on each. Messages have the sizes of the real ones (`sizes`).
"""
