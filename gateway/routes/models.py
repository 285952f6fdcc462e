"""Which models there are."""

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath

from gateway.catalogue import Catalogue
from schemas.api import ModelAnswer, ModelList


@get("/v1/models", sync_to_thread=False)
def list_models(catalogue: NamedDependency[Catalogue]) -> ModelList:
    """List the models, by name."""
    return ModelList(models=catalogue.models())


@get("/v1/models/{name:str}")
async def get_model(name: FromPath[str], catalogue: NamedDependency[Catalogue]) -> ModelAnswer:
    """Describe one model: what it takes, what it gives, whether it is ready."""
    return catalogue.describe(await catalogue.card(name))


@get("/v1/models/{org:str}/{name:str}")
async def get_org_model(
    org: FromPath[str], name: FromPath[str], catalogue: NamedDependency[Catalogue]
) -> ModelAnswer:
    """Describe one model whose name is `org/name`."""
    return catalogue.describe(await catalogue.card(f"{org}/{name}"))
