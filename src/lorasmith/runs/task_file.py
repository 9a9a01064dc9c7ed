"""What a model is for: task.json beside it, or what its configuration says."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lorasmith.runs.folder import read_json, write_json
from lorasmith.upstream import HEADS, TASKS

TASK_FILE = "task.json"
REWARD = "reward"
ENDINGS = {
    "ForSequenceClassification": "text_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
}
SINGLE, REGRESSION = "single_label_classification", "regression"


def write_task(folder: Path, method: str, **settings: Any) -> dict[str, Any]:
    """Write beside a model how it is to be used; the record comes back."""
    record = {"method": method, **settings}
    write_json(folder / TASK_FILE, record)
    return record


def task_of(path: str | Path) -> dict[str, Any]:
    """What the adapter or model in a folder is for: `method`, a key of `upstream.TASKS`, and its settings.

    Empty for a language model, or where nothing says; `method` is reward for a reward model.
    """
    folder = Path(path)
    is_adapter = (folder / "adapter_config.json").is_file()
    kept = read_json(folder / TASK_FILE)
    if kept.get("method") in TASKS:
        return kept
    return _of_adapter(folder) if is_adapter else _of_model(folder)


def _of_adapter(folder: Path) -> dict[str, Any]:
    """What an adapter of a stranger's is for, from its task type and its head."""
    names = {task.peft: method for method, task in TASKS.items()}
    method = names.get(str(read_json(folder / "adapter_config.json").get("task_type")))
    if method is None:
        return {}
    if method not in ("text_classification", "token_classification"):
        return {"method": method}
    outputs = _outputs(folder)
    if method == "text_classification" and outputs <= 1:
        return {"method": REWARD}
    names_of = [f"LABEL_{index}" for index in range(outputs)]
    return {"method": method, "labels": names_of} | ({"problem": SINGLE} if method == "text_classification" else {})


def _outputs(folder: Path) -> int:
    """Outputs of the head in an adapter's file, 0 without one; what is missing is told when it is loaded."""
    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            keys = [key for key in file.keys() if set(key.split(".")) & set(HEADS) and key.endswith("weight")]  # noqa: SIM118
            shapes = {key: file.get_slice(key).get_shape() for key in keys if "lora_" not in key}
    except (OSError, SafetensorError):
        shapes = {}
    last = max(shapes, key=lambda key: ("out_proj" in key, key), default=None)
    return int(shapes[last][0]) if last is not None else 0


def _of_model(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    kinds = [str(kind) for kind in config.get("architectures") or []]
    method = next((name for kind in kinds for ending, name in ENDINGS.items() if kind.endswith(ending)), None)
    if method is None:
        return {"method": "seq2seq"} if config.get("is_encoder_decoder") else {}
    names = config.get("id2label") or {}
    labels = [str(names[key]) for key in sorted(names, key=int)] or ["LABEL_0", "LABEL_1"]
    problem = config.get("problem_type") or SINGLE
    if method == "question_answering":
        return {"method": method}
    if method == "token_classification":
        return {"method": method, "labels": labels}
    if len(labels) == 1 and problem != REGRESSION:
        return {"method": REWARD}
    return {"method": method, "labels": labels, "problem": problem}


def head_settings(task: dict[str, Any]) -> dict[str, Any]:
    """What the configuration of a task's model says of its head."""
    labels = task.get("labels")
    if not labels:
        return {}
    names = dict(enumerate(labels)) if task.get("problem") != REGRESSION else {0: "LABEL_0"}
    settings: dict[str, Any] = {"num_labels": len(names), "id2label": names}
    settings["label2id"] = {name: index for index, name in names.items()}
    return settings | ({"problem_type": task["problem"]} if "problem" in task else {})
