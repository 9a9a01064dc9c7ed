"""Languages that a tokenizer writes into texts, as those of mBART, NLLB and M2M100 do."""

import difflib
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorasmith.errors import ModelError

SHOWN = 8  # languages in an error


def set_languages(tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None) -> None:
    """Make a tokenizer write these languages, for good: it is saved with them. None keeps what it came with.

    Raises:
        ModelError: If it writes none, knows one of them not, or came without one that is not given.
    """
    named = {"source": source, "target": target}
    attributes = {"source": "src_lang", "target": "tgt_lang"}
    if not has_languages(tokenizer):
        for side, language in named.items():
            if language is not None:
                raise ModelError(
                    f"task.{side}_language is `{language}`; the tokenizer writes no language into texts. Drop it; "
                    "what the model must be told goes into task.prefix."
                )
        return
    known = _known(tokenizer)
    for side, language in named.items():
        language = language or tokenizer.init_kwargs.get(attributes[side])
        if language is None:
            some = ", ".join(known[:SHOWN])
            raise ModelError(
                f"task.{side}_language is missing; the tokenizer writes it into each {side}. Set it to one of {some}, "
                f"... ({len(known)} in all)."
            )
        if language not in known:
            close = difflib.get_close_matches(language, known, n=1, cutoff=0.1)
            raise ModelError(
                f"task.{side}_language is `{language}`, which the tokenizer does not know. Did you mean `{close[0]}`?"
                if close
                else f"task.{side}_language is `{language}`, which the tokenizer does not know."
            )
        setattr(tokenizer, attributes[side], language)
        tokenizer.init_kwargs[attributes[side]] = language  # what save_pretrained writes


def has_languages(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer writes the languages of source and target."""
    return hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")


def languages_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What task.json keeps."""
    if not has_languages(tokenizer):
        return {}
    both: Any = tokenizer
    return {"source_language": both.src_lang, "target_language": both.tgt_lang}


def _known(tokenizer: Any) -> list[str]:
    by_name = getattr(tokenizer, "lang_code_to_token", None) or getattr(tokenizer, "lang_code_to_id", None)
    if by_name:
        return sorted(by_name)
    return sorted(token for token in tokenizer.all_special_tokens if "_" in token)
