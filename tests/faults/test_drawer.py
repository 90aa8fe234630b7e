"""A pump nine months in a drawer: its certificates are past their end, its clock has lost the time."""

import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection

from tests.faults.acts import works_again
from tests.support import clocks
from tests.support.clocks import DAY, YEAR
from tests.support.stack import Stack, eventually
from vigil.core import cbor
from vigil.core.certificates import Grant, Kind, load_pair, milliseconds, store_pair
from vigil.core.clock import SystemClock
from vigil.demo.fleet import FleetProcess
from vigil.demo.processes import Child
from vigil.demo.world import PumpAt
from vigil.feed import Outbox
from vigil.identity import pki, store
from vigil.identity.ca import load_issuer
from vigil.identity.domain import Device
from vigil.identity.ports import publish
from vigil.storage import open_database

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.holds("drawer"),
    pytest.mark.thorough,
]

SET_CLOCK: Final = (
    "import pathlib, sys, time; "
    "pathlib.Path(sys.argv[1]).write_text(f'{int(sys.argv[2][1:]) - time.time():+.3f}\\n')"
)
"""What `date --set` does to a machine's clock, done to the clock of one process."""


class Drawn(FleetProcess):
    """One pump on a machine of its own, whose clock it may set."""

    def __init__(self, folder: Path, clock: clocks.Moved, *, control: Path, scratch: Path) -> None:
        self.log = scratch / "drawer.log"
        super().__init__(folder, control=control, log=self.log)
        # As any other program: by the machine's clock, not by the pump's.
        program = ["env", "-u", "LD_PRELOAD", sys.executable, "-I", "-c", SET_CLOCK, str(clock.path)]
        config = scratch / f"{clock.path.name}.toml"
        config.write_text(f'data = "{folder}"\ncontrol = "{control}"\nset_clock = {program!r}\n')
        self._child = Child(["vigil.device", "--config", str(config), "--log-level", "warning"], self.log)


async def test_nine_months_in_a_drawer(
    breakable: Stack, injected: Callable[[int], None], tmp_path: Path
) -> None:
    stack = breakable
    clocks.required()
    await stack.calm()
    pump = stack.pumps(stack.first)[0]
    fleet, folder, away = pump.fleet, pump.fleet.folder / pump.name, tmp_path / pump.name
    await fleet.stop()
    folder.rename(away)
    chain = await make_older(stack, pump, away)
    clock = clocks.Moved(stack.clocks / "drawer")
    clock.step(-25 * YEAR)
    drawn = Drawn(away, clock, control=stack.world.sockets / "drawer.sock", scratch=tmp_path)
    try:
        with stack.besides_ours():
            await fleet.start()
            await drawn.start()
        await eventually(lambda: "below the floor" in drawn.log.read_text(), what="the pump sets its clock")
        # It told so by the clock that it had: another century's beginning.
        assert drawn.log.read_text().startswith("200")
        assert float(clock.path.read_text()) > -DAY
        injected(2)

        await eventually(lambda: chain_of(away) != chain, what="the pump renews by its PUF key", seconds=300)
        identity = stack.world.people["admin"].verifier.remember(chain_of(away))
        assert identity.operational_until > SystemClock().now() + 80 * DAY * 1000
        at_pump = replace(pump, fleet=drawn)
        await drawn.do("bedside-release", pump.name)
        await works_again(stack, at_pump, 313)
        assert abs(int((await stack.status(at_pump))["device_time"]) - SystemClock().now()) < 60_000
    finally:
        await drawn.stop()
        clock.path.unlink()
        await fleet.stop()
        away.rename(folder)
        with stack.besides_ours():
            await fleet.start()
    await fleet.do("bedside-release", pump.name)
    await stack.calm()


def chain_of(folder: Path) -> tuple[bytes, ...]:
    """The pump's attestation certificates, as they lie on its disk; the file is the pump's alone, so it is copied."""
    copied = folder.parent / "looked-at.db"
    for suffix in ("", "-wal"):
        source = folder / f"pump.db{suffix}"
        Path(f"{copied}{suffix}").write_bytes(source.read_bytes() if source.exists() else b"")
    with contextlib.closing(sqlite3.connect(copied)) as connection:
        found = connection.execute("SELECT value FROM facts WHERE name = 'chain.attestation'").fetchone()
    return tuple(cbor.decode(found[0]))


async def make_older(stack: Stack, pump: PumpAt, folder: Path) -> tuple[bytes, ...]:
    """What nine months make of certificates, on the pump's disk and in the registry: ended half a year ago."""
    attestation = older(stack, chain_of(folder))
    with contextlib.closing(sqlite3.connect(folder / "pump.db")) as connection:
        value = cbor.encode(list(attestation))
        connection.execute("UPDATE facts SET value = ? WHERE name = 'chain.attestation'", (value,))
        connection.commit()
    files = folder / "secure-element"
    pair = load_pair(files / "tls.pem", files / "tls.key")
    pem = b"".join(
        x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in older(stack, pair.chain_der)
    )
    store_pair(files / "tls.pem", files / "tls.key", chain_pem=pem, private_key=pair.private_key)
    database = open_database(
        stack.folder.path / "identity" / "identity.db", metadata=store.METADATA, migrations=store.MIGRATIONS
    )
    outbox = Outbox(database)
    verifier = stack.world.people["admin"].verifier
    values = {
        "attestation_certificate": verifier.remember(attestation).thumbprint,
        "attestation_chain": attestation,
    }

    def run(connection: Connection) -> None:
        known = store.get(connection, Device, pump.device_id)
        assert known is not None
        store.change(connection, Device, pump.device_id, **values)
        publish(outbox, connection, replace(known, **values))  # type: ignore[arg-type]

    await database.write(run)
    database.close()
    return attestation


def older(stack: Stack, chain: Sequence[bytes]) -> tuple[bytes, ...]:
    """The same certificate, but for the end of its ordinary use."""
    verifier = stack.world.people["admin"].verifier
    folder = stack.folder.path / "pki" / "intermediates"
    holder, leaf = verifier.remember(tuple(chain)), x509.load_der_x509_certificate(chain[0])
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    made = pki.issue(
        issuer=load_issuer(folder / "device.pem", folder / "device.key"),
        trust_domain=verifier.bundle.trust_domain,
        grant=Grant(
            kind=Kind.DEVICE,
            subject_id=holder.id,
            organization=holder.organization,
            sites=tuple(holder.sites),
            statements=tuple(sorted(holder.statements)),
            operational_until=SystemClock().now() - 180 * DAY * 1000,
        ),
        public_key=key,
        not_before=milliseconds(leaf.not_valid_before_utc),
        not_after=milliseconds(leaf.not_valid_after_utc),
        entropy=os.urandom,
    )
    return (made.public_bytes(Encoding.DER), *chain[1:])
