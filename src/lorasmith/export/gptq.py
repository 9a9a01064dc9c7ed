"""A plain model with its matrices at 4 bit by GPTQ (arXiv 2210.17323), which looks at rows to choose the rounding."""

import contextlib
import importlib.metadata
import importlib.util
import io
import os
from collections.abc import Sequence
from pathlib import Path

from lorasmith.errors import LorasmithError, ModelError
from lorasmith.export.files import beside, copy_tokenizer, needs, plain_model

BITS, GROUP = 4, 128  # bits of a weight; weights that share a scale
LEAST = 8  # rows: fewer say too little about the layers' inputs
SPARE = 16 << 20  # bytes for the tokenizer and configs


def to_gptq(
    model: Path, out: Path, rows: Sequence[Sequence[int]], bits: int = BITS, group_size: int = GROUP, batch: int = 1
) -> Path:
    """Quantize a merged model with GPTQ on rows of the kind that it will see.

    Args:
        model: Folder of a plain model.
        out: The folder to make; it must not exist.
        rows: Token ids, each row as the model was trained on it; 128 or more are usual.
        bits: 2, 3, 4 or 8.
        group_size: Weights that share a scale; -1: a whole row. It must divide the rows of the model's matrices.
        batch: Rows at a time.

    Returns:
        `out`, which transformers opens where gptqmodel and optimum are installed.

    Raises:
        ModelError: If the model or the rows cannot be used.
        LorasmithError: If gptqmodel is not installed or one that needs another torch.
        FitError: If the disk is too small.
    """
    if bits not in (2, 3, 4, 8):
        raise ModelError(f"GPTQ with {bits} bits is unknown; expected 2, 3, 4 or 8.")
    source = plain_model(model)
    vocabulary = source.config.get("vocab_size")
    if len(rows) < LEAST or not all(rows):
        raise ModelError(
            f"GPTQ needs {LEAST} rows or more, none of them empty, to see the layers' inputs; got {len(rows)}."
        )
    if vocabulary is not None and not all(0 <= token < vocabulary for row in rows for token in row):
        raise ModelError(f"{model}: the rows for GPTQ hold tokens that its vocabulary of {vocabulary} lacks.")
    narrow = [
        name
        for name, shape in source.shapes.items()
        if len(shape) == 2 and group_size > 0 and name.endswith("_proj.weight") and shape[1] % group_size
    ]
    if narrow:
        raise ModelError(
            f"{model}: {narrow[0]} does not divide into groups of {group_size}. Take a smaller group size."
        )
    _check_package()
    outside = source.num_weights - source.num_linear
    needed = source.num_linear * (bits / 8 + 4 / max(group_size, 32)) + outside * min(source.width, 4) + SPARE
    with beside(out, needed) as place:
        # On one or two cores its pool of threads dies: "requests 2 workers but parent 'cpu' only has 1".
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
        # Its hundreds of lines and its logs/ in the working folder stay away; what it raises does not.
        folder, result = model.resolve(), place.resolve()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(place.parent):
            from gptqmodel import GPTQModel, QuantizeConfig

            # Without device=, which sends it down another path on a CPU; it takes the GPU if there is one.
            loaded = GPTQModel.load(str(folder), QuantizeConfig(bits=bits, group_size=group_size))
            inputs = [{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in rows]
            loaded.quantize(inputs, batch_size=batch)
            loaded.save(str(result))
        copy_tokenizer(model, place)
    return out


def _check_package() -> None:
    """Refuse before any work what the package would fail at.

    Raises:
        LorasmithError: If gptqmodel is missing or is one that needs a newer torch than this.
    """
    if importlib.util.find_spec("gptqmodel") is None:
        raise needs("gptqmodel", "gptq", ", which compiles for 3 minutes")
    version = importlib.metadata.version("gptqmodel")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) >= (7, 7):
        raise LorasmithError(f"gptqmodel {version} needs another torch. Install it: pip install 'gptqmodel<7.7'.")
