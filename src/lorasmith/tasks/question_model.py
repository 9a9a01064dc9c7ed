"""What an answer finder's model needs around it: token types, which peft leaves out, and no answers in the padding."""

from typing import Any

import torch
from peft import PeftModel


def pass_token_types(model: Any) -> None:
    """Give an adapted model the token types that it is called with, as the merged one gets them.

    peft 0.21's PeftModelForQuestionAnswering takes token_type_ids and leaves them out where it calls the model. To go
    when it hands them on.
    """
    if not isinstance(model, PeftModel):
        return
    types: list[torch.Tensor] = []

    def take(_: Any, args: Any, given: dict[str, Any]) -> None:
        types[:] = [given["token_type_ids"]] if given.get("token_type_ids") is not None else []

    def add(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, given | ({"token_type_ids": types.pop()} if types else {})

    model.register_forward_pre_hook(take, with_kwargs=True)
    model.base_model.register_forward_pre_hook(add, with_kwargs=True)


def hide_padding(model: Any) -> None:
    """Take what fills a batch up out of the choice of tokens.

    Both softmaxes go over all tokens of a row, so that else a row's loss would depend on the longest of its batch.
    """

    def hide(_: Any, args: Any, given: dict[str, Any], found: Any) -> Any:
        mask = given.get("attention_mask")
        for name in ("start_logits", "end_logits") if mask is not None else ():
            found[name] = found[name].masked_fill(mask == 0, torch.finfo(found[name].dtype).min)
        return found

    model.register_forward_hook(hide, with_kwargs=True)
