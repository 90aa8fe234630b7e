"""A gateway's folder on this machine: its key made here, its certificate from identity, its configuration."""

from collections.abc import Mapping
from pathlib import Path

from vigil.core.certificates import replace_file, store_pair
from vigil.core.keys import PrivateKey
from vigil.errors import Reason, refused
from vigil.run.configs import gateway_config
from vigil.run.layout import FIRST_GATEWAY_PORT, DataFolder, free_ports, port_of


def choose_address(folder: DataFolder) -> str:
    """An address on the loopback interface that no gateway of this machine has."""
    taken = {port_of(address) for address in folder.read_endpoints().values()}
    # Beside the services' own ports, so that two installations on one machine stay out of each other's way.
    first = max(taken, default=FIRST_GATEWAY_PORT - 1) + 1
    return f"127.0.0.1:{free_ports(1, first, taken)[0]}"


def write_gateway(
    folder: DataFolder,
    *,
    gateway_id: str,
    site_id: str,
    organization_id: str,
    address: str,
    trust_domain: str,
    certificate_pem: str,
    trust_json: str,
    private_key: PrivateKey,
    endpoints: Mapping[str, str] | None = None,
    metrics_listen: str = "",
) -> Path:
    """Lay down a gateway's folder; a running `vigil up` starts it within a second. Returns its configuration.

    ``endpoints`` are the services as seen from the gateway, where that is not this machine's own view of them.
    Raises RESOURCE_EXISTS when the folder holds a gateway already.
    """
    home = folder.gateway(gateway_id)
    config = home / "gateway.toml"
    if config.exists():
        raise refused(Reason.RESOURCE_EXISTS, f"{home} already holds a gateway")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "data").mkdir(mode=0o700, exist_ok=True)
    store_pair(
        home / "tls.pem", home / "tls.key", chain_pem=certificate_pem.encode(), private_key=private_key
    )
    replace_file(home / "trust.json", trust_json.encode())
    local = folder.read_endpoints()
    text = gateway_config(
        folder,
        gateway_id=gateway_id,
        site_id=site_id,
        organization_id=organization_id,
        trust_domain=trust_domain,
        listen=address,
        endpoints=local if endpoints is None else endpoints,
        metrics_listen=metrics_listen,
    )
    folder.write_endpoints({**local, gateway_id: address})
    replace_file(config, text.encode(), mode=0o600)
    return config
