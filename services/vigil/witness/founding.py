"""The key of a witness and its memory, made together and never apart.

A witness that lost its memory could be led back: a key without the memory that belongs to it does not start.
"""

from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vigil.core.keys import load_private_key, store_private_key
from vigil.core.notes import cosign, cosigner_key
from vigil.errors import VigilError
from vigil.storage import Database, Disk, open_database
from vigil.witness import store

MIGRATIONS = "vigil.witness.migrations"


class NoWitnessError(VigilError):
    """The folder holds no witness that may go on: its key, its memory, or what joins them is missing."""


class WitnessKey:
    """A witness's own Ed25519 key under its name; it signs cosignatures and nothing else."""

    def __init__(self, key: Ed25519PrivateKey, *, name: str) -> None:
        self._key = key
        self._public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.name = name
        self.verifier_key = cosigner_key(name, self._public)

    def cosign(self, text: str, *, time: int) -> str:
        """The line that says: at ``time`` (s) this was the largest log seen."""
        return cosign(text, time=time, name=self.name, public_key=self._public, sign=self._key.sign)


def found(key: Path, database: Path, *, name: str, generate: Callable[[], Ed25519PrivateKey]) -> str:
    """Make a witness's key (mode 0600) and its empty memory; answers its verifier key.

    Raises NoWitnessError when there is a key or a memory already.
    """
    if key.exists() or database.exists():
        raise NoWitnessError(f"{key.parent} holds a witness, or what is left of one, already")
    key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = generate()
    own = WitnessKey(private, name=name)
    # The memory first: without its key it is nothing, and a key without it must not exist.
    memory = open_database(database, metadata=store.METADATA, migrations=MIGRATIONS)
    try:
        memory.write_now(lambda connection: store.put_own_key(connection, own.verifier_key))
    finally:
        memory.close()
    store_private_key(key, private)
    return own.verifier_key


def open_witness(
    key: Path, database: Path, *, name: str, disk: Disk = open_database
) -> tuple[WitnessKey, Database]:
    """Open what ``found`` made. Raises NoWitnessError unless key and memory belong together."""
    if not key.exists() or not database.exists():
        raise NoWitnessError(
            f"{key.parent} lacks the key or the memory of a witness: a new one is made by `vigil witness init`; one "
            "that lost its memory is retired with its key, never started on an empty one"
        )
    private = load_private_key(key)
    if not isinstance(private, Ed25519PrivateKey):
        raise NoWitnessError(f"{key} is not an Ed25519 key")
    own = WitnessKey(private, name=name)
    memory = disk(database, metadata=store.METADATA, migrations=MIGRATIONS)
    if memory.read_now(store.own_key) != own.verifier_key:
        memory.close()
        raise NoWitnessError(f"the memory {database} belongs to another key, or to another name, than {name}")
    return own, memory
