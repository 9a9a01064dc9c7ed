"""Rows that a small model finds hardest: often noise, another language, or a wrong answer."""

import numpy as np

from lorasmith.preparation import Report
from lorasmith.preparing.decide import Decision, Rows

SHOWN = 10
LONGEST = 512  # tokens of a row that are looked at
BATCH = 16
EXCERPT = 300  # characters


def by_loss(section: Report, rows: Rows, decision: Decision) -> list[dict[str, str]]:
    """The rows of highest loss a token under `report.model`, of those drawn evenly; nothing where none is named."""
    chosen = np.flatnonzero(decision.copies > 0)
    if section.model is None or not len(chosen):
        return []
    from lorasmith import hardware, models
    from lorasmith.evaluation.scores import row_losses
    from lorasmith.recipe import Model

    chosen = chosen[:: -(-len(chosen) // section.model_rows)]
    base = Model(name=section.model)
    tokenizer, _ = models.load_tokenizer(base)
    machine = hardware.find_hardware()
    model = models.load_base_model(base, "float32", "sdpa", machine.device, weight_cache=False)
    texts = [rows.text(row) for row in chosen.tolist()]
    ids = [tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"] for text in texts]
    told = [i for i, one in enumerate(ids) if len(one) > 1]
    losses = row_losses(model, [(ids[i], ids[i]) for i in told], tokenizer.pad_token_id or 0, BATCH)
    each = [one.nats / one.tokens for one in losses]
    found = sorted(zip(each, told, strict=True), reverse=True)[:SHOWN]
    median = float(np.median(each)) if each else 0.0
    return [
        {
            "place": rows.place(int(chosen[i])),
            "why": f"loss {loss:.2f} a token under {section.model}, the median is {median:.2f}",
            "text": texts[i][:EXCERPT],
        }
        for loss, i in found
    ]
