"""Greedy answers of a causal model: finished rows leave, waiting ones take their place, a shared prefix is read once.

transformers' generate keeps a batch together until its last row ends. Here rows are independent: each has its own
positions and its own columns of one key-value cache, so that the answers are those of each row alone.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from lorasmith.memory.machine import free_memory

CACHE_SHARE = 0.25  # of the free memory, for keys and values
MOST_ROWS = {"cpu": 24}  # a CPU is slower with more, whose states leave its cache; elsewhere MANY
MANY = 128
SHORTEST_PREFIX = 16  # tokens that all prompts begin with, from which on reading them once is worth it
LEAVING = 0.2  # of a batch: finished rows that are taken out together
ROOM = 64  # columns by which a cache grows
# Settings of a generation_config under which the next token is not simply the likeliest.
ALTERING = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "watermarking_config": None,
    "stop_strings": None,
}


class RoomyLayer(DynamicLayer):
    """transformers' growing layer of a cache, with room for more columns, so that a token copies nothing."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.held: list[Any] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add columns of shape (rows, heads, tokens, width); all columns so far come back."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.held or self.held[0].shape[-2] < end:
            before: Any = (self.keys, self.values)
            self.held = [
                torch.cat((old, old.new_empty(*new.shape[:2], end - start + ROOM, new.shape[-1])), -2)
                if start
                else new.new_empty(*new.shape[:2], end + ROOM, new.shape[-1])
                for old, new in zip(before, (key_states, value_states), strict=True)
            ]
        for held, new in zip(self.held, (key_states, value_states), strict=True):
            held[:, :, start:end] = new
        self.keys, self.values = (held[:, :, :end] for held in self.held)
        return self.keys, self.values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Hold other columns."""
        self.keys, self.values, self.held = keys, values, []


class Rows:
    """The rows that are being answered.

    Attributes:
        indices: Their indices among the prompts.
        mask: Which columns of the cache are each one's own, (rows, columns).
        positions: Of each one's next token, (rows,).
        tokens: Each one's last token, not yet in the cache, (rows,).
    """

    def __init__(self, cache: Any, indices: list[int], mask: Tensor, positions: Tensor, tokens: Tensor):
        self.cache, self.indices = cache, indices
        self.mask, self.positions, self.tokens = mask, positions, tokens

    def keep(self, chosen: list[int]) -> None:
        """Take the others out, and columns that are nobody's any more."""
        at = torch.tensor(chosen, dtype=torch.long, device=self.mask.device)
        self.indices = [self.indices[i] for i in chosen]
        self.mask, self.positions, self.tokens = (one[at] for one in (self.mask, self.positions, self.tokens))
        used = self.mask.any(0).nonzero()
        first = int(used[0]) if len(used) else 0
        self.mask = self.mask[:, first:]
        for layer in self.cache.layers:
            layer.replace(*(one[at, :, first:] for one in (layer.keys, layer.values)))

    def join(self, others: "Rows") -> None:
        """Take other rows in, the narrower cache being filled up on the left."""
        width = max(self.mask.shape[1], others.mask.shape[1])
        pads = [width - one.mask.shape[1] for one in (self, others)]
        pad = torch.nn.functional.pad
        self.indices += others.indices
        self.mask = torch.cat([pad(one.mask, (n, 0)) for one, n in zip((self, others), pads, strict=True)])
        self.positions = torch.cat((self.positions, others.positions))
        self.tokens = torch.cat((self.tokens, others.tokens))
        for ours, theirs in zip(self.cache.layers, others.cache.layers, strict=True):
            both = ((ours.keys, theirs.keys), (ours.values, theirs.values))
            ours.replace(
                *(torch.cat([pad(one, (0, 0, n, 0)) for one, n in zip(pair, pads, strict=True)]) for pair in both)
            )


def steady(model: Any) -> bool:
    """Whether rows can be answered one by one: the next token is the likeliest, and the cache is plain columns."""
    settings = model.generation_config
    if model.config.is_encoder_decoder or any(
        getattr(settings, name, usual) not in (usual, None) for name, usual in ALTERING.items()
    ):
        return False
    peft_type = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    if peft_type or not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        return False
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return False
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def fitting_rows(model: Any, tokens: int) -> int:
    """How many rows of up to `tokens` tokens to answer at a time, by what a cache of them takes of the free memory."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * tokens
    free = torch.cuda.mem_get_info()[0] if model.device.type == "cuda" else free_memory()
    return int(max(1, min(MOST_ROWS.get(model.device.type, MANY), CACHE_SHARE * free // row)))


def stop_ids(model: Any) -> list[int]:
    """Tokens that end an answer, as the model's generation_config lists them."""
    stops = model.generation_config.eos_token_id
    return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch: int | None = None,
) -> Iterator[tuple[int, str]]:
    """What the model answers to each prompt, most likely token first, up to a stop token, as answers are finished.

    An answer ends where the model has no positions for more, too.

    Args:
        prompts: Token ids of each prompt, the assistant's turn already opened.
        batch: Rows at a time; None: as many as a quarter of the free memory has room for.

    Yields:
        The index of a prompt and its answer.
    """
    model.eval()
    waiting = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rows = batch or fitting_rows(model, max(map(len, prompts), default=1) + max_new_tokens)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    budgets = [int(max(1, min(max_new_tokens, positions - len(prompt)))) for prompt in prompts]
    left = set(waiting)
    produce = _steadily if steady(model) else _in_batches
    while left:
        try:
            for index, ids in produce(model, tokenizer, prompts, [i for i in waiting if i in left], budgets, rows):
                left.discard(index)
                yield index, str(tokenizer.decode(ids, skip_special_tokens=True))
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows = max(1, rows // 2)


def _in_batches(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], waiting: list[int], budgets: list[int], batch: int
) -> Iterator[tuple[int, list[int]]]:
    """transformers' own generate, on batches of like length."""
    for start in range(0, len(waiting), batch):
        chosen = waiting[start : start + batch]
        ids, mask = _padded([prompts[i] for i in chosen], tokenizer.pad_token_id, model.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=min(budgets[i] for i in chosen),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )
        yield from zip(chosen, out[:, ids.shape[1] :].tolist(), strict=True)


def _padded(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts, filled up on the left, each (rows, tokens)."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def _steadily(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], waiting: list[int], budgets: list[int], batch: int
) -> Iterator[tuple[int, list[int]]]:
    """Rows that leave when they end, others taking their place."""
    stops = set(stop_ids(model))
    prefix = _prefix(model, [prompts[i] for i in waiting])
    found: dict[int, list[int]] = {index: [] for index in waiting}
    rows: Rows | None = None
    while waiting or rows:
        free = batch - (len(rows.indices) if rows else 0)
        ended: set[int] = set()
        if waiting and free >= max(1, int(LEAVING * batch)):
            chosen, waiting = waiting[:free], waiting[free:]
            fresh = _read(model, tokenizer, [prompts[i] for i in chosen], chosen, prefix)
            ended = _note(fresh, found, ended, stops, budgets)
            if rows is None:
                rows = fresh
            else:
                rows.join(fresh)
        assert rows is not None
        leaving = max(1, int(LEAVING * len(rows.indices)))
        while len(ended) < leaving:
            _step(model, rows)
            ended |= _note(rows, found, ended, stops, budgets)
        yield from ((index, found.pop(index)) for index in ended)
        alive = [at for at, index in enumerate(rows.indices) if index not in ended]
        if alive:
            rows.keep(alive)
        else:
            rows = None


def _note(rows: Rows, found: dict[int, list[int]], ended: set[int], stops: set[int], budgets: list[int]) -> set[int]:
    """Add each row's newest token to its answer; the indices of those that end with it."""
    ending = set()
    for index, token in zip(rows.indices, rows.tokens.tolist(), strict=True):
        if index not in ended:
            found[index].append(token)
            if token in stops or len(found[index]) >= budgets[index]:
                ending.add(index)
    return ending


def _step(model: Any, rows: Rows) -> None:
    """One more token of each row."""
    rows.mask = torch.nn.functional.pad(rows.mask, (0, 1), value=True)
    logits = model(
        input_ids=rows.tokens[:, None],
        attention_mask=_seen(rows.mask, model),
        position_ids=rows.positions[:, None],
        past_key_values=rows.cache,
        use_cache=True,
    ).logits
    rows.tokens = logits[:, -1].argmax(-1)
    rows.positions = rows.positions + 1


def _seen(mask: Tensor, model: Any) -> Tensor | None:
    """Which columns a next token sees, (rows, 1, 1, columns), as the model's attention takes it; None: all."""
    if mask.all():
        return None
    wide = mask[:, None, None]
    if model.config._attn_implementation == "sdpa":
        return wide
    return torch.zeros_like(wide, dtype=model.dtype).masked_fill_(~wide, torch.finfo(model.dtype).min)


def _prefix(model: Any, prompts: list[list[int]]) -> tuple[int, Any]:
    """How many tokens all prompts begin with, and their cache, where reading them once is worth it."""
    first, last = min(prompts), max(prompts)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    shared = min(shared, min(map(len, prompts)) - 1)
    if shared < SHORTEST_PREFIX or len(prompts) < 2:
        return 0, None
    cache = _cache(model)
    model(input_ids=torch.tensor([first[:shared]], device=model.device), past_key_values=cache, use_cache=True)
    return shared, cache


def _cache(model: Any) -> Any:
    """An empty cache with room."""
    cache: Any = DynamicCache(config=model.config.get_text_config())
    cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache


def _read(model: Any, tokenizer: Any, prompts: list[list[int]], indices: list[int], prefix: tuple[int, Any]) -> Rows:
    """Read prompts into a cache of their own; their first tokens come with it."""
    shared, known = prefix
    cache = _cache(model)
    ids, mask = _padded([prompt[shared:] for prompt in prompts], tokenizer.pad_token_id, model.device)
    if shared:
        for layer, one in zip(cache.layers, known.layers, strict=True):
            layer.update(*(t.expand(len(prompts), -1, -1, -1) for t in (one.keys, one.values)))
        mask = torch.cat((mask.new_ones(len(prompts), shared), mask), 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(
        input_ids=ids,
        attention_mask=None if mask.all() else mask,
        position_ids=positions[:, shared:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return Rows(cache, indices, mask.bool(), positions[:, -1] + 1, out.logits[:, -1].argmax(-1))
