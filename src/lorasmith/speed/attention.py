"""Attention over rows that lie one behind the other, each seeing itself alone and no mask being built.

Registered by name with transformers' own AttentionInterface. transformers 5.23 builds a (tokens x tokens) mask for such
rows under sdpa, computes all of it and repeats the keys; here a kernel for rows of unlike length does it on GPUs that
have one (torch.nn.attention.varlen), and torch's scaled_dot_product_attention row by row elsewhere.
"""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from lorasmith.speed.batches import ROWS, Span

NAME = "lorasmith_rows"
INSTEAD_OF = "sdpa"  # transformers' attention that it takes the place of
HALVES = (torch.bfloat16, torch.float16)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (1, heads, tokens, width), keys and values (1, kv heads, tokens, width).

    Args:
        given: Holds the rows' spans under `ROWS`; without them every batch entry is one row, padded on the right.

    Returns:
        Output (1, tokens, heads, width), and no weights.
    """
    spans: tuple[Span, ...] | None = given.get(ROWS)
    if spans is None:
        return _one(query, key, value, 0, scaling, dropout, sliding_window).transpose(1, 2).contiguous(), None
    shared = any(span.shared for span in spans)
    if not shared and not dropout and query.dtype in HALVES and _has_varlen(query.device):
        return _varlen(query, key, value, given, scaling, sliding_window), None
    parts = []
    for span in spans:
        before, own = slice(span.shared_start, span.shared_start + span.shared), slice(span.start, span.end)
        keys, values = key[:, :, own], value[:, :, own]
        if span.shared:
            keys, values = (torch.cat((all_[:, :, before], all_[:, :, own]), 2) for all_ in (key, value))
        part = _one(query[:, :, own], keys, values, span.shared, scaling, dropout, sliding_window)
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0], None


def _one(
    query: Tensor, key: Tensor, value: Tensor, before: int, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    """Causal attention of one row, `before` of whose keys stand before its first query."""
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    tokens = key.shape[2]
    if before or (window is not None and tokens > window):
        options["attn_mask"] = _mask(query.shape[2], tokens, window, query.device)
    else:
        options["is_causal"] = True
    return scaled_dot_product_attention(query, key, value, **options)


@functools.lru_cache(maxsize=64)
def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """True where a query sees a key, the last query standing beside the last key. The layers of a model share it."""
    here = torch.arange(keys - queries, keys, device=device)[:, None]
    there = torch.arange(keys, device=device)[None]
    seen = there <= here
    return seen if window is None else seen & (there > here - window)


@functools.cache
def _has_varlen(device: torch.device) -> bool:
    """Whether torch's kernel for rows of unlike length runs here: Ampere cards and later."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8:
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any], scaling: float | None, window: int | None
) -> Tensor:
    from torch.nn.attention import varlen

    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:  # grouped queries are an option of the kernel from torch 2.12 on only
        key, value = (one.repeat_interleave(repeats, 1) for one in (key, value))
    flat: Any = [one[0].transpose(0, 1).contiguous() for one in (query, key, value)]
    ends, longest = given["cu_seq_lens_q"], given["max_length_q"]
    left = -1 if window is None else window - 1
    kernel: Any = varlen.varlen_attn
    found: Tensor = kernel(*flat, ends, ends, longest, longest, scale=scaling, window_size=(left, 0))
    return found[None]


def use_row_attention(model: PreTrainedModel) -> None:
    """Make a loaded model attend row by row; batches must come from `lorasmith.speed.batches`."""
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
