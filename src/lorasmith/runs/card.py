"""The model card, written anew from run.json whenever that changes."""

from pathlib import Path
from typing import Any

WAYS = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimization (arXiv 2305.18290)",
    "kto": "Kahneman-Tversky optimization (arXiv 2402.01306)",
    "reward": "a Bradley-Terry loss on pairs of answers (arXiv 2203.02155)",
}
_CARD = """\
---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [{tags}]
---

# {name}

{method} adapter for {base_link}, trained by {way} on {rows:,} rows
({tokens:,} tokens, {share:.1%} of them trained) of {data}. It holds {trainable:,} trained parameters
({fraction:.2%} of the model); the base model is needed beside it.

## Use

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer{quantizer}

folder = "{folder}"  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForCausalLM.from_pretrained(folder{quantized})
messages = [{{"role": "user", "content": "..."}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=200)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```

Or talk to it: `python scripts/chat.py {folder}`. Ask it the way it was trained: with the chat template saved here,
which ends a turn with `{stop}`.

## How good

{scores}

## How it was made

| | |
|---|---|
| base model | {base}, revision {revision}, loaded as {quantization}, {dtype} |
| adapter | {adapter} |
| rows | {data}: {account} |
| training | {steps} updates of {batch} rows, {seconds:.0f} s on {hardware}, {speed} tokens/s |
| peak memory | {memory:.2f} GiB |
| seed | {seed} |
| software | {software} |

`recipe.yaml` holds every setting and reruns it; `audit.html` shows rows as the model saw them; `run.json` has the
fingerprints of base and rows.{remote_code}

## Limits

It inherits what its base model knows, gets wrong and is licensed for: read the base's card first. It was checked on
the rows named above and on nothing else.
"""


def write_card(folder: Path, run: dict[str, Any]) -> None:
    """Write README.md of a run folder from its run.json. Names of data files are given without their paths."""
    recipe, account, base = run["recipe"], run["data"]["train_account"], run["base"]
    adapter, model = recipe["adapter"], recipe["model"]
    options = f"rank {adapter['rank']}, alpha {adapter['alpha']:g}, dropout {adapter['dropout']:g}"
    text = _CARD.format(
        base=base["name"],
        base_link=_link(base),
        quantizer=", BitsAndBytesConfig" if model["quantization"] != "none" else "",
        quantized=_quantized(model["quantization"]),
        revision=base["revision"] or "local",
        name=folder.name,
        folder=folder.as_posix() if not folder.is_absolute() else folder.name,
        tags=", ".join(dict.fromkeys(["lora", adapter["method"], run["method"], "lorasmith"])),
        way=WAYS[run["method"]],
        method=adapter["method"],
        rows=account["trained"],
        tokens=account["tokens"],
        share=account["supervised_tokens"] / account["tokens"],
        data=run["data"]["train"],
        trainable=run["adapter"]["trainable"],
        fraction=run["adapter"]["trainable"] / run["adapter"]["total"],
        stop=run["stop_token"],
        scores=_scores(run),
        quantization=model["quantization"] if model["quantization"] != "none" else "not quantized",
        dtype=model["dtype"],
        adapter=f"{adapter['method']}, {options}, on {_targets(adapter['target_modules'])}",
        account=f"{account['read']} read, {account['trained']} trained",
        steps=run["speed"]["steps"],
        batch=recipe["run"]["effective_batch"],
        seconds=run["speed"]["seconds"],
        hardware=run["hardware"]["name"],
        speed=f"{run['speed']['tokens_per_second'] or 0:,.0f}",
        memory=run["memory"]["measured_gib"],
        seed=recipe["seed"],
        software=", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        remote_code=" **The base model runs its own code (trust_remote_code).**" if model["trust_remote_code"] else "",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _quantized(quantization: str) -> str:
    """How to load the base as the adapter was trained on it; in another precision its answers drift."""
    if quantization == "none":
        return ""
    settings = "load_in_8bit=True"
    if quantization != "int8":
        settings = f'load_in_4bit=True, bnb_4bit_quant_type="{quantization}", bnb_4bit_use_double_quant=True'
    return f", quantization_config=BitsAndBytesConfig({settings})"


def _link(base: dict[str, Any]) -> str:
    """A hub model with its page, a local one by its name alone."""
    return f"[{base['name']}](https://huggingface.co/{base['name']})" if base["revision"] else f"`{base['name']}`"


def _targets(targets: str | list[str]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _scores(run: dict[str, Any]) -> str:
    before, after = run["metrics"]["before"], run["metrics"]["after"]
    lines = ["| rows | score | base | adapter | difference (95 % interval) | |", "|---|---|---|---|---|---|"]
    if before and after:
        rows = f"{run['data']['eval_account']['trained']} held out while training"
        delta = after["eval_loss"] - before["eval_loss"]
        lines.append(f"| {rows} | loss | {before['eval_loss']:.3f} | {after['eval_loss']:.3f} | {delta:+.3f} | |")
    for evaluation in run["evaluations"]:
        rows = f"{evaluation['rows']} of {evaluation['data']}"
        for name, score in evaluation["scores"].items():
            interval = f"{score['delta']:+.3f} ({score['low']:+.3f} to {score['high']:+.3f})"
            values = f"{score['base']:.3f} | {score['adapter']:.3f} | {interval} | {score['verdict']}"
            lines.append(f"| {rows} | {name} | {values} |")
    return "\n".join(lines) if len(lines) > 2 else "Not evaluated yet: `python scripts/eval.py FOLDER --data ROWS`."
