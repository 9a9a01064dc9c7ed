"""The model card, written anew from run.json whenever that changes."""

from pathlib import Path
from typing import Any

from lorasmith.runs.task_uses import task_use
from lorasmith.upstream import CAUSAL, TASKS

WAYS = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimization (arXiv 2305.18290)",
    "orpo": "odds ratio preference optimization (arXiv 2403.07691; an experimental trainer of trl's)",
    "cpo": "contrastive preference optimization (arXiv 2401.08417; an experimental trainer of trl's)",
    "kto": "Kahneman-Tversky optimization (arXiv 2402.01306)",
    "reward": "a Bradley-Terry loss on pairs of answers (arXiv 2203.02155)",
    "grpo": "group relative policy optimization of its own answers (arXiv 2402.03300)",
    "text_classification": "cross entropy of labelled texts",
    "token_classification": "cross entropy of labelled words",
    "question_answering": "cross entropy of where answers begin and end in their contexts",
    "seq2seq": "cross entropy of targets behind their sources",
}
LEAN = "bias_stereotype"
GAINED, LIKELIER = "preferred answer gained more probability", "preferred answer is the likelier one"
# What an evaluation says of preferences: its key, and what it is the share of.
ACCURACIES = {
    "dpo": ("eval_rewards/accuracies", GAINED),
    "orpo": ("eval_rewards/accuracies", LIKELIER),
    "cpo": ("eval_rewards/accuracies", LIKELIER),
    "kto": ("eval_rewards/accuracies", "wanted answer gained more than an unwanted one"),
    "reward": ("eval_accuracy", "preferred answer scores higher"),
}
_USE = """\
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
which ends a turn with `{stop}`."""
_USE_SCORER = """\
## Use

```python
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer{quantizer}

folder = "{folder}"  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1{quantized})
messages = [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()  # up to the answer's stop token
with torch.no_grad():
    print(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item())
```

Or score a file of rows: `python scripts/reward.py {folder} --score rows.jsonl`. The head stands in the adapter, beside
the LoRA. It is read at a row's last token, `{stop}`; for rows side by side set
`model.config.pad_token_id = tokenizer.pad_token_id`. Scores compare answers to one prompt, a higher one being
preferred; they have no zero and no unit of their own."""
_CARD = """\
---
base_model: {base}
library_name: peft
pipeline_tag: {pipeline}
tags: [{tags}]
---

# {name}

{method} adapter for {base_link}, trained by {way} on {rows:,} {kind}
({amount}) of {data}. It holds {trainable:,} trained parameters
({fraction:.2%} of the model); the base model is needed beside it.

{use}

## How good

{scores}

## How it was made

| | |
|---|---|
| base model | {base}, revision {revision}, loaded as {quantization}, {dtype} |
| adapter | {adapter} |
| rows | {data}: {account} |
| training | {steps} updates of {batch}, {seconds:.0f} s on {hardware}, {speed} tokens/s |
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
    is_scorer = run["method"] == "reward"
    is_task = run["method"] in TASKS
    use = (task_use(run) if is_task else _USE_SCORER if is_scorer else _USE).format(
        folder=folder.as_posix() if not folder.is_absolute() else folder.name,
        quantizer=", BitsAndBytesConfig" if model["quantization"] != "none" else "",
        quantized=_quantized(model["quantization"]),
        stop=run["stop_token"],
    )
    is_policy, streamed = run["method"] == "grpo", recipe["data"].get("streaming")
    trained_rows = run["speed"]["steps"] * recipe["run"]["effective_batch"] if streamed else account["trained"]
    text = _CARD.format(
        use=use,
        kind="prompts" if is_policy else "rows",
        amount=_amount(run),
        pipeline=TASKS[run["method"]].pipeline if is_task else "text-classification" if is_scorer else CAUSAL.pipeline,
        base=base["name"],
        base_link=_link(base),
        revision=base["revision"] or "local",
        name=folder.name,
        tags=", ".join(dict.fromkeys(["lora", adapter["method"], run["method"], "lorasmith"])),
        way=WAYS[run["method"]],
        method=adapter["method"],
        rows=trained_rows,
        data=run["data"]["train"],
        trainable=run["adapter"]["trainable"],
        fraction=run["adapter"]["trainable"] / run["adapter"]["total"],
        scores=_scores(run),
        quantization=model["quantization"] if model["quantization"] != "none" else "not quantized",
        dtype=model["dtype"],
        adapter=f"{adapter['method']}, {options}, on {_targets(adapter['target_modules'])}",
        account=f"streamed, {trained_rows} trained" if streamed else f"{account['read']} read, {trained_rows} trained",
        steps=run["speed"]["steps"],
        batch=f"{recipe['run']['effective_batch']} {'completions' if is_policy else 'rows'}",
        seconds=run["speed"]["seconds"],
        hardware=run["hardware"]["name"],
        speed=f"{run['speed']['tokens_per_second'] or 0:,.0f}",
        memory=run["memory"]["measured_gib"],
        seed=recipe["seed"],
        software=", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        remote_code=" **The base model runs its own code (trust_remote_code).**" if model["trust_remote_code"] else "",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _amount(run: dict[str, Any]) -> str:
    """How much was trained on; what was rewarded, where the model wrote the answers itself."""
    account = run["data"]["train_account"]
    if run["method"] == "grpo":
        names = [
            f"`{one if isinstance(one, str) else one.get('function') or one['model']}`"
            for one in run["recipe"]["rewards"]
        ]
        return f"{account['tokens']:,} tokens; rewarded by {', '.join(names)}"
    if run["method"] == "seq2seq":
        return f"{account['tokens']:,} tokens of sources, {account['supervised_tokens']:,} of targets"
    if run["method"] in TASKS:
        return f"{account['tokens']:,} tokens"
    where = "in answers" if run["method"] == "reward" else "trained"
    if run["recipe"]["data"].get("streaming"):
        share = account["supervised_tokens"] / account["tokens"]
        return f"a stream; of the tokens of its first {account['trained']} rows {share:.1%} are trained"
    return f"{account['tokens']:,} tokens, {account['supervised_tokens'] / account['tokens']:.1%} of them {where}"


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


# Figures of tasks that are said; all stand in the card.
HEADLINES = (
    "accuracy",
    "subset_accuracy",
    "f1_micro",
    "f1_macro",
    "mse",
    "pearson",
    "exact_match",
    "f1",
    "bleu",
    "chrf",
    "rougeL",
)


def task_figures(logs: dict[str, Any]) -> list[str]:
    """Names of what an evaluation of a task measured, besides its loss and its speed."""
    beside = ("loss", "runtime", "samples_per_second", "steps_per_second", "num_input_tokens_seen")
    names = [key.removeprefix("eval_") for key in logs if key.startswith("eval_")]
    return [name for name in names if name not in beside and not name.startswith("model_preparation")]


def _rewards(logs: dict[str, Any]) -> list[tuple[str, str]]:
    """Key and label of each figure that an evaluation of a policy has."""
    if "eval_reward" not in logs:
        return []
    names = [key.split("/")[1] for key in logs if key.startswith("eval_rewards/") and key.endswith("/mean")]
    found = [("eval_reward", "reward, all weighted"), *((f"eval_rewards/{n}/mean", f"reward {n}") for n in names)]
    return [*found, ("eval_completions/mean_length", "tokens of an answer")]


def _number(value: float, sign: str = "") -> str:
    """Three digits behind the point, or of a large number, as a hopeless perplexity is, three in all."""
    return f"{value:{sign}.3f}" if abs(value) < 1e5 else f"{value:{sign}.3g}"


def _rows_of(name: str, evaluation: dict[str, Any]) -> str:
    """What a figure of an evaluation was found on."""
    if name.startswith("bias_"):
        return f"{evaluation.get('bias', {}).get('pairs', '')} pairs of sentences".lstrip()
    if name == "general_loss":
        return "general texts that come with Lorasmith"
    if ":" in name:
        return f"{name.split(':')[0]} of lm-evaluation-harness"
    return f"{evaluation['rows']} of {evaluation['data']}"


def _scores(run: dict[str, Any]) -> str:
    before, after = run["metrics"]["before"], run["metrics"]["after"]
    lines = ["| rows | score | base | adapter | difference (95 % interval) | |", "|---|---|---|---|---|---|"]
    if before and after:
        rows = f"{run['data']['eval_account']['trained']} held out while training"
        key, told = ACCURACIES.get(run["method"], ("", ""))
        loss = [] if run["method"] == "grpo" else [("eval_loss", "loss")]  # of a policy it says nothing
        figures = [(f"eval_{name}", name) for name in task_figures(after)] if run["method"] in TASKS else []
        for name, label in [*loss, (key, told), *_rewards(after), *figures]:
            if before.get(name) is not None and after.get(name) is not None:
                values = f"{before[name]:.3f} | {after[name]:.3f} | {after[name] - before[name]:+.3f}"
                lines.append(f"| {rows} | {label} | {values} | |")
    for evaluation in run["evaluations"]:
        for name, score in evaluation["scores"].items():
            if f"{LEAN}:" in name:
                continue  # by kind, which run.json has
            interval = f"{_number(score['delta'], '+')} ({_number(score['low'], '+')} to {_number(score['high'], '+')})"
            values = f"{_number(score['base'])} | {_number(score['adapter'])} | {interval} | {score['verdict']}"
            lines.append(f"| {_rows_of(name, evaluation)} | {name.replace('_', ' ')} | {values} |")
        for name, one in evaluation.get("groups", {}).get("adapter", {}).items():
            if one["high"]:
                values = f"| {one['gap']:.3f} | ({one['least']:+.3f} to {one['most']:+.3f}) | {one['verdict']}"
                which = f"{name.replace('_', ' ')}, gap of {one['high']} to {one['low']}"
                lines.append(f"| {evaluation['rows']} of {evaluation['data']} | {which} | {values} |")
    if len(lines) > 2:
        return "\n".join(lines)
    command = "reward.py FOLDER --score ROWS" if run["method"] == "reward" else "eval.py FOLDER --data ROWS"
    return f"Not evaluated yet: `python scripts/{command}`."
