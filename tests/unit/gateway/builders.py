"""Small things that tests of the gateway are about."""

from schemas.models import ModelCard, Signature, TensorSpec


def a_card(
    name: str = "m", *, version: int = 1, dtype: str = "float32", raw_input: str | None = None
) -> ModelCard:
    """A model of one input `x`."""
    spec = TensorSpec(name="x", dtype=dtype, shape=(-1,) if dtype == "bytes" else (-1, -1))
    return ModelCard(
        name=name,
        version=version,
        format="python",
        signature=Signature(inputs=(spec,), outputs=()),
        max_batch_size=8,
        raw_input=raw_input,
    )
