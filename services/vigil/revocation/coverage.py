"""How far an epoch has come. 'Enforcing' is a signed word, believed only about a chain that is really ours."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter

from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.clock import Clock
from vigil.core.statements.bodies import Acknowledgement, Scope
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Reason, Refused, refused
from vigil.revocation import store
from vigil.revocation.chain import Chain
from vigil.revocation.directory import Directory
from vigil.revocation.domain import Owner, not_in_scope
from vigil.storage import Database

MAX_REPORT: Final = 4_096
"""Acknowledgements of one report."""
AT_ONCE: Final = 32
"""Verified in one go: 5 ms."""
_KINDS = frozenset({Kind.GATEWAY, Kind.DEVICE})


@dataclass(frozen=True, slots=True)
class GatewayCoverage:
    """What one gateway enforces; epoch 0 while it has not said."""

    gateway_id: str
    edge: str
    epoch: int
    enforced_at: int


@dataclass(frozen=True, slots=True)
class Coverage:
    epoch: int
    enforcing: int
    gateways: tuple[GatewayCoverage, ...]
    devices: int


class Acknowledgements:
    """Keeps verified acknowledgements and answers how far an epoch has come."""

    def __init__(
        self,
        *,
        database: Database,
        chain: Chain,
        directory: Directory,
        verifier: Callable[[], ChainVerifier],
        clock: Clock,
        metrics: CollectorRegistry,
    ) -> None:
        self._database = database
        self._chain = chain
        self._directory = directory
        self._verifier = verifier
        self._clock = clock
        self._log = structlog.get_logger("vigil.revocation.coverage")
        self._ignored = Counter(
            "vigil_revocation_acknowledgements_ignored",
            "Acknowledgements that were not believed.",
            ["reason"],
            registry=metrics,
        )

    async def take(self, edge: str, acknowledgements: Sequence[bytes]) -> None:
        """Keep what can be believed; durable on return. Raises REQUEST_TOO_LARGE."""
        if len(acknowledgements) > MAX_REPORT or len(edge) > 63:
            raise refused(Reason.REQUEST_TOO_LARGE, f"A report holds at most {MAX_REPORT} acknowledgements.")
        rows: list[dict[str, Any]] = []
        for place, data in enumerate(acknowledgements):
            if place % AT_ONCE == AT_ONCE - 1:
                # Heads are not kept waiting by a thousand signatures.
                await asyncio.sleep(0)
            try:
                rows.append(self._row(edge, read(data, Acknowledgement)))
            except Refused as refusal:
                self._ignored.labels(refusal.reason.value).inc()
                self._log.info("acknowledgement_ignored", reason=str(refusal), edge=edge)
        if rows:
            await self._database.write(
                lambda connection: store.put_acknowledgements(connection, rows), vital=True
            )

    def _row(self, edge: str, statement: Statement[Acknowledgement]) -> dict[str, Any]:
        signer = self._verifier().verify(statement.chain, at=self._clock.now(), kinds=_KINDS, grace=True)
        check(statement, signer)
        body = statement.body
        known = self._chain.hash_at(body.epoch)
        # An epoch of 2^63 is nobody's: only what stands in our own chain counts.
        if known is None or known != body.chain or body.era != self._chain.state.era:
            raise refused(Reason.EPOCH_ROLLED_BACK, "The acknowledgement is about another chain.")
        return {
            "kind": str(signer.kind),
            "subject_id": signer.id,
            "epoch": body.epoch,
            "era": body.era,
            "enforced_at": body.enforced_at,
            "edge": edge,
        }

    async def coverage(self, caller: Identity, epoch: int) -> Coverage:
        """How far an epoch has come inside the caller's scope; 0 is the newest. Raises NOT_IN_SCOPE, REPLICA_STALE."""
        await self._directory.arrived(Scope.GATEWAY)
        state = self._chain.state
        wanted = epoch or state.epoch
        if wanted > state.epoch:
            raise not_in_scope("revocation")
        known = [name for name, owner in self._directory.gateways().items() if _sees(caller, owner)]
        kept = await self._database.read(lambda connection: store.acknowledgements(connection, Kind.GATEWAY))
        gateways = tuple(_coverage(name, kept.get(name), state.era) for name in sorted(known))
        enforcing = sum(
            one.epoch >= wanted and name in kept and kept[name][3] == state.era
            for name, one in zip(sorted(known), gateways, strict=True)
        )
        return Coverage(wanted, enforcing, gateways, await self._devices(caller, wanted, state.era))

    async def _devices(self, caller: Identity, epoch: int, era: int) -> int:
        names = await self._database.read(
            lambda connection: store.acknowledged(connection, Kind.DEVICE, epoch=epoch, era=era)
        )
        if caller.operator and "*" in caller.sites:
            return len(names)
        owners = (self._directory.owner(Scope.DEVICE, name) for name in names)
        return sum(owner is not None and _sees(caller, owner) for owner in owners)


def _sees(caller: Identity, owner: Owner) -> bool:
    return all(caller.covers_site(owner.organization, site) for site in owner.sites)


def _coverage(name: str, kept: tuple[int, str, int, int] | None, era: int) -> GatewayCoverage:
    if kept is None or kept[3] != era:
        return GatewayCoverage(name, "", 0, 0)
    return GatewayCoverage(name, kept[1], kept[0], kept[2])
