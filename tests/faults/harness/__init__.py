"""What does the harm: below a process (`shim`), to its disk (`disk`), on the bus (`bus`); each can show that it did.

Stopping, killing and starting again are methods of `tests.support.stack.Stack`; wires are `vigil.demo.relay.Relay`s.
An installation with all of it below is `breakable` (`under`).
"""
