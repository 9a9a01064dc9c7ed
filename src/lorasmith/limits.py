"""How far an exported model may drift from the live adapter, by kind of artefact."""

from dataclasses import dataclass

ROWS = 32  # evaluation rows that an export is proven on


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a proof.

    Attributes:
        top1: Least share of positions at which both put the same token first.
        kl: Most mean Kullback-Leibler divergence of the artefact from the live adapter, in nats a token.
        loss: Most rise of the loss on the rows, in nats a token.
    """

    top1: float
    kl: float
    loss: float


@dataclass(frozen=True, slots=True)
class ScoreLimits:
    """Bounds of the proof of a reward model.

    Attributes:
        order: Least share of pairs that the artefact and the live adapter put in the same order.
        difference: Largest difference of a score, in standard deviations of the live adapter's scores.
    """

    order: float
    difference: float


SCORE_LIMITS = ScoreLimits(0.97, 0.25)
LIMITS = {
    "merged": Limits(0.97, 0.02, 0.02),
    "bnb-nf4": Limits(0.85, 0.15, 0.10),
    "bnb-int8": Limits(0.95, 0.02, 0.02),
    "torchao-int8": Limits(0.95, 0.02, 0.02),
    "torchao-int4": Limits(0.85, 0.15, 0.10),
    "gptq": Limits(0.85, 0.15, 0.10),
    "onnx": Limits(0.97, 0.02, 0.02),
    "gguf:f32": Limits(0.97, 0.02, 0.02),
    "gguf:f16": Limits(0.97, 0.02, 0.02),
    "gguf:bf16": Limits(0.96, 0.02, 0.02),
    "gguf:q8_0": Limits(0.95, 0.02, 0.02),
    "gguf:q6_k": Limits(0.93, 0.03, 0.03),
    "gguf:q5_k_m": Limits(0.90, 0.06, 0.05),
    "gguf:q4_k_m": Limits(0.85, 0.15, 0.10),
    "gguf:q4_0": Limits(0.85, 0.15, 0.10),
    "gguf-lora": Limits(0.95, 0.02, 0.02),
}
