"""Decides whether a caller may name a webhook, before anything of the job is stored."""

from infra.connections.callbacks import Callbacks
from infra.connections.settings import WebhookSettings
from schemas.errors import InvalidInput


class WebhookCheck:
    """Refuses what the scheduler would not call: it checks the same again when it does."""

    def __init__(self, callbacks: Callbacks, settings: WebhookSettings) -> None:
        self._callbacks = callbacks
        self._settings = settings

    async def allow(self, tenant: str, url: str, *, field: str) -> str:
        """Return `url` if it may be called. Raises InvalidInput, and Unavailable without a name server."""
        if self._settings.key_of(tenant) is None:
            raise InvalidInput(
                "can not be used: the operator gave this tenant no secret to sign webhooks with", field=field
            )
        await self._callbacks.check(url, field=field)
        return url
