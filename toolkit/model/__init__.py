"""The policy and its reference: loading, parameter sets, log-probabilities and provenance."""

from toolkit.model.batching import batches
from toolkit.model.load import SHIPPED_MODEL, load_model
from toolkit.model.logps import PairLogps, ScoredPairs, per_token_logps
from toolkit.model.parameters import Params, check_params
from toolkit.model.perplexity import perplexity
from toolkit.model.policy import Policy
from toolkit.model.provenance import Provenance
from toolkit.model.reference import reference, reference_logps
from toolkit.model.sampling import sample_responses

__all__ = [
    "SHIPPED_MODEL",
    "PairLogps",
    "Params",
    "Policy",
    "Provenance",
    "ScoredPairs",
    "batches",
    "check_params",
    "load_model",
    "per_token_logps",
    "perplexity",
    "reference",
    "reference_logps",
    "sample_responses",
]
