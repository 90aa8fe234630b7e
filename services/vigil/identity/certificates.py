"""Certificates from signing requests, for people, gateways, services and devices that come back."""

from dataclasses import replace
from typing import Final

from sqlalchemy import Connection

from vigil.core.certificates import EVERY, Grant, Identity, Kind
from vigil.identity import domain, pki, refusals, store
from vigil.identity.ca import Issued
from vigil.identity.domain import Credential, Device, Gateway, Possession, Principal
from vigil.identity.ports import Ports, publish, unknown
from vigil.identity.possession import DeviceChains, device_chains, prove
from vigil.identity.registry import gateway_grant
from vigil.rpc.caller import require_organization, require_self, require_site, scope_filtered
from vigil.rpc.paging import after_of, page_size, token_after

LONG: Final = pki.Profile(name="long", kind=Kind.PERSON, operational=domain.LONGEST, grace=0)
"""For people without a privileged or a safety role, when an administrator asks for it."""


class Certificates:
    """The use cases of CertificateService."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def issue(self, caller: Identity, principal_id: str, csr_pem: str, lifetime_s: int) -> Credential:
        """Issue a credential to a person, for a key made where it is used.

        Raises SECOND_PERSON_REQUIRED for a privileged person whom no other admin has approved since the last
        one, STATE_CONFLICT for a pending or disabled person, FIELD_INVALID, POSSESSION_NOT_PROVED, NOT_IN_SCOPE.
        """
        found = await self._principal(principal_id)
        require_organization(caller, found.organization_id)
        if not domain.covers_sites(caller, found.organization_id, found.site_ids):
            raise unknown()
        domain.issued_by(found, caller.id)
        return await self._issue(
            found,
            csr_pem,
            domain.lifetime(found, lifetime_s),
            by=caller.id,
            authenticated="administrator",
            renewal=False,
        )

    async def renew(self, caller: Identity, principal_id: str, csr_pem: str) -> Credential:
        """Renew the caller's own credential, which the call itself shows to be valid still."""
        require_self(caller, principal_id)
        found = await self._principal(principal_id)
        domain.may_be_issued(found)
        return await self._issue(
            found,
            csr_pem,
            domain.SHIFT,
            by=caller.id,
            authenticated=caller.authenticated,
            renewal=True,
        )

    async def credential(self, caller: Identity, thumbprint: str) -> Credential:
        """Show a credential to its holder and to the people of their organization."""
        found = await self._ports.database.read(
            lambda connection: store.get(connection, Credential, thumbprint)
        )
        if found is None:
            raise unknown()
        if caller.id == found.principal_id:
            require_self(caller, found.principal_id)
        else:
            require_organization(caller, found.organization_id)
        return found

    async def credentials(
        self, caller: Identity, size: int, token: str, principal_id: str
    ) -> tuple[list[Credential], str]:
        """List the credentials of the caller's organization, or of one of its people."""
        scope_filtered(caller)
        asked = ("Credential", principal_id)
        after, rows = after_of(token, *asked), page_size(size)
        conditions = [store.visible_of_organization(store.CREDENTIAL, caller)]
        if principal_id:
            conditions.append(store.CREDENTIAL.c.principal_id == principal_id)
        found, last = await self._ports.database.read(
            lambda connection: store.page(connection, Credential, *conditions, after=after, size=rows)
        )
        return found, token_after(last, *asked)

    async def renew_gateway(self, caller: Identity, gateway_id: str, csr_pem: str) -> Issued:
        """Renew a gateway's certificate: at any time before its last end, so that one that slept comes back."""
        require_self(caller, gateway_id)
        found = await self._ports.database.read(lambda connection: store.get(connection, Gateway, gateway_id))
        if found is None:
            raise unknown()
        issued = self._ports.authority.issue_from_csr(csr_pem.encode(), gateway_grant(found), pki.GATEWAY)
        renewed = replace(found, certificate_thumbprint=issued.identity.thumbprint.hex())

        def run(connection: Connection) -> None:
            store.change(
                connection, Gateway, gateway_id, certificate_thumbprint=renewed.certificate_thumbprint
            )
            publish(self._ports.outbox, connection, renewed)

        await self._ports.database.write(run)
        return issued

    async def renew_service(self, caller: Identity, role: str, csr_pem: str) -> Issued:
        """Renew a service's certificate."""
        require_self(caller, role)
        grant = Grant(kind=Kind.SERVICE, subject_id=role, organization=EVERY, sites=(EVERY,), roles=(role,))
        return self._ports.authority.issue_from_csr(csr_pem.encode(), grant, pki.SERVICE)

    async def renew_device(self, caller: Identity, device_id: str, possession: Possession) -> DeviceChains:
        """Renew a device's certificates for the identity key that the registry knows.

        There is no nonce of ours, as the device may be behind a gateway that has just found its way back: the
        device's id and time stand in, fresh and rising. Raises NONCE_*, POSSESSION_NOT_PROVED, STATE_CONFLICT,
        DEVICE_REVOKED, KEY_ALREADY_ENROLLED, NOT_IN_SCOPE.
        """
        found = await self._device(device_id)
        require_site(caller, found.organization_id, found.site_id)
        domain.may_renew(found)
        domain.check_renewal_nonce(possession.nonce, found, now=self._ports.clock.now())
        keys = prove(possession, nonce=possession.nonce, identity_key=found.identity_key)
        chains = device_chains(
            self._ports.authority,
            keys,
            device_id=device_id,
            organization_id=found.organization_id,
            site_id=found.site_id,
        )

        def run(connection: Connection) -> None:
            now = self._ports.clock.now()
            current = store.get(connection, Device, device_id)
            if current is None:
                raise unknown()
            domain.may_renew(current)
            at = domain.check_renewal_nonce(possession.nonce, current, now=now)
            other = store.find(connection, Device, store.DEVICE.c.attestation_key == chains.attestation_key)
            if any(one.device_id != device_id for one in other):
                raise refusals.key_already_enrolled()
            values = {
                "attestation_key": chains.attestation_key,
                "attestation_certificate": chains.attestation_certificate,
                "attestation_chain": chains.attestation,
                "renewed_at": at,
                "update_time": now,
            }
            store.change(connection, Device, device_id, **values)
            publish(self._ports.outbox, connection, replace(current, **values))  # type: ignore[arg-type]

        await self._ports.database.write(run)
        return chains

    async def _issue(
        self,
        principal: Principal,
        csr_pem: str,
        operational: int,
        *,
        by: str,
        authenticated: str,
        renewal: bool,
    ) -> Credential:
        now = self._ports.clock.now()
        grant = Grant(
            kind=Kind.PERSON,
            subject_id=principal.principal_id,
            organization=principal.organization_id,
            sites=principal.site_ids,
            roles=principal.roles,
            authenticated=authenticated,
            operational_until=now + operational,
        )
        profile = pki.SAFETY if domain.SAFETY in principal.roles else LONG
        issued = self._ports.authority.issue_from_csr(csr_pem.encode(), grant, profile)
        credential = Credential(
            thumbprint=issued.identity.thumbprint.hex(),
            principal_id=principal.principal_id,
            organization_id=principal.organization_id,
            roles=principal.roles,
            site_ids=principal.site_ids,
            certificate_pem=issued.chain_pem.decode(),
            operational_until=issued.identity.operational_until,
            not_after=issued.identity.not_after,
            issued_by=by,
            create_time=now,
        )

        def run(connection: Connection) -> None:
            # Disabled in the meantime: the certificate just made never leaves.
            current = store.get(connection, Principal, principal.principal_id)
            if current is None:
                raise unknown()
            if renewal:
                domain.may_be_issued(current)
            else:
                domain.issued_by(current, by)
                store.change(connection, Principal, current.principal_id, cleared_by="")
            store.add(connection, credential, {})
            publish(self._ports.outbox, connection, credential)

        await self._ports.database.write(run)
        return credential

    async def _principal(self, principal_id: str) -> Principal:
        found = await self._ports.database.read(
            lambda connection: store.get(connection, Principal, principal_id)
        )
        if found is None:
            raise unknown()
        return found

    async def _device(self, device_id: str) -> Device:
        found = await self._ports.database.read(lambda connection: store.get(connection, Device, device_id))
        if found is None:
            raise unknown()
        return found
