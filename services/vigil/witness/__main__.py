"""A witness: ``python -m vigil.witness --config FILE``."""

from vigil.rpc.plain_http import PlainHttpServer
from vigil.rpc.service_main import Process, run
from vigil.storage import Disk, open_database
from vigil.witness.config import WitnessConfig
from vigil.witness.domain import KnownLogs
from vigil.witness.founding import open_witness
from vigil.witness.metrics import WitnessMetrics
from vigil.witness.service import Witness
from vigil.witness.servicer import WitnessServicer


async def serve(config: WitnessConfig, process: Process, *, disk: Disk = open_database) -> None:
    """Wire and serve until told to stop."""
    key, database = open_witness(config.witness_key, config.database, name=config.name, disk=disk)
    try:
        witness = Witness(key=key, logs=KnownLogs(config.logs), database=database, clock=process.clock)
        servicer = WitnessServicer(witness=witness, metrics=WitnessMetrics(process.metrics))
        server = PlainHttpServer(listen=config.listen, routes=servicer.routes, what="witness")
        port = await server.start()
        process.log.info("witness", verifier_key=key.verifier_key)
        process.ready(port)
        await process.until_stopped()
        await server.stop()
    finally:
        database.close()


def main() -> None:
    """Run the witness."""
    run("witness", WitnessConfig, serve)


if __name__ == "__main__":
    main()
