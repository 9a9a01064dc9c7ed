"""How long an answer is.

rewards:
  - {function: rewards/length.py:within, most: 200}
  - {function: rewards/length.py:not_overlong, most: 512, margin: 128}
"""

from lorasmith.rewards.texts import text_of


def within(completions, completion_ids, most, least=1, unit="words", **columns):
    """1 where the completion has `least` to `most` characters, words or tokens, its stop token counted."""
    if unit not in ("characters", "words", "tokens"):
        raise ValueError(f"unit is {unit!r}; expected characters, words or tokens")
    if unit == "tokens":
        sizes = [len(ids) for ids in completion_ids]
    else:
        texts = [text_of(completion) for completion in completions]
        sizes = [len(text if unit == "characters" else text.split()) for text in texts]
    return [float(least <= size <= most) for size in sizes]


def not_overlong(completion_ids, most, margin, **columns):
    """0 up to `most` - `margin` tokens, falling to -1 at `most` and beyond (DAPO, arXiv 2503.14476, equation 13)."""
    from trl.rewards import get_soft_overlong_punishment

    return get_soft_overlong_punishment(most, margin)(completion_ids)
