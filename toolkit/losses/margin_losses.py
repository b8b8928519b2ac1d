"""The losses themselves, each a function of scalar log-probabilities that reads as its formula.

What a name in a signature means is in ``quantities``; token sums are in nats. Every function stays
finite, and so do its slopes, where log-probabilities are thousands of nats apart.
"""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from toolkit.losses.table import loss_row

# 1 − P below this is rounding of P, and ORPO divides by it.
SMALLEST = 2.0**-52


@loss_row(
    "−log σ(β·Δ), Δ = chosen logratio − rejected logratio",
    "arXiv 2305.18290, Eq. 7",
    "1",
    trl="sigmoid",
)
def dpo(delta, *, beta=0.1):
    return -logsigmoid(beta * delta)


@loss_row(
    "−(1−ε)·log σ(β·Δ) − ε·log σ(−β·Δ)",
    "E. Mitchell, note on DPO with noisy preferences (2023); no arXiv id",
    "1; both weights change sign once σ(β·Δ) > 1−ε",
)
def cdpo(delta, *, beta=0.1, epsilon=0.1):
    u = beta * delta
    return -(1 - epsilon) * logsigmoid(u) - epsilon * logsigmoid(-u)


@loss_row(
    "[−(1−ε)·log σ(β·Δ) + ε·log σ(−β·Δ)] / (1−2ε)",
    "arXiv 2403.00409",
    "1; the weights never fall below β·ε/(1−2ε)",
    trl="robust",
)
def robust(delta, *, beta=0.1, epsilon=0.1):
    u = beta * delta
    return (-(1 - epsilon) * logsigmoid(u) + epsilon * logsigmoid(-u)) / (1 - 2 * epsilon)


@loss_row(
    "−log σ(β·Δ + α·(chosen_length − rejected_length))",
    "arXiv 2403.19159",
    "1; the lengths change only the common size of both weights",
)
def rdpo(delta, chosen_length, rejected_length, *, beta=0.1, alpha=0.2):
    return -logsigmoid(beta * delta + alpha * (chosen_length - rejected_length))


@loss_row(
    "(Δ − 1/(2τ))², token sums",
    "arXiv 2310.12036, Eq. 17",
    "1; both weights turn negative once Δ > 1/(2τ)",
)
def ipo(delta, *, tau=0.1):
    return (delta - 1 / (2 * tau)) ** 2


@loss_row(
    "(chosen logratio/chosen_length − rejected logratio/rejected_length − 1/(2β))²",
    "arXiv 2310.12036, Eq. 17 with the averages that TRL uses",
    "rejected_length / chosen_length; both weights turn negative past the target",
    trl="ipo",
)
def ipo_avg(chosen_mean_logratio, rejected_mean_logratio, *, beta=0.1):
    return (chosen_mean_logratio - rejected_mean_logratio - 1 / (2 * beta)) ** 2


@loss_row(
    "−log σ(β·chosen_logps/chosen_length − β·rejected_logps/rejected_length − γ)",
    "arXiv 2405.14734",
    "rejected_length / chosen_length",
    trl="simpo",
    trainer="CPOTrainer",
)
def simpo(chosen_mean, rejected_mean, *, beta=0.1, gamma=0.5):
    # TRL's defaults; the paper's own β is about twenty times as large.
    return -logsigmoid(beta * (chosen_mean - rejected_mean) - gamma)


@loss_row(
    "max(0, rejected_logps/rejected_length − chosen_logps/chosen_length) − λ·chosen_logps",
    "arXiv 2304.05302",
    "rejected_length/chosen_length + λ·rejected_length; d_rejected = 0 once ranked correctly",
)
def rrhf(chosen_logps, chosen_mean, rejected_mean, *, lam=1.0):
    return torch.relu(rejected_mean - chosen_mean) - lam * chosen_logps


@loss_row(
    "max(0, δ − chosen_logps + rejected_logps) − λ·chosen_logps",
    "arXiv 2305.10425",
    "1 + λ; d_rejected = 0 past the margin δ",
)
def slic(chosen_logps, rejected_logps, *, delta=1.0, lam=1.0):
    return torch.relu(delta - chosen_logps + rejected_logps) - lam * chosen_logps


@loss_row(
    "max(0, 1 − β·Δ)",
    "arXiv 2309.06657; the hinge of arXiv 2305.10425 on log-ratios",
    "1; both weights are 0 past the margin",
    trl="hinge",
)
def hinge(delta, *, beta=0.1):
    return torch.relu(1 - beta * delta)


@loss_row(
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


@loss_row(
    "−log σ(β·[Δ − λ·max(0, −chosen logratio)])",
    "arXiv 2402.13228",
    "1 + λ while the chosen response is below the reference, else 1",
)
def dpop(chosen_logratio, rejected_logratio, *, beta=0.1, lam=50.0):
    fallen = torch.relu(-chosen_logratio)
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio - lam * fallen))


@loss_row(
    "λ_c·σ(z − β·chosen logratio) + λ_r·σ(β·rejected logratio − z), z held constant",
    "arXiv 2402.01306, Eq. 7, both responses of a pair together",
    "λ_c·σ'(β·chosen logratio − z) / (λ_r·σ'(z − β·rejected logratio)): damps the settled side",
    trl="kto",
    trainer="KTOTrainer",
)
def kto(
    chosen_logratio,
    rejected_logratio,
    *,
    beta=0.1,
    z=0.0,
    desirable_weight=1.0,
    undesirable_weight=1.0,
):
    # TRL's mean is over single responses, so its weights are half of these; z is its β·KL.
    chosen = torch.sigmoid(z - beta * chosen_logratio)
    rejected = torch.sigmoid(beta * rejected_logratio - z)
    return desirable_weight * chosen + undesirable_weight * rejected


@loss_row(
    "(chosen logratio − 1/(2β))² + (rejected logratio + 1/(2β))²",
    "arXiv 2405.00675, Eq. 4.7 with win probabilities 1 and 0",
    "(1/(2β) − chosen logratio) / (1/(2β) + rejected logratio): above 1 once both fell alike",
    trl="sppo_hard",
)
def sppo(chosen_logratio, rejected_logratio, *, beta=0.1):
    target = 1 / (2 * beta)
    return (chosen_logratio - target) ** 2 + (rejected_logratio + target) ** 2


@loss_row(
    "−chosen_logps/chosen_length − λ·log σ(o_c − o_r), o = log(P/(1−P)), P = exp(logps/length)",
    "arXiv 2403.07691, Eqs. 4 and 7",
    "not 1: the first term usually dominates",
    trl="orpo",
    trainer="ORPOTrainer",
)
def orpo(chosen_mean, rejected_mean, *, lam=0.1):
    return -chosen_mean - lam * logsigmoid(_log_odds(chosen_mean) - _log_odds(rejected_mean))


@loss_row(
    "−log σ(β·Δ) − α·chosen_logps/chosen_length",
    "arXiv 2404.19733",
    "1 + α/(chosen_length·β·σ(−β·Δ)): grows without bound as the margin grows",
    trl="['sigmoid', 'sft']",
)
def rpo(delta, chosen_mean, *, beta=0.1, alpha=1.0):
    return -logsigmoid(beta * delta) - alpha * chosen_mean


@loss_row(
    "−log σ(β·chosen logratio − δ) − log σ(δ − β·rejected logratio)",
    "arXiv 2404.04656",
    "σ(δ − β·chosen logratio) / σ(β·rejected logratio − δ): rises as both fall",
    trl="bco_pair",
)
def bco(chosen_logratio, rejected_logratio, *, beta=0.1, delta=0.0):
    # δ is a running mean of rewards in the paper; TRL's paired form has none.
    chosen, rejected = beta * chosen_logratio - delta, delta - beta * rejected_logratio
    return -logsigmoid(chosen) - logsigmoid(rejected)


@loss_row(
    "−log σ(u_c) − ½·log σ(−u_c) − ½·log σ(−u_r), u = β·logratio",
    "arXiv 2402.05369",
    "1 at the reference; d_chosen turns negative once u_c > log 2",
    trl="nca_pair",
)
def nca(chosen_logratio, rejected_logratio, *, beta=0.1):
    chosen, rejected = beta * chosen_logratio, beta * rejected_logratio
    return -logsigmoid(chosen) - logsigmoid(-chosen) / 2 - logsigmoid(-rejected) / 2


@loss_row(
    "σ(−β·chosen logratio) + σ(β·rejected logratio)",
    "arXiv 2408.06266, Eq. 7",
    "σ'(β·chosen logratio) / σ'(β·rejected logratio): damps the side that moved further",
    trl="apo_zero",
)
def apo_zero(chosen_logratio, rejected_logratio, *, beta=0.1):
    return torch.sigmoid(-beta * chosen_logratio) + torch.sigmoid(beta * rejected_logratio)


@loss_row(
    "σ(β·chosen logratio) + σ(−β·Δ)",
    "arXiv 2408.06266, Eq. 8",
    "1 − σ'(β·chosen logratio)/σ'(β·Δ): 0 at the reference, and at most 1",
    trl="apo_down",
)
def apo_down(chosen_logratio, delta, *, beta=0.1):
    return torch.sigmoid(beta * chosen_logratio) + torch.sigmoid(-beta * delta)


@loss_row(
    "KL between (σ(β·Δ), σ(−β·Δ)) and (1−ε, ε)",
    "arXiv 2402.00856, Eq. 16",
    "1; both weights turn negative once σ(β·Δ) > 1−ε, and vanish at far margins",
    trl="exo_pair",
    epsilon=pd.Interval(0, 0.5, closed="neither"),
)
def exo(delta, *, beta=0.1, epsilon=1e-3):
    u = beta * delta
    agrees = torch.sigmoid(u) * (logsigmoid(u) - math.log1p(-epsilon))
    return agrees + torch.sigmoid(-u) * (logsigmoid(-u) - math.log(epsilon))


@loss_row(
    "−(1−σ(u/τ))·log σ(u) + σ(u/τ)·exp(−u), u = β·Δ",
    "arXiv 2406.08414, Eq. 5",
    "1; for small τ both weights are negative on a stretch around u = 0 (not convex)",
    trl="discopop",
    tau=pd.Interval(0, 1),
)
def discopop(delta, *, beta=0.1, tau=0.05):
    u = beta * delta
    # Written as a product, the exponential overflows where its factor is already zero.
    return -torch.sigmoid(-u / tau) * logsigmoid(u) + torch.exp(logsigmoid(u / tau) - u)


@loss_row(
    "−log σ(β·(chosen logratio/chosen_length − rejected logratio/rejected_length))",
    "arXiv 2411.15124",
    "rejected_length / chosen_length",
    trl="sigmoid_norm",
)
def dpo_norm(chosen_mean_logratio, rejected_mean_logratio, *, beta=0.1):
    return -logsigmoid(beta * (chosen_mean_logratio - rejected_mean_logratio))


@loss_row(
    "−chosen_logps / chosen_length",
    "maximum likelihood on the chosen response; TRL averages over the batch's chosen tokens",
    "undefined: d_rejected = 0",
    trl="sft",
)
def sft(chosen_mean):
    return -chosen_mean


def _log_odds(mean_logp: Tensor) -> Tensor:
    """``log(P/(1−P))`` of ``P = exp(mean_logp)``, with 1 − P kept above rounding."""
    # The floor moves the value alone: the slope stays that of a P just below 1.
    below_one = mean_logp + (mean_logp.clamp(max=-SMALLEST) - mean_logp).detach()
    return below_one - torch.log(-torch.expm1(below_one))
