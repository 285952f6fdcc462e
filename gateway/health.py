"""Whether this gateway can serve: NATS is needed for that, Redis is not."""

from gateway.catalogue import Catalogue
from infra.connections.clients import NatsConnection
from schemas.api import Health


class Checks:
    """What a gateway says of itself."""

    def __init__(self, connection: NatsConnection, catalogue: Catalogue) -> None:
        self._connection = connection
        self._catalogue = catalogue

    @property
    def ready(self) -> bool:
        """Say whether requests can be taken."""
        return self._connection.connected

    def report(self) -> Health:
        """Say how each part is, and which models can answer now."""
        return Health(
            status="ready" if self.ready else "not ready",
            models_loaded=self._catalogue.models_ready(),
            checks={
                "nats": "ok" if self._connection.connected else "disconnected",
                "redis": "ok" if self._catalogue.reachable else "unreachable, serving what is known",
            },
        )
