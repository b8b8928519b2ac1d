"""How alike the model finds the two responses: the CHES family and its baselines."""

from toolkit.similarities.ches import ches_tokens, similarity

__all__ = ["ches_tokens", "similarity"]
