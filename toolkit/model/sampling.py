"""Responses drawn from the policy itself, as on-policy preference data are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from toolkit.checks import check_seed, positive, shown, whole
from toolkit.model.forward import evaluation
from toolkit.model.inputs import check_policy
from toolkit.model.policy import Policy
from toolkit.model.turns import alone

BATCH = 32


@alone
def sample_responses(
    policy: Policy,
    prompts: Sequence[str | Sequence[Mapping[str, str]]],
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    batch_size: int = BATCH,
    seed: int = 0,
) -> pd.DataFrame:
    """Draw one response y ~ π_T(·|x) per prompt, token by token from the whole vocabulary.

    No top-k, no nucleus and no penalty, whatever the model's own generation settings say; only
    its end tokens are taken from there. Each prompt has random numbers of its own, from ``seed``
    and its place in the list: a draw does not depend on the batch size or on the other prompts'
    lengths beyond rounding, and global random states stay untouched.

    Args:
        policy: The model.
        prompts: Text, or a list of messages, which goes through the chat template. To draw
            several responses for a prompt, name it several times.
        temperature: T in softmax(logits / T).
        max_new_tokens: Longest response, its end token included.
        batch_size: Prompts drawn at once.
        seed: Seed of the random numbers.

    Returns:
        One row per prompt: ``response`` (without special tokens), ``tokens`` (drawn, the end token
        included), ``finished`` (whether an end token was drawn). ``attrs`` holds the settings.

    Raises:
        ValueError: If a prompt is of another kind, empty, or too long for the context, or an
            argument is not allowed.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("refusals", limit=2)
        >>> tk.sample_responses(policy, [pair.prompt for pair in pairs])["finished"].tolist()
        [True, True]
    """
    check_policy(policy)
    positive("temperature", temperature)
    whole("max_new_tokens", max_new_tokens)
    whole("batch_size", batch_size)
    check_seed(seed)
    ids = [_prompt_ids(policy, i, prompt) for i, prompt in enumerate(_listed(prompts))]
    room = policy.context_length
    for i, row in enumerate(ids):
        if room and len(row) + max_new_tokens > room:
            raise ValueError(
                f"prompts[{i}] has {len(row)} tokens: with max_new_tokens={max_new_tokens} that is "
                f"more than the context of {room}"
            )
    draws = _uniform(len(ids), max_new_tokens, seed)
    found = []
    with evaluation(policy.model), torch.no_grad():
        for i in range(0, len(ids), batch_size):
            part = slice(i, min(i + batch_size, len(ids)))
            found += _drawn(policy, ids[part], draws[part], float(temperature))
    frame = pd.DataFrame(found, columns=["response", "tokens", "finished"])
    frame.attrs.update(
        model=policy.name, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
    )
    return frame


def _listed(prompts: Sequence) -> list:
    one = isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence)
    if one or not len(prompts) or isinstance(prompts[0], Mapping):
        raise ValueError(
            "prompts must be a list of texts or of lists of messages, such as "
            f"[pair.prompt for pair in pairs], received {shown(prompts)}"
        )
    return list(prompts)


def _prompt_ids(policy: Policy, i: int, prompt) -> list[int]:
    if isinstance(prompt, str):
        ids = policy.tokenizer(prompt)["input_ids"]
    elif isinstance(prompt, list | tuple) and all(isinstance(m, Mapping) for m in prompt):
        messages = [dict(message) for message in prompt]
        try:
            text = policy.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program and can fail in any way
            raise ValueError(f"prompts[{i}]: the chat template refuses it: {error}") from error
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        raise ValueError(f"prompts[{i}] must be text or a list of messages, received {prompt!r}")
    if not ids:
        raise ValueError(f"prompts[{i}] has no token to begin from")
    return ids


def _uniform(rows: int, length: int, seed: int) -> Tensor:
    """Return the random numbers of each row, ``[rows, length]``, float64.

    The seeds of the rows are drawn themselves, so that neighbouring seeds share no rows.
    """
    of_rows = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (rows,), generator=of_rows).tolist()
    draws = [
        torch.rand(length, dtype=torch.float64, generator=torch.Generator().manual_seed(s))
        for s in seeds
    ]
    return torch.stack(draws)


def _drawn(policy: Policy, ids: list[list[int]], draws: Tensor, temperature: float) -> list[tuple]:
    from transformers import GenerationConfig, LogitsProcessorList

    device, width = policy.model.get_input_embeddings().weight.device, max(map(len, ids))
    inputs = torch.zeros(len(ids), width, dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for row, one in enumerate(ids):
        inputs[row, width - len(one) :] = torch.tensor(one)
        mask[row, width - len(one) :] = 1
    ends = policy.model.generation_config.eos_token_id
    ends = policy.tokenizer.eos_token_id if ends is None else ends
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=draws.shape[1],
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    made = policy.model.generate(
        inputs.to(device),
        attention_mask=mask.to(device),
        generation_config=settings,
        logits_processor=LogitsProcessorList([_Picked(draws.to(device), width, temperature)]),
    )
    return [_response(policy, row, ends) for row in made[:, width:].tolist()]


def _response(policy: Policy, ids: list[int], ends: list[int]) -> tuple[str, int, bool]:
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    text = policy.tokenizer.decode(ids[:end], skip_special_tokens=True)
    return text, len(ids) if end is None else end + 1, end is not None


class _Picked:
    """Leaves greedy search the one token that the row's next random number picks."""

    def __init__(self, draws: Tensor, width: int, temperature: float):
        self.draws, self.width, self.temperature = draws, width, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        below = scores.double() - scores.max(-1, keepdim=True).values  # no overflow when T is tiny
        shares = (below / self.temperature).softmax(-1).cumsum(-1)
        number = self.draws[:, input_ids.shape[1] - self.width, None] * shares[:, -1:]
        token = torch.searchsorted(shares, number, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)
