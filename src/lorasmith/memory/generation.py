"""Memory of completions that a model makes before it is trained on them, as trl's GRPOTrainer has it, in bytes.

Counted as read in transformers 5.23 (generate, DynamicCache, sdpa) and peft 0.21, and measured on a CPU.
"""

from dataclasses import dataclass, replace
from typing import Any

from lorasmith.memory.shape import Linear, Shape
from lorasmith.recipe import Recipe
from lorasmith.recipe_checks import group_size

SCORES = 12  # bytes of a logit's copies in float32: itself, its probability, a random number to pick by


@dataclass(frozen=True, slots=True)
class Generation:
    """How completions are made.

    Attributes:
        group: Completions of one prompt.
        prompt: Tokens of the longest prompt to train on, or to evaluate on.
        completion: Tokens of the longest completion.
        processes: Over which a group may be spread.
        steps: Micro-batches whose completions are made at once; 0: those of an update.
        said: What the recipe says of that: steps, size (the completions of all processes, under `size`), or nothing.
        scores: Bytes of a logit's copies while a token is picked.
        reference: Whether a reference reads the completions, before they are trained on.
        corrected: Whether the policy reads them too, since another program made them.
        iterations: Updates that are trained on the same completions.
        shared: Whether completions of one prompt in a micro-batch lie behind it together.
        beside: Bytes of other models in memory, by name.
        elsewhere: Whether vLLM makes the completions, with a cache of its own.
    """

    group: int
    prompt: int
    completion: int
    processes: int = 1
    steps: int = 0
    said: str = ""
    size: int = 0
    scores: int = SCORES
    reference: bool = False
    corrected: bool = False
    iterations: int = 1
    shared: bool = False
    beside: tuple[tuple[str, int], ...] = ()
    elsewhere: bool = False

    def choices(self, micro_batch: int, accumulation: int) -> list[int]:
        """The micro-batches whose completions may be made at once, most first: whole groups over all processes."""
        every = micro_batch * self.processes
        found = [step for step in range(accumulation, 0, -1) if accumulation % step == 0]
        if self.said == "steps":
            found = [self.steps]
        elif self.said == "size":
            found = [] if self.size % every else [self.size // every]
        return [step for step in found if every * step % self.group == 0]

    def made_at_once(self, steps: int) -> "Generation":
        """The same with the completions of so many micro-batches made at once."""
        return replace(self, steps=steps)

    def readings(self, accumulation: int, steps: int) -> int:
        """Forward passes of a micro-batch without gradients: the reference's, and the policy's own of before.

        trl needs the latter where updates and generations do not meet, or where another program made the completions.
        """
        return self.reference + (self.corrected or accumulation % (steps * self.iterations) != 0)

    def smaller(self, lengths: tuple[int, ...]) -> list[list[tuple[str, Any]]]:
        """Recipe keys with lower values, each list of which is a choice: length, group, and what is made at once."""
        said = {"steps": ("trainer.steps_per_generation", self.steps)}
        key, now = (said | {"size": ("trainer.generation_batch_size", self.size)}).get(self.said, ("", 0))
        groups = [self.group // by for by in (2, 4) if self.group % by == 0 and self.group // by > 1]
        return [
            [("trainer.max_completion_length", length) for length in lengths if length < self.completion],
            [("trainer.num_generations", group) for group in groups],
            [(key, now // by) for by in (2, 4, 8) if now and now % by == 0],
        ]

    def changes(self, overrides: dict[str, Any], lengths: tuple[int, ...], eval_longest: int) -> dict[str, Any]:
        """What recipe keys of `smaller` change of a setting."""
        completion = overrides.get("trainer.max_completion_length", self.completion)
        changed = replace(
            self,
            completion=completion,
            group=overrides.get("trainer.num_generations", self.group),
            steps=overrides.get("trainer.steps_per_generation", self.steps),
            size=overrides.get("trainer.generation_batch_size", self.size),
        )
        less = self.completion - completion
        found: dict[str, Any] = {"generation": changed, "lengths": tuple(length - less for length in lengths)}
        found |= {"longest": found["lengths"][0], "supervised": completion}
        return found | ({"eval_longest": eval_longest - less} if eval_longest else {})

    def prompts(self, micro_batch: int, steps: int) -> int:
        """Different prompts of a micro-batch, at most: trl shuffles what is made at once."""
        made = micro_batch * steps
        whole = -(-made // self.group)
        return min(micro_batch, whole + (self.processes > 1 and made % self.group > 1))


def generation_of(recipe: Recipe, prompt: int, completion: int, processes: int = 1, shared: bool = False) -> Generation:
    """How a recipe of grpo.py has completions made.

    Args:
        prompt: Tokens of the longest prompt.
        completion: Tokens of the longest completion.
        shared: Whether completions of one prompt lie behind it together.
    """
    trainer = recipe.trainer
    steps, size = int(trainer.get("steps_per_generation") or 0), int(trainer.get("generation_batch_size") or 0)
    iterations = int(trainer.get("num_iterations") or 1)
    vllm = bool(trainer.get("use_vllm"))
    return Generation(
        group=group_size(trainer),
        prompt=prompt,
        completion=completion,
        processes=processes,
        steps=steps,
        said="steps" if steps else "size" if size else "",
        size=size,
        scores=scores_bytes(trainer),
        reference=bool(trainer.get("beta")),
        corrected=vllm and bool(trainer.get("vllm_importance_sampling_correction", True)),
        iterations=iterations,
        shared=shared,
        elsewhere=vllm,
    )


def scores_bytes(trainer: dict[str, Any]) -> int:
    """Bytes of a logit's copies while a token is picked, by the recipe's way of sampling (measured)."""
    cut = 22 if (trainer.get("top_p") or 1) < 1 else 9 if trainer.get("min_p") else 5 if trainer.get("top_k") else 0
    repeated = 8 if (trainer.get("repetition_penalty") or 1) != 1 else 0
    return SCORES + 4 * ((trainer.get("temperature") or 1) != 1) + max(cut, repeated)


def cache_bytes(shape: Shape, completions: int, tokens: int, itemsize: int) -> int:
    """Keys and values of all blocks; a window that some of them have is not counted on."""
    return shape.layers * completions * tokens * 2 * shape.kv_heads * shape.head_dim * itemsize


def making(
    shape: Shape, one: Generation, completions: int, itemsize: int, targets: tuple[Linear, ...], unpacked: int
) -> dict[str, int]:
    """What is held at once to make completions, besides weights: as prompts are read, or at the last token.

    Args:
        targets: Linear layers of a block whose adapter makes a product of its own.
        unpacked: Bytes of the largest weight once unpacked, 0 where nothing is quantized.
    """
    if one.elsewhere:
        return {}
    read = {
        "cache": cache_bytes(shape, completions, one.prompt, itemsize),
        "transient": prompt_bytes(shape, completions, one.prompt, itemsize, targets, unpacked),
    }
    last = one.prompt + one.completion - 1
    # A block's keys lie there twice as they grow by a token.
    cache = cache_bytes(shape, completions, last, itemsize)
    cache += completions * last * shape.kv_heads * shape.head_dim * itemsize
    ended = {"cache": cache, "sampling": max(unpacked, completions * shape.vocab * (itemsize + one.scores))}
    return max(read, ended, key=lambda parts: sum(parts.values()))


def prompt_bytes(
    shape: Shape, rows: int, tokens: int, itemsize: int, targets: tuple[Linear, ...], unpacked: int
) -> int:
    """The most that a block holds as it reads padded rows without gradients, its input and its mask included."""
    narrow = itemsize == 2
    wide = shape.heads * shape.head_dim
    inner = max(shape.inner, shape.hidden)
    adapted = any(one.reads in ("mlp", "product") for one in targets)
    # Embeddings, the block's input, attention's sum and its norm; positions; peft's copy of the input in float32.
    held = shape.hidden * (4 * itemsize + 4 * (narrow and adapted)) + 2 * shape.head_dim * itemsize + 16
    mlp = 2 * inner * itemsize
    # The adapter's product and its sum with the layer's; else what gate and up give, multiplied, beside both.
    product = inner * (2 * 4 if adapted else itemsize)
    # Queries, keys, values with one of each head's own, and the result; the mask turned into one of numbers.
    attention = itemsize * (3 * wide + 2 * shape.kv_heads * shape.head_dim + wide + tokens)
    mask = tokens
    block = max(rows * tokens * (mlp + product), rows * tokens * mlp + unpacked, rows * tokens * attention)
    return rows * tokens * (held + mask) + block
