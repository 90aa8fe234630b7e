"""Past a credential's quota nobody fills the log: one signed count a minute stands for all that was refused.

docs/protocol.md, Refusals. The counts of a minute that a crash cuts short are lost, and nothing else.
"""

import asyncio
from typing import Final

import structlog
from sqlalchemy import Connection

from vigil.core.clock import Clock
from vigil.core.statements.bodies import Refusals
from vigil.errors import Refused
from vigil.feed.evidence import EvidenceSpool
from vigil.gateway.own_key import OwnKey
from vigil.gateway.quotas import Quotas
from vigil.storage import Database

PERIOD_S: Final = 60.0


class RefusalCounts:
    """Signs the counts with the gateway's key and has them recorded."""

    def __init__(
        self,
        *,
        quotas: Quotas,
        key: OwnKey,
        database: Database,
        spool: EvidenceSpool,
        clock: Clock,
        organization_id: str,
        site_id: str,
    ) -> None:
        self._quotas = quotas
        self._key = key
        self._database = database
        self._spool = spool
        self._clock = clock
        self._organization_id = organization_id
        self._site_id = site_id
        self._since = clock.now()
        self._log = structlog.get_logger("vigil.gateway.refusals")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            await self.tell()

    async def tell(self) -> None:
        """Sign and spool what was counted since the last time."""
        now, since = self._clock.now(), self._since
        self._since = now
        signed = [
            self._key.scribe.sign(
                Refusals(credential=credential, count=count, since=since, until=max(since, now)),
                subject=f"credential/{credential.hex()}",
            )
            for credential, count in self._quotas.refused()
        ]

        def write(connection: Connection) -> None:
            for statement in signed:
                self._spool.put(
                    connection,
                    statement.data,
                    subjects=(statement.subject,),
                    organization_id=self._organization_id,
                    site_id=self._site_id,
                )

        for statement in signed:
            body = statement.body
            self._log.warning("refused_past_quota", credential=body.credential.hex(), count=body.count)
        if signed:
            try:
                await self._database.write(write)
            except Refused as refusal:
                # A flood and a full disk: the log lines above are what is left of it.
                self._log.error("refusals_not_recorded", reason=str(refusal))
