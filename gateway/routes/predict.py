"""One inference."""

from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency

from gateway.openapi import PREDICT_RESPONSES, PredictOperation
from gateway.predictions import Predictions


@post("/v1/predict", status_code=200, operation_class=PredictOperation, responses=PREDICT_RESPONSES)
async def predict(
    request: Request[Any, Any, Any], predictions: NamedDependency[Predictions]
) -> Response[bytes]:
    """Run a model once and wait for the result, or, with `Prefer: respond-async`, come back for it."""
    return await predictions.answer(request)
