"""What a sequence-to-sequence model writes for sources, batched by length."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from lorasmith.console import track
from lorasmith.tasks.batches import Padded
from lorasmith.tasks.forward import TOKENS, batches_by_length

LOGITS = 64 << 20  # that are made at once for scores
Written = tuple[int, str, float | None]


def generation_settings(
    model: Any, tokenizer: PreTrainedTokenizerBase, beams: int, longest: int, languages: bool
) -> GenerationConfig:
    """The model's own settings of generation, always its likeliest text, with the recipe's beams and length.

    Args:
        longest: Tokens of the longest target.
        languages: Whether the tokenizer writes a language into a target, which must then begin with it.
    """
    settings = copy.deepcopy(model.generation_config)
    settings.update(
        num_beams=beams,
        max_length=longest + 1,  # a decoder's first token is none of the target
        max_new_tokens=None,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        early_stopping=settings.early_stopping if beams > 1 else False,
        length_penalty=settings.length_penalty if beams > 1 else None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=settings.eos_token_id if settings.eos_token_id is not None else tokenizer.eos_token_id,
    )
    if languages:
        target: Any = tokenizer(text_target="a", return_tensors="pt")["input_ids"]
        begun = int(model.prepare_decoder_input_ids_from_labels(labels=target.to(model.device))[0, 0])
        first = int(target[0, 0])
        # mBART's targets end with their language, which their decoder then begins with; NLLB's begin with it.
        settings.decoder_start_token_id = begun
        settings.forced_bos_token_id = first if first in tokenizer.all_special_ids and first != begun else None
    return settings


def kept_settings(settings: GenerationConfig) -> list[str]:
    """What of a model's own settings bends what it writes, as a sentence, if anything."""
    names = ("min_length", "min_new_tokens", "no_repeat_ngram_size", "repetition_penalty", "length_penalty")
    usual = (0, None, 0, 1.0, 1.0)
    bent = [f"{name} {getattr(settings, name)}" for name, value in zip(names, usual, strict=True)
            if getattr(settings, name, value) not in (value, None)]  # fmt: skip
    return [f"generation: the base's own {', '.join(bent)} holds"] if bent else []


@torch.no_grad()
def written(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[list[int]],
    settings: GenerationConfig,
    most_rows: int,
) -> Iterator[Written]:
    """What the model writes for each source, in the order in which it is done.

    Args:
        sources: Token ids.
        most_rows: Of a batch.

    Yields:
        The index of a source, the text, and with beams its score: log-probability by length, as transformers weighs it.
    """
    was_training = model.training
    model.eval()
    left = set(range(len(sources)))
    tokens = TOKENS.get(model.device.type, TOKENS["cpu"])
    try:
        while left:
            indices = sorted(left)
            lengths = [len(sources[i]) for i in indices]
            chosen = batches_by_length(lengths, most_rows, tokens // settings.num_beams)
            try:
                for batch in track(chosen, "batches done"):
                    rows = [indices[at] for at in batch]
                    for index, text, score in _batch(model, tokenizer, sources, rows, settings):
                        left.discard(index)
                        yield index, text, score
            except torch.OutOfMemoryError:
                if most_rows == 1:
                    raise
            most_rows, tokens = max(1, most_rows // 2), max(1, tokens // 2)
    finally:
        model.train(was_training)


def _batch(
    model: Any, tokenizer: Any, sources: Sequence[list[int]], rows: list[int], settings: GenerationConfig
) -> list[Written]:
    collate = Padded(tokenizer.pad_token_id, "none")
    inputs = {
        name: value.to(model.device) for name, value in collate([{"input_ids": sources[i]} for i in rows]).items()
    }
    sequences = model.generate(**inputs, generation_config=settings, use_cache=True)
    texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
    scores = [None] * len(rows) if settings.num_beams == 1 else _scores(model, inputs, sequences, settings)
    return list(zip(rows, texts, scores, strict=True))


def _scores(
    model: Any, inputs: dict[str, torch.Tensor], sequences: torch.Tensor, settings: GenerationConfig
) -> list[float]:
    """Log-probability of each sequence by its length, as transformers' beams weigh it.

    It gives them itself only with all logits of all steps, which are gigabytes for a large vocabulary.

    Args:
        sequences: With the decoder's first token, filled up with padding, shape (rows, tokens).
    """
    stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    ended = torch.isin(sequences[:, 1:], torch.tensor(stops, device=sequences.device))
    within = ended.cumsum(1) - ended.long() == 0
    said = within.clone()
    if settings.forced_bos_token_id is not None:
        said[:, 0] = False
    if settings.forced_eos_token_id is not None and sequences.shape[1] == settings.max_length:
        said[:, -1] = False
    penalty = 1.0 if settings.length_penalty is None else settings.length_penalty
    found: list[float] = []
    vocabulary = model.get_output_embeddings().weight.shape[0]
    at_once = max(1, LOGITS // (vocabulary * sequences.shape[1]))
    for start in range(0, len(sequences), at_once):
        part = slice(start, start + at_once)
        given = {name: value[part] for name, value in inputs.items()}
        logits = model(**given, decoder_input_ids=sequences[part, :-1], use_cache=False).logits.float()
        of_tokens = logits.gather(2, sequences[part, 1:, None]).squeeze(2) - logits.logsumexp(2)
        totals = of_tokens.masked_fill(~said[part], 0.0).sum(1)
        found += (totals / within[part].sum(1) ** penalty).tolist()
    return found
