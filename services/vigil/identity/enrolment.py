"""Enrolment by voucher: the manufacturer names the device, the device proves its key, two people let it in."""

from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection, delete

from vigil.core import udi
from vigil.core.certificates import Identity, Kind
from vigil.core.classes import MAX_CLOCK_SKEW_MS
from vigil.core.statements.bodies import Voucher
from vigil.core.statements.envelope import Statement, check, read
from vigil.core.udi import Udi
from vigil.errors import Reason, Refused
from vigil.identity import domain, refusals, store
from vigil.identity.domain import Device, DeviceState, Enrolment, Possession, Site
from vigil.identity.ports import Ports, publish, unknown
from vigil.identity.possession import DeviceChains, device_chains, prove
from vigil.rpc.caller import require_self, require_site

NONCE_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device that is pending, and what it is to install."""

    device: Device
    tls_chain: tuple[bytes, ...]


class Enrolments:
    """The use cases of EnrolmentService."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def start(
        self, caller: Identity, *, voucher: bytes, organization_id: str, site_id: str, asset_tag: str
    ) -> Enrolment:
        """Accept a voucher and answer a nonce for the device it names.

        Raises NOT_IN_SCOPE, FIELD_INVALID, VOUCHER_INVALID, UDI_INVALID, DEVICE_ALREADY_ENROLLED,
        KEY_ALREADY_ENROLLED.
        """
        site = await self._ports.database.read(lambda connection: store.get(connection, Site, site_id))
        if site is None:
            raise unknown()
        require_site(caller, site.organization_id, site.site_id)
        if organization_id != site.organization_id:
            raise refusals.invalid("organization_id", "it is not the organization of that site")
        domain.asset_tag(asset_tag)
        now = self._ports.clock.now()
        statement, named = self._vouched(voucher, now=now)
        enrolment = Enrolment(
            enrolment_id=domain.enrolment_id(self._ports.entropy(10)),
            nonce=self._ports.entropy(NONCE_BYTES),
            enroller=caller.id,
            organization_id=site.organization_id,
            site_id=site.site_id,
            asset_tag=asset_tag,
            voucher=voucher,
            udi=named.canonical,
            model=statement.body.model,
            identity_key=statement.body.identity_key,
            expires=now + domain.ENROLMENT_LIFE,
        )

        def run(connection: Connection) -> None:
            _check_free(connection, caller, named, statement.body.identity_key)
            store.add(connection, enrolment, {})

        await self._ports.database.write(run)
        return enrolment

    async def complete(self, caller: Identity, enrolment_id: str, possession: Possession) -> Enrolled:
        """Check the device's proof and register it, pending. The same proof again gets the same answer.

        A proof that fails uses the nonce up. Raises NOT_IN_SCOPE, NONCE_USED, NONCE_EXPIRED,
        POSSESSION_NOT_PROVED, FIELD_INVALID, DEVICE_ALREADY_ENROLLED, KEY_ALREADY_ENROLLED.
        """
        enrolment = await self._ports.database.read(
            lambda connection: store.get(connection, Enrolment, enrolment_id)
        )
        if enrolment is None:
            raise unknown()
        # The station that began it ends it.
        require_self(caller, enrolment.enroller)
        require_site(caller, enrolment.organization_id, enrolment.site_id)
        if enrolment.tls_chain and enrolment.possession == possession.digest:
            return await self._answered(enrolment)
        now = self._ports.clock.now()
        domain.check_enrolment(enrolment, now=now)
        try:
            keys = prove(possession, nonce=enrolment.nonce, identity_key=enrolment.identity_key)
        except Refused:
            await self._ports.database.write(
                lambda connection: store.change(connection, Enrolment, enrolment_id, used_at=now)
            )
            raise
        chains = device_chains(
            self._ports.authority,
            keys,
            device_id=domain.device_id(enrolment.identity_key),
            organization_id=enrolment.organization_id,
            site_id=enrolment.site_id,
        )
        device = _pending(enrolment, chains, now=now)
        await self._ports.database.write(
            lambda connection: self._register(
                connection,
                caller,
                device=device,
                chains=chains,
                possession=possession,
                enrolment_id=enrolment_id,
            )
        )
        return Enrolled(device, chains.tls)

    async def activate(self, caller: Identity, device_id: str) -> Device:
        """Make a device active, as another person than its enroller. Raises SECOND_PERSON_REQUIRED, STATE_CONFLICT."""
        found = await self._ports.database.read(lambda connection: store.get(connection, Device, device_id))
        if found is None:
            raise unknown()
        require_site(caller, found.organization_id, found.site_id)

        def run(connection: Connection) -> Device:
            current = store.get(connection, Device, device_id)
            if current is None:
                raise unknown()
            domain.activated(current, caller.id)
            now = self._ports.clock.now()
            made = replace(current, state=DeviceState.ACTIVE, activated_by=caller.id, update_time=now)
            store.change(
                connection, Device, device_id, state=made.state, activated_by=caller.id, update_time=now
            )
            publish(self._ports.outbox, connection, made)
            return made

        return await self._ports.database.write(run)

    async def forget_expired(self) -> None:
        """Drop enrolments that nobody can complete any more; those that were completed stay."""
        table = store.ENROLMENT
        over = table.c.expires <= self._ports.clock.now()
        await self._ports.database.write(
            lambda connection: (
                connection.execute(delete(table).where(over, table.c.possession == b"")).rowcount
            )
        )

    def _vouched(self, data: bytes, *, now: int) -> tuple[Statement[Voucher], Udi]:
        """Read a voucher that a manufacturer of this trust domain signed. Raises VOUCHER_INVALID, UDI_INVALID."""
        try:
            statement = read(data, Voucher)
            # A pump can lie in stock for longer than a signer lives, so the voucher is judged when it was signed; a
            # signer's key that was lost is what revocation is for.
            signed_at = statement.issued_at * 1000
            if signed_at > now + MAX_CLOCK_SKEW_MS:
                raise refusals.voucher_invalid("it was signed in the future")
            signer = self._ports.trust.verifier.verify(
                statement.chain, at=signed_at, kinds=frozenset({Kind.SIGNER})
            )
            check(statement, signer)
        except Refused as error:
            if error.reason is Reason.VOUCHER_INVALID:
                raise
            raise refusals.voucher_invalid(error.refusals[0].sentence.rstrip(".")) from error
        domain.check_model(statement.body.model)
        return statement, udi.parse(statement.body.udi)

    def _register(
        self,
        connection: Connection,
        caller: Identity,
        *,
        device: Device,
        chains: DeviceChains,
        possession: Possession,
        enrolment_id: str,
    ) -> None:
        enrolment = store.get(connection, Enrolment, enrolment_id)
        if enrolment is None:
            raise unknown()
        now = self._ports.clock.now()
        domain.check_enrolment(enrolment, now=now)
        _check_free(connection, caller, udi.parse(enrolment.udi), enrolment.identity_key)
        store.add(
            connection,
            device,
            {
                "udi_issuer": refusals.already_enrolled(""),
                "identity_key": refusals.key_already_enrolled(),
                "attestation_key": refusals.key_already_enrolled(),
                "device_id": refusals.key_already_enrolled(),
            },
        )
        store.change(
            connection,
            Enrolment,
            enrolment_id,
            used_at=now,
            possession=possession.digest,
            tls_chain=chains.tls,
        )
        publish(self._ports.outbox, connection, device)
        self._ports.spool.put(
            connection,
            enrolment.voucher,
            subjects=(f"device/{device.device_id}", f"person/{enrolment.enroller}"),
            organization_id=device.organization_id,
            site_id=device.site_id,
        )

    async def _answered(self, enrolment: Enrolment) -> Enrolled:
        device = await self._ports.database.read(
            lambda connection: store.get(connection, Device, domain.device_id(enrolment.identity_key))
        )
        if device is None:
            raise unknown()
        return Enrolled(device, enrolment.tls_chain)


def _check_free(connection: Connection, caller: Identity, named: Udi, identity_key: bytes) -> None:
    """Neither the UDI nor the key is enrolled. Raises DEVICE_ALREADY_ENROLLED, KEY_ALREADY_ENROLLED."""
    columns = store.DEVICE.c
    same = store.find(
        connection,
        Device,
        columns.udi_issuer == named.issuer,
        columns.udi_di == named.di,
        columns.serial == named.serial,
    )
    for device in same:
        visible = caller.covers_site(device.organization_id, device.site_id)
        raise refusals.already_enrolled(device.device_id if visible else "")
    if store.find(connection, Device, columns.identity_key == identity_key):
        raise refusals.key_already_enrolled()


def _pending(enrolment: Enrolment, chains: DeviceChains, *, now: int) -> Device:
    named = udi.parse(enrolment.udi)
    return Device(
        device_id=domain.device_id(enrolment.identity_key),
        udi=named.canonical,
        udi_issuer=named.issuer,
        udi_di=named.di,
        serial=named.serial,
        asset_tag=enrolment.asset_tag,
        model=enrolment.model,
        organization_id=enrolment.organization_id,
        site_id=enrolment.site_id,
        observed_gateway_id="",
        state=DeviceState.PENDING,
        resumes=DeviceState.PENDING,
        holds=0,
        identity_key=enrolment.identity_key,
        attestation_key=chains.attestation_key,
        attestation_certificate=chains.attestation_certificate,
        attestation_chain=chains.attestation,
        enrolled_by=enrolment.enroller,
        activated_by="",
        quarantine_log=0,
        lift_log=0,
        renewed_at=0,
        create_time=now,
        update_time=now,
    )
