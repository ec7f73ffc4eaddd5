"""How the next token is drawn from logits: greedy, temperature, top-k and top-p."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Rule for drawing a token.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token (greedy), whatever the other fields say.
      top_k: keep the k most likely tokens; None keeps all.
      top_p: of those, keep the fewest most likely whose probabilities reach p (Holtzman et al., 2020); None keeps all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"Sampling.temperature must be finite and >= 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Sampling.top_k must be None or >= 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling.top_p must be None or in (0, 1], got {self.top_p}")


def sample(logits: jax.Array, key: jax.Array, cfg: Sampling) -> jax.Array:
    """Draws one token per row.

    Ties are broken by the lower id, so ``top_k=1`` is exactly greedy.

    Args:
      logits: floating point ``[..., V]``.
      key: random key; unused when greedy.
      cfg: the rule; static under jit.

    Returns:
      int32 ``[...]``.
    """
    if cfg.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    logits = logits.astype(jnp.float32)
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / cfg.temperature
    vocab = logits.shape[-1]
    kept = min(cfg.top_k or vocab, vocab)
    if kept == vocab and (cfg.top_p is None or cfg.top_p == 1):
        return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
    # top_k orders -0 below 0, which argmax and the softmax take as equal.
    values, ids = jax.lax.top_k(jnp.where(logits == 0, 0.0, logits), kept)
    if cfg.top_p is not None:
        probabilities = jax.nn.softmax(values, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        values = jnp.where(before < cfg.top_p, values, -jnp.inf)
    choice = jax.random.categorical(key, values, axis=-1)
    return jnp.take_along_axis(ids, choice[..., None], axis=-1)[..., 0].astype(jnp.int32)
