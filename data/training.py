"""Tokenizer, packing, pretraining and supervised tuning of the tiny model."""

import math
import random
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 1024
VOCABULARY = 4096
EOS, PAD = "<|endoftext|>", "<|pad|>"
PAD_ID, UNSCORED = 1, -100
ROLES = ("system", "user", "assistant")
END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user or assistant, not ' ~ message['role']) }}"
    "{% endif %}"
    "{{ '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer that encodes any text and adds no BOS or EOS itself."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    extra = [f"<|{role}|>" for role in ROLES] + [END]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[EOS, PAD, *extra],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=extra,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Returns the untrained decoder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def render(document: str | list[dict[str, str]], tokenizer) -> str:
    """Returns the training text of a document; messages go through the chat template."""
    if isinstance(document, str):
        return document
    return tokenizer.apply_chat_template(document, tokenize=False)


Batch = tuple[torch.Tensor, torch.Tensor]


def pad(rows: list[tuple[list[int], int]]) -> Batch:
    """Right-pads token lists; the number beside each says how many first tokens are not scored."""
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), width), PAD_ID)
    targets = torch.full_like(inputs, UNSCORED)
    for row, (ids, unscored) in enumerate(rows):
        inputs[row, : len(ids)] = torch.tensor(ids)
        targets[row, unscored : len(ids)] = inputs[row, unscored : len(ids)]
    return inputs, targets


def single_batches(documents: Iterator[list[int]], eos: int, tokens: int) -> Iterator[Batch]:
    """Yields batches of one document a row, of similar length, about `tokens` tokens each."""
    rng = random.Random(0)
    while True:
        found = [[*ids, eos][:CONTEXT] for ids in islice(documents, 1024)]
        batches, rows = [], []
        for ids in sorted(found, key=len):
            if rows and (len(rows) + 1) * len(ids) > tokens:
                batches.append(rows)
                rows = []
            rows.append((ids, 0))
        rng.shuffle(batches)
        yield from map(pad, batches)


def packed_batches(documents: Iterator[list[int]], eos: int, tokens: int) -> Iterator[Batch]:
    """Yields batches of full rows, several documents a row."""
    rows = pack(documents, eos)
    while True:
        yield pad([(next(rows), 0) for _ in range(tokens // CONTEXT)])


def mixed_batches(documents: Iterator[list[int]], eos: int, tokens: int) -> Iterator[Batch]:
    """Yields three batches of single documents, then a packed one, so that far positions train."""
    single = single_batches(documents, eos, tokens)
    packed = packed_batches(documents, eos, tokens)
    while True:
        yield from islice(single, 3)
        yield next(packed)


def pack(documents: Iterable[list[int]], eos: int) -> Iterator[list[int]]:
    """Joins token lists with EOS into rows of CONTEXT tokens; every row starts a document."""
    row: list[int] = []
    for ids in documents:
        row += [*ids, eos]
        if len(row) >= CONTEXT:
            yield row[:CONTEXT]
            row = []


Optimizers = list[torch.optim.Optimizer]


def _adamw(parameters: list, lr: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def _muon_and_adamw(model, lr: float) -> Optimizers:
    """Muon for the matrices of the layers, which it trains about twice as fast, AdamW elsewhere."""
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return [muon, _adamw(rest, lr)]


def _set_rate(optimizers: Optimizers, lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def _cosine(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _step(model, optimizers: Optimizers, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Takes one optimiser step on the mean next-token loss over the scored targets."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def pretrain(model, batches: Iterator[Batch], *, steps: int, lr: float) -> dict:
    """Pretrains on batches; returns what was measured."""
    model.train()
    optimizers = _muon_and_adamw(model, lr)
    start, cpu, losses, tokens = time.monotonic(), time.process_time(), [], 0
    for step, (inputs, targets) in enumerate(islice(batches, steps)):
        _set_rate(optimizers, lr * _cosine(step, steps, warmup=30))
        losses.append(_step(model, optimizers, inputs, targets))
        tokens += int((targets != UNSCORED).sum())
        if (step + 1) % 100 == 0:
            spent = time.monotonic() - start
            print(f"step {step + 1}/{steps} loss {_tail(losses):.3f} {spent:.0f} s", flush=True)
    model.eval()
    return {
        "steps": steps,
        "tokens": tokens,
        "loss": round(_tail(losses), 4),
        "seconds": round(time.monotonic() - start),
        "processor_seconds": round(time.process_time() - cpu),
    }


def _tail(losses: list[float]) -> float:
    last = losses[-100:]
    return sum(last) / len(last)


def completion_ids(prompt, response: str, tokenizer) -> tuple[list[int], list[int]]:
    """Returns the token ids of a prompt and of its response with the closing token."""
    if isinstance(prompt, str):
        closing = [tokenizer.eos_token_id]
        return tokenizer(prompt)["input_ids"], tokenizer(response)["input_ids"] + closing
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return tokenizer(text)["input_ids"], tokenizer(f"{response}{END}")["input_ids"]


def tune(model, tokenizer, examples: list, *, batch: int, lr: float, seed: int) -> dict:
    """Tunes for one pass over prompt/response examples, scoring the responses alone."""
    model.train()
    optimizers = [_adamw(list(model.parameters()), lr)]
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    steps, start, losses = len(examples) // batch, time.monotonic(), []
    for step in range(steps):
        _set_rate(optimizers, lr * _cosine(step, steps, warmup=10))
        chosen = [examples[i] for i in order[step * batch : (step + 1) * batch]]
        encoded = [completion_ids(*example, tokenizer) for example in chosen]
        rows = [(prompt + response, len(prompt)) for prompt, response in encoded]
        losses.append(_step(model, optimizers, *pad(rows)))
    model.eval()
    return {
        "steps": steps,
        "examples": steps * batch,
        "loss": round(_tail(losses), 4),
        "seconds": round(time.monotonic() - start),
    }
