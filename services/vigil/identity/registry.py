"""Organizations, sites, gateways and people: made, shown and disabled."""

from dataclasses import replace
from typing import Any, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from vigil.core.certificates import EVERY, Grant, Identity, Kind
from vigil.identity import domain, pki, refusals, store
from vigil.identity.ca import Issued
from vigil.identity.ceremony import ADMIN_ROLES, FIRST_ADMINS
from vigil.identity.domain import Gateway, Organization, Principal, PrincipalState, Site
from vigil.identity.ports import ALL_OF_THEM, Ports, publish, unknown
from vigil.identity.trust import read_root
from vigil.rpc.caller import require_organization, require_self, require_site, scope_filtered
from vigil.rpc.paging import after_of, page_size, token_after

T = TypeVar("T")


class Registry:
    """The use cases of RegistryService. Whoever names something out of their scope is told NOT_IN_SCOPE."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def begin(self) -> None:
        """At the start: register the operator and its two first admins, and trust every manufacturer on record.

        So a crash between a manufacturer's row and ``trust.json`` heals. Raises OSError.
        """
        bundle = self._ports.trust.bundle
        if bundle.operator != EVERY:
            await self._ports.database.write(lambda connection: self._seed(connection, bundle.operator))
        rows = await self._ports.database.read(
            lambda connection: store.find(
                connection, Organization, store.ORGANIZATION.c.manufacturer_root_pem != "", limit=ALL_OF_THEM
            )
        )
        roots = {
            row.organization_id: read_root(row.manufacturer_root_pem, row.organization_id, bundle)
            for row in rows
        }
        await self._ports.trust.add(roots)

    async def create_organization(self, caller: Identity, asked: Organization) -> Organization:
        """Register an organization; only the operator's admins. Raises FIELD_INVALID, RESOURCE_EXISTS."""
        trust = self._ports.trust
        require_organization(caller, trust.bundle.operator)
        domain.slug(asked.organization_id, "organization.organization_id")
        domain.display_name(asked.display_name, "organization.display_name")
        made = replace(asked, create_time=self._ports.clock.now())
        pem = made.manufacturer_root_pem
        root = read_root(pem, made.organization_id, trust.bundle) if pem else None
        key = (
            root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) if root else None
        )
        taken = {
            "organization_id": refusals.exists("organization", made.organization_id),
            # One root for two organizations would let either sign for the other.
            "manufacturer_root_key": refusals.exists("manufacturer with", "this root"),
        }

        def run(connection: Connection) -> None:
            store.add(connection, made, taken, manufacturer_root_key=key)
            publish(self._ports.outbox, connection, made)

        await self._ports.database.write(run)
        if root is not None:
            await trust.add({made.organization_id: root})
        return made

    async def organization(self, caller: Identity, organization_id: str) -> Organization:
        require_organization(caller, organization_id)
        return await self._get(Organization, organization_id)

    async def organizations(self, caller: Identity, size: int, token: str) -> tuple[list[Organization], str]:
        condition = store.visible_of_organization(store.ORGANIZATION, caller)
        return await self._page(caller, Organization, size, token, condition)

    async def create_site(self, caller: Identity, asked: Site) -> Site:
        """Register a site of an organization. Raises FIELD_INVALID, RESOURCE_EXISTS, NOT_IN_SCOPE."""
        require_organization(caller, asked.organization_id)
        domain.check_site(asked, self._ports.time_zones)
        made = replace(asked, create_time=self._ports.clock.now())
        taken = {"site_id": refusals.exists("site", made.site_id)}

        def run(connection: Connection) -> None:
            if store.get(connection, Organization, made.organization_id) is None:
                raise unknown()
            store.add(connection, made, taken)
            publish(self._ports.outbox, connection, made)

        await self._ports.database.write(run)
        return made

    async def site(self, caller: Identity, site_id: str) -> Site:
        found = await self._get(Site, site_id)
        require_site(caller, found.organization_id, found.site_id)
        return found

    async def sites(self, caller: Identity, size: int, token: str) -> tuple[list[Site], str]:
        return await self._page(caller, Site, size, token, store.visible_at_sites(store.SITE, caller))

    async def create_gateway(self, caller: Identity, asked: Gateway, csr_pem: str) -> tuple[Gateway, Issued]:
        """Register a gateway and issue its certificate. Raises FIELD_INVALID, POSSESSION_NOT_PROVED, …"""
        site = await self._get(Site, asked.site_id)
        require_site(caller, site.organization_id, site.site_id)
        if site.organization_id != asked.organization_id:
            raise unknown()
        domain.check_gateway(asked)
        issued = self._ports.authority.issue_from_csr(csr_pem.encode(), gateway_grant(asked), pki.GATEWAY)
        made = replace(
            asked,
            certificate_thumbprint=issued.identity.thumbprint.hex(),
            create_time=self._ports.clock.now(),
        )
        taken = {"gateway_id": refusals.exists("gateway", made.gateway_id)}

        def run(connection: Connection) -> None:
            store.add(connection, made, taken)
            publish(self._ports.outbox, connection, made)

        await self._ports.database.write(run)
        return made, issued

    async def gateway(self, caller: Identity, gateway_id: str) -> Gateway:
        found = await self._get(Gateway, gateway_id)
        require_site(caller, found.organization_id, found.site_id)
        return found

    async def gateways(
        self, caller: Identity, size: int, token: str, site_id: str
    ) -> tuple[list[Gateway], str]:
        conditions = [store.visible_at_sites(store.GATEWAY, caller)]
        if site_id:
            conditions.append(store.GATEWAY.c.site_id == site_id)
        return await self._page(caller, Gateway, size, token, *conditions, asked=(site_id,))

    async def create_principal(self, caller: Identity, asked: Principal) -> Principal:
        """Register a person. With a privileged role they wait for a second admin.

        Nobody grants sites that they do not cover themselves. Raises FIELD_INVALID, RESOURCE_EXISTS, NOT_IN_SCOPE.
        """
        made = replace(
            asked,
            principal_id=asked.principal_id or domain.principal_id(self._ports.entropy(10)),
            state=PrincipalState.PENDING if asked.privileged else PrincipalState.ACTIVE,
            created_by=caller.id,
            create_time=self._ports.clock.now(),
        )
        domain.check_principal(made)
        _require_sites(caller, made)
        taken = {"principal_id": refusals.exists("person", made.principal_id)}

        def run(connection: Connection) -> None:
            if store.get(connection, Organization, made.organization_id) is None:
                raise unknown()
            for site_id in made.site_ids:
                site = store.get(connection, Site, site_id) if site_id != EVERY else None
                if site_id != EVERY and (site is None or site.organization_id != made.organization_id):
                    raise unknown()
            store.add(connection, made, taken)
            publish(self._ports.outbox, connection, made)

        await self._ports.database.write(run)
        return made

    async def approve_principal(self, caller: Identity, principal_id: str) -> Principal:
        """Approve a privileged person, as another admin than their creator, or their next credential.

        Raises SECOND_PERSON_REQUIRED, STATE_CONFLICT, NOT_IN_SCOPE.
        """
        _require_sites(caller, await self._get(Principal, principal_id))

        def run(connection: Connection) -> Principal:
            found = _present(store.get(connection, Principal, principal_id))
            return self._change(connection, domain.approved(found, caller.id))

        return await self._ports.database.write(run)

    async def principal(self, caller: Identity, principal_id: str) -> Principal:
        """Show a person to the people of their organization, and to themselves."""
        found = await self._get(Principal, principal_id)
        if caller.id == principal_id:
            require_self(caller, principal_id)
        else:
            require_organization(caller, found.organization_id)
        return found

    async def principals(self, caller: Identity, size: int, token: str) -> tuple[list[Principal], str]:
        condition = store.visible_of_organization(store.PRINCIPAL, caller)
        return await self._page(caller, Principal, size, token, condition)

    async def disable_principal(self, caller: Identity, principal_id: str) -> Principal:
        """Let a person have no new credential; once disabled, the answer is the same again."""
        _require_sites(caller, await self._get(Principal, principal_id))

        def run(connection: Connection) -> Principal:
            found = _present(store.get(connection, Principal, principal_id))
            return self._change(connection, replace(found, state=PrincipalState.DISABLED))

        return await self._ports.database.write(run)

    def _change(self, connection: Connection, principal: Principal) -> Principal:
        store.change(
            connection,
            Principal,
            principal.principal_id,
            state=principal.state,
            approved_by=principal.approved_by,
            cleared_by=principal.cleared_by,
        )
        publish(self._ports.outbox, connection, principal)
        return principal

    def _seed(self, connection: Connection, operator: str) -> None:
        now = self._ports.clock.now()
        if store.get(connection, Organization, operator) is None:
            organization = Organization(organization_id=operator, display_name=operator, create_time=now)
            store.add(connection, organization, {}, manufacturer_root_key=None)
            publish(self._ports.outbox, connection, organization)
        for admin in FIRST_ADMINS:
            if store.get(connection, Principal, admin) is None:
                person = Principal(
                    principal_id=admin,
                    organization_id=operator,
                    display_name=admin.removeprefix("p-"),
                    roles=ADMIN_ROLES,
                    site_ids=(EVERY,),
                    state=PrincipalState.ACTIVE,
                    created_by="ceremony",
                    approved_by="ceremony",
                    create_time=now,
                )
                store.add(connection, person, {})
                publish(self._ports.outbox, connection, person)

    async def _get(self, kind: type[T], key: str) -> T:
        return _present(await self._ports.database.read(lambda connection: store.get(connection, kind, key)))

    async def _page(
        self,
        caller: Identity,
        kind: type[T],
        size: int,
        token: str,
        *conditions: Any,
        asked: tuple[str, ...] = (),
    ) -> tuple[list[T], str]:
        scope_filtered(caller)
        after, rows = after_of(token, kind.__name__, *asked), page_size(size)
        found, last = await self._ports.database.read(
            lambda connection: store.page(connection, kind, *conditions, after=after, size=rows)
        )
        return found, token_after(last, kind.__name__, *asked)


def gateway_grant(gateway: Gateway) -> Grant:
    """What a gateway's certificate says. Raises FIELD_INVALID."""
    return Grant(
        kind=Kind.GATEWAY,
        subject_id=gateway.gateway_id,
        organization=gateway.organization_id,
        sites=(gateway.site_id,),
    )


def _require_sites(caller: Identity, principal: Principal) -> None:
    require_organization(caller, principal.organization_id)
    if not domain.covers_sites(caller, principal.organization_id, principal.site_ids):
        raise unknown()


def _present(found: T | None) -> T:
    if found is None:
        raise unknown()
    return found
