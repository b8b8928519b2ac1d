"""The losses themselves: one function a row, of scalar log-probabilities (see ``losses``).

``chosen_logps`` and ``rejected_logps`` are token sums in nats; the log-ratios are those minus the
reference's, and Δ is the chosen log-ratio minus the rejected one. Every function stays finite, and
so do its slopes, where log-probabilities are thousands of nats apart.
"""

from __future__ import annotations

import math
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from toolkit.losses._loss_row import Loss, row

# TRL's losses that are no function of one pair; asking for one says why.
BATCH_LOSSES = {
    "aot": "it sorts the chosen − rejected differences of the whole batch, and those of the "
    "reference, before it compares them",
    "aot_unpaired": "it sorts the chosen and the rejected log-ratios of the whole batch before it "
    "compares them",
}
# 1 − P below this is rounding of P, and ORPO divides by it.
SMALLEST = 2.0**-52

LOSSES: dict[str, Loss] = {}
_row = partial(row, LOSSES)


@_row(
    "−log σ(β·Δ), Δ = chosen logratio − rejected logratio",
    "arXiv 2305.18290, Eq. 7",
    "1",
    trl="sigmoid",
)
def dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    return -logsigmoid(
        beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    )


@_row(
    "−(1−ε)·log σ(β·Δ) − ε·log σ(−β·Δ)",
    "E. Mitchell, note on DPO with noisy preferences (2023); no arXiv id",
    "1; both weights change sign once σ(β·Δ) > 1−ε",
)
def cdpo(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, epsilon=0.1
):
    u = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    return -(1 - epsilon) * logsigmoid(u) - epsilon * logsigmoid(-u)


@_row(
    "[−(1−ε)·log σ(β·Δ) + ε·log σ(−β·Δ)] / (1−2ε)",
    "arXiv 2403.00409",
    "1; the weights never fall below β·ε/(1−2ε)",
    trl="robust",
)
def robust(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, epsilon=0.1
):
    u = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    return (-(1 - epsilon) * logsigmoid(u) + epsilon * logsigmoid(-u)) / (1 - 2 * epsilon)


@_row(
    "−log σ(β·Δ + α·(chosen_length − rejected_length))",
    "arXiv 2403.19159",
    "1; the lengths change only the common size of both weights",
)
def rdpo(
    chosen_logps,
    rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    chosen_length,
    rejected_length,
    *,
    beta=0.1,
    alpha=0.2,
):
    delta = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
    return -logsigmoid(beta * delta + alpha * (chosen_length - rejected_length))


@_row(
    "(Δ − 1/(2τ))², token sums",
    "arXiv 2310.12036, Eq. 17",
    "1; both weights turn negative once Δ > 1/(2τ)",
)
def ipo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, tau=0.1):
    delta = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
    return (delta - 1 / (2 * tau)) ** 2


@_row(
    "(chosen logratio/chosen_length − rejected logratio/rejected_length − 1/(2β))²",
    "arXiv 2310.12036, Eq. 17 with the averages that TRL uses",
    "rejected_length / chosen_length; both weights turn negative past the target",
    trl="ipo",
)
def ipo_avg(
    chosen_logps,
    rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    chosen_length,
    rejected_length,
    *,
    beta=0.1,
):
    chosen = (chosen_logps - ref_chosen_logps) / chosen_length
    rejected = (rejected_logps - ref_rejected_logps) / rejected_length
    return (chosen - rejected - 1 / (2 * beta)) ** 2


@_row(
    "−log σ(β·chosen_logps/chosen_length − β·rejected_logps/rejected_length − γ)",
    "arXiv 2405.14734",
    "rejected_length / chosen_length",
    trl="simpo",
    trainer="CPOTrainer",
)
def simpo(chosen_logps, rejected_logps, chosen_length, rejected_length, *, beta=0.1, gamma=0.5):
    # TRL's defaults; the paper's own β is about twenty times as large.
    margin = chosen_logps / chosen_length - rejected_logps / rejected_length
    return -logsigmoid(beta * margin - gamma)


@_row(
    "max(0, rejected_logps/rejected_length − chosen_logps/chosen_length) − λ·chosen_logps",
    "arXiv 2304.05302",
    "rejected_length/chosen_length + λ·rejected_length; d_rejected = 0 once ranked correctly",
)
def rrhf(chosen_logps, rejected_logps, chosen_length, rejected_length, *, lam=1.0):
    rank = torch.relu(rejected_logps / rejected_length - chosen_logps / chosen_length)
    return rank - lam * chosen_logps


@_row(
    "max(0, δ − chosen_logps + rejected_logps) − λ·chosen_logps",
    "arXiv 2305.10425",
    "1 + λ; d_rejected = 0 past the margin δ",
)
def slic(chosen_logps, rejected_logps, *, delta=1.0, lam=1.0):
    return torch.relu(delta - chosen_logps + rejected_logps) - lam * chosen_logps


@_row(
    "max(0, 1 − β·Δ)",
    "arXiv 2309.06657; the hinge of arXiv 2305.10425 on log-ratios",
    "1; both weights are 0 past the margin",
    trl="hinge",
)
def hinge(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    delta = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
    return torch.relu(1 - beta * delta)


@_row(
    "−log σ(β·(chosen_logps − rejected_logps)) − α·chosen_logps",
    "arXiv 2401.08417, Eq. 3",
    "1 + α/(β·σ(−u)), u the argument of σ: grows without bound as the margin grows",
    trl="sigmoid",
    trainer="CPOTrainer",
)
def cpo(chosen_logps, rejected_logps, *, beta=0.1, alpha=1.0):
    # TRL averages the second term over the batch's chosen tokens: its cpo_alpha is this α times
    # the mean chosen length.
    return -logsigmoid(beta * (chosen_logps - rejected_logps)) - alpha * chosen_logps


@_row(
    "−log σ(β·[Δ − λ·max(0, −chosen logratio)])",
    "arXiv 2402.13228",
    "1 + λ while the chosen response is below the reference, else 1",
)
def dpop(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, lam=50.0):
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return -logsigmoid(beta * (chosen - rejected - lam * torch.relu(-chosen)))


@_row(
    "λ_c·σ(z − β·chosen logratio) + λ_r·σ(β·rejected logratio − z), z held constant",
    "arXiv 2402.01306, Eq. 7, both responses of a pair together",
    "λ_c·σ'(β·chosen logratio − z) / (λ_r·σ'(z − β·rejected logratio)): damps the settled side",
    trl="kto",
    trainer="KTOTrainer",
)
def kto(
    chosen_logps,
    rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    *,
    beta=0.1,
    z=0.0,
    desirable_weight=1.0,
    undesirable_weight=1.0,
):
    # TRL's mean is over single responses, so its weights are half of these; z is its β·KL.
    chosen = torch.sigmoid(z - beta * (chosen_logps - ref_chosen_logps))
    rejected = torch.sigmoid(beta * (rejected_logps - ref_rejected_logps) - z)
    return desirable_weight * chosen + undesirable_weight * rejected


@_row(
    "(chosen logratio − 1/(2β))² + (rejected logratio + 1/(2β))²",
    "arXiv 2405.00675, Eq. 4.7 with win probabilities 1 and 0",
    "(1/(2β) − chosen logratio) / (1/(2β) + rejected logratio): above 1 once both fell alike",
    trl="sppo_hard",
)
def sppo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    target = 1 / (2 * beta)
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return (chosen - target) ** 2 + (rejected + target) ** 2


@_row(
    "−chosen_logps/chosen_length − λ·log σ(o_c − o_r), o = log(P/(1−P)), P = exp(logps/length)",
    "arXiv 2403.07691, Eqs. 4 and 7",
    "not 1: the first term usually dominates",
    trl="orpo",
    trainer="ORPOTrainer",
)
def orpo(chosen_logps, rejected_logps, chosen_length, rejected_length, *, lam=0.1):
    chosen, rejected = chosen_logps / chosen_length, rejected_logps / rejected_length
    return -chosen - lam * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


@_row(
    "−log σ(β·Δ) − α·chosen_logps/chosen_length",
    "arXiv 2404.19733",
    "1 + α/(chosen_length·β·σ(−β·Δ)): grows without bound as the margin grows",
    trl="['sigmoid', 'sft']",
)
def rpo(
    chosen_logps,
    rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    chosen_length,
    *,
    beta=0.1,
    alpha=1.0,
):
    delta = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
    return -logsigmoid(beta * delta) - alpha * chosen_logps / chosen_length


@_row(
    "−log σ(β·chosen logratio − δ) − log σ(δ − β·rejected logratio)",
    "arXiv 2404.04656",
    "σ(δ − β·chosen logratio) / σ(β·rejected logratio − δ): rises as both fall",
    trl="bco_pair",
)
def bco(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, delta=0.0):
    # δ is a running mean of rewards in the paper; TRL's paired form has none.
    chosen = beta * (chosen_logps - ref_chosen_logps)
    rejected = beta * (rejected_logps - ref_rejected_logps)
    return -logsigmoid(chosen - delta) - logsigmoid(delta - rejected)


@_row(
    "−log σ(u_c) − ½·log σ(−u_c) − ½·log σ(−u_r), u = β·logratio",
    "arXiv 2402.05369",
    "1 at the reference; d_chosen turns negative once u_c > log 2",
    trl="nca_pair",
)
def nca(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    chosen = beta * (chosen_logps - ref_chosen_logps)
    rejected = beta * (rejected_logps - ref_rejected_logps)
    return -logsigmoid(chosen) - logsigmoid(-chosen) / 2 - logsigmoid(-rejected) / 2


@_row(
    "σ(−β·chosen logratio) + σ(β·rejected logratio)",
    "arXiv 2408.06266, Eq. 7",
    "σ'(β·chosen logratio) / σ'(β·rejected logratio): damps the side that moved further",
    trl="apo_zero",
)
def apo_zero(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    chosen = torch.sigmoid(-beta * (chosen_logps - ref_chosen_logps))
    return chosen + torch.sigmoid(beta * (rejected_logps - ref_rejected_logps))


@_row(
    "σ(β·chosen logratio) + σ(−β·Δ)",
    "arXiv 2408.06266, Eq. 8",
    "1 − σ'(β·chosen logratio)/σ'(β·Δ): 0 at the reference, and at most 1",
    trl="apo_down",
)
def apo_down(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


@_row(
    "KL between (σ(β·Δ), σ(−β·Δ)) and (1−ε, ε)",
    "arXiv 2402.00856, Eq. 16",
    "1; both weights turn negative once σ(β·Δ) > 1−ε, and vanish at far margins",
    trl="exo_pair",
    epsilon=pd.Interval(0, 0.5, closed="neither"),
)
def exo(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, epsilon=1e-3
):
    u = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    agrees = torch.sigmoid(u) * (logsigmoid(u) - math.log1p(-epsilon))
    return agrees + torch.sigmoid(-u) * (logsigmoid(-u) - math.log(epsilon))


@_row(
    "−(1−σ(u/τ))·log σ(u) + σ(u/τ)·exp(−u), u = β·Δ",
    "arXiv 2406.08414, Eq. 5",
    "1; for small τ both weights are negative on a stretch around u = 0 (not convex)",
    trl="discopop",
    tau=pd.Interval(0, 1),
)
def discopop(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, tau=0.05
):
    u = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    # Written as a product, the exponential overflows where its factor is already zero.
    return -torch.sigmoid(-u / tau) * logsigmoid(u) + torch.exp(logsigmoid(u / tau) - u)


@_row(
    "−log σ(β·(chosen logratio/chosen_length − rejected logratio/rejected_length))",
    "arXiv 2411.15124",
    "rejected_length / chosen_length",
    trl="sigmoid_norm",
)
def dpo_norm(
    chosen_logps,
    rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    chosen_length,
    rejected_length,
    *,
    beta=0.1,
):
    chosen = (chosen_logps - ref_chosen_logps) / chosen_length
    rejected = (rejected_logps - ref_rejected_logps) / rejected_length
    return -logsigmoid(beta * (chosen - rejected))


@_row(
    "−chosen_logps / chosen_length",
    "maximum likelihood on the chosen response; TRL averages over the batch's chosen tokens",
    "undefined: d_rejected = 0",
    trl="sft",
)
def sft(chosen_logps, chosen_length):
    return -chosen_logps / chosen_length


def _log_odds(mean_logp: Tensor) -> Tensor:
    """``log(P/(1−P))`` of ``P = exp(mean_logp)``, with 1 − P kept above rounding."""
    # The floor moves the value alone: the slope stays that of a P just below 1.
    below_one = mean_logp + (mean_logp.clamp(max=-SMALLEST) - mean_logp).detach()
    return below_one - torch.log(-torch.expm1(below_one))
