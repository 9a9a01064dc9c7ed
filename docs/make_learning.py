"""Writes docs/learning.md: the settings that decide how fast a run learns, where they come from, and what was measured.

python docs/make_learning.py > docs/learning.md
"""

import json
import math
import sys
from pathlib import Path

from lorasmith.recipe import load_recipe

ROOT = Path(__file__).parent.parent
# Test losses at these learning rates, of thinking-machines-lab/tinker-cookbook at 9dfcc3a,
# recipes/chat_sl/results/sft_sweep.md: Tulu 3, rank 16, 128 rows an update, 780 updates.
RATES = (1e-4, 3e-4, 1e-3)
SWEEP_ROWS = 128
SWEEP = {
    "Llama-3.2-1B": (0.8297, 0.8038, 0.7948),
    "Llama-3.2-3B": (0.6936, 0.6737, 0.6661),
    "Llama-3.1-8B-Instruct": (0.5837, 0.5750, 0.5809),
    "Qwen3-4B-Instruct-2507": (0.5730, 0.5651, 0.5631),
    "Qwen3-8B": (0.5520, 0.5438, 0.5405),
}

INTRODUCTION = """\
# Learning: which settings, why, and what was measured

What the recipes set, and where it comes from. The sources measured real models; this project has measured its embedded
default alone (below).

| setting | default | why | source |
|---|---|---|---|
| `adapter.target_modules` | all-linear | attention alone learns less, even with as many parameters | [1], [2] |
| `adapter.alpha` | 32 at any rank | scaled by alpha / rank, the best learning rate hardly moves with the rank | [1] |
| `adapter.rank` | 16 | enough while there are no more trained tokens than parameters: 42M on 8B | [3] |
| `trainer.learning_rate` | 2e-4 or 3e-4 | ten times that of full fine-tuning; by model, below | [1], [2], [4] |
| `run.effective_batch` | 16 | LoRA loses more than full fine-tuning does when an update has many rows; under 32 | [1] |
| `adapter.dropout` | 0 | LoRA as one step needs 0; PEFT's comparison [5] has 0 too, [2] had 0.1 up to 13B | ours |
| `adapter.method` | lora | rsLoRA is LoRA with alpha times the root of the rank: a larger step | [5] |
| `adapter.loraplus_lr_ratio` | off | up to twice as fast says [6]; here like any larger step | [6], below |
| schedule | cosine, 10 warm-up | a decay forgives a rate a little too high; [1] and [2] hold it constant | ours |

1. LoRA Without Regret, thinkingmachines.ai/blog/lora (Llama 3 and Qwen3, Tulu 3 and OpenThoughts 3; alpha 32)
2. QLoRA, arXiv 2305.14314: all linear layers, 2e-4 up to 13B and 1e-4 above, 16 rows, rank 64, alpha 16
3. tinker-docs.thinkingmachines.ai/lora-primer
4. thinking-machines-lab/tinker-cookbook at 9dfcc3a, recipes/chat_sl/results/sft_sweep.md
5. rsLoRA, arXiv 2312.03732. In PEFT's method comparison (huggingface/peft at 5d602fd, Llama-3.2-3B on GSM8K, learning
   rate 1e-4) rank 64 reaches 0.513 with it and 0.474 without: scale 8 against 2, at a rate that is low
6. LoRA+, arXiv 2402.12354

## The learning rate by model

[4] trained with 128 rows an update, rank 16, the output layer adapted too. A parabola through its losses at 1e-4, 3e-4
and 1e-3 gives the best; its rule that the rate goes with the root of the rows an update carries it to the recipe's 16.
That is a prediction, not a measurement: try yours with `trainer.learning_rate=...` and an evaluation set.
"""
MEASURED = """
3e-4 where that is nearer to the best than 2e-4 (Llama 3.2 was swept before instruction tuning; Qwen3-0.6B goes with
its family), else 2e-4: from [2], for DoRA from its authors at the same rank, alpha and rows an update (NVlabs/DoRA,
commonsense_reasoning, LLaMA2-7B). At four times the rows an update, double the rate.

## Measured here

`python benchmarks/learns.py`: recipes/quickstart.yaml with one thing changed; updates, and seconds of CPU time on one
thread, until the held-out loss first falls to a target, looked at after every fourth update; mean of two seeds, and
range. Before training it is 3.5; at 0.1 the answers have their form (97 % of the tokens are right), at 0.01 nearly all
are right. All have 120 updates but where rows or epochs say otherwise; the base has 4 bit but where it says 16.
"""
FOLLOWS = """
- **The step decides.** Three times the rate, twice alpha, rsLoRA, LoRA+, PiSSA and OLoRA need half to four fifths of
  the updates to 0.01; a third of the rate does not get there, nor does ten times. Where a run learns too slowly, raise
  the rate first: it costs nothing.
- **All linear layers** need the fewest updates; attention alone 40 % more, the MLP alone nearly twice as many, and q
  and v, peft's own default for Llama, do not get there.
- **Rank** 4 to 64 at alpha 32 learn alike. Alpha that grows with the rank is a larger step, not a better rank.
- **Rows an update**: 8 need as many updates as 16, so half the rows and little more than half the time; 32 and 64 run
  out of updates in the same epochs.
- **DoRA** learns like LoRA, update for update, in half as much time again.

The quickstart keeps its settings, which reach its score. With rsLoRA two epochs end where four do now.

What a model of 1.1M parameters shows is the order of things, not their size: its best rate is ten times too high for
one of a billion, and rows this alike forgive much. No real model has been measured here.
"""


def main() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import learns

    print(INTRODUCTION)
    print("| recipe | learning rate | best by the sweep | loss above it at 1e-4 | 2e-4 | 3e-4 | 5e-4 |")
    print("|---|---|---|---|---|---|---|")
    for path in sorted((ROOT / "recipes/sft").glob("*.yaml")):
        print(line(path))
    print(MEASURED)
    print(learns.table(json.loads((ROOT / "benchmarks/learns.json").read_text())))
    print(FOLLOWS, end="")


def line(path: Path) -> str:
    """A recipe's learning rate beside what the sweep of its model says of others."""
    recipe = load_recipe(path, [])
    base = recipe.model.name.rpartition("/")[2]
    losses = SWEEP.get(base) or SWEEP.get(base.removesuffix("-Instruct"))
    cells = ["no sweep", "", "", "", ""]
    if losses:
        scale = math.sqrt(SWEEP_ROWS / recipe.run.effective_batch)
        best, curvature = parabola(losses)
        above = [curvature * (math.log10(rate * scale) - best) ** 2 for rate in (1e-4, 2e-4, 3e-4, 5e-4)]
        cells = [short(10**best / scale), *(f"{one:.4f}" for one in above)]
    return f"| {path.stem} | {short(recipe.trainer['learning_rate'])} | {' | '.join(cells)} |"


def short(rate: float) -> str:
    return f"{rate:.1e}".replace("e-0", "e-").replace(".0e", "e")


def parabola(losses: tuple[float, float, float]) -> tuple[float, float]:
    """Through three losses over log10 of the learning rate: the place of its minimum, and its curvature."""
    (x1, x2, x3), (y1, y2, y3) = (math.log10(rate) for rate in RATES), losses
    first, second = (y2 - y1) / (x2 - x1), (y3 - y2) / (x3 - x2)
    curvature = (second - first) / (x3 - x1)
    return (x1 + x2) / 2 - first / (2 * curvature), curvature


if __name__ == "__main__":
    main()
