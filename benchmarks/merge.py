"""Time and memory of a merge: tensor by tensor against peft's merge_and_unload, each in a process of its own.

    python benchmarks/merge.py [--gib 1.5] [--repeats 3]     # writes benchmarks/merge.json

The model is a random Llama in bfloat16 made on the spot, with a LoRA of rank 16 on all linear layers. Memory is the
peak of what the process held in its own pages (VmHWM also counts mapped files, which can be dropped at any time).
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def make_model(folder: Path, gib: float) -> None:
    """A random Llama of a size, in shards, and an adapter for it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    hidden, vocabulary = 2048, 32000
    per_layer = (4 * hidden * hidden + 3 * hidden * 5632) * 2
    layers = max(1, round((gib * 2**30 - 2 * 2 * vocabulary * hidden) / per_layer))
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=16, vocab_size=vocabulary, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size="500MB")
    AutoTokenizer.from_pretrained(ROOT / "quickstart/base").save_pretrained(folder / "base")
    settings = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(folder / "adapter")


def ours(folder: Path) -> None:
    from transformers import AutoTokenizer

    from lorasmith.export.merge import Merge, merge

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    merge(Merge(folder / "base", ((folder / "adapter", 1.0),), "benchmark"), tokenizer, folder / "ours")


def pefts(folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload().save_pretrained(
        folder / "peft", max_shard_size="500MB"
    )


def held(pid: str = "self") -> dict[str, int]:
    """Bytes of a process's pages: its own (anonymous), and with mapped files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    return {"own": found["RssAnon"], "resident": found["VmRSS"]}


def child(way: str, folder: Path) -> None:
    """One merge, with its peak and its time, behind the imports."""
    import peft  # noqa: F401
    import transformers  # noqa: F401

    peak, over = held(), threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            for name, size in held().items():
                peak[name] = max(peak[name], size)

    before = held()["own"]
    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    {"ours": ours, "peft": pefts}[way](folder)
    seconds = time.perf_counter() - began
    over.set()
    thread.join()
    gib = {name: round(size / 2**30, 3) for name, size in peak.items()}
    print(json.dumps({"seconds": round(seconds, 2), "imports_gib": round(before / 2**30, 3), **gib}))


def same(folder: Path) -> int:
    """Tensors that differ between the two results."""
    import torch

    from lorasmith.export.tensors import Weights

    one, other = Weights(folder / "ours"), Weights(folder / "peft")
    assert one.entries.keys() == other.entries.keys()
    return sum(not torch.equal(one.read(name), other.read(name)) for name in one.entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.5, help="of the model in bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], Path(arguments.child[1]))
        return
    results: dict[str, list[dict[str, float]]] = {"ours": [], "peft": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, arguments.gib)
        size = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
        for _ in range(arguments.repeats):
            for way in results:
                shutil.rmtree(folder / way, ignore_errors=True)
                words = [sys.executable, __file__, "--child", way, str(folder)]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                results[way].append(json.loads(done.stdout.splitlines()[-1]))
                print(way, results[way][-1], flush=True)
        differing = same(folder)
    median = {way: sorted(one["seconds"] for one in found)[len(found) // 2] for way, found in results.items()}
    peak = {way: max(one["resident"] for one in found) for way, found in results.items()}
    own = {way: max(one["own"] for one in found) for way, found in results.items()}
    report = {
        "command": f"python benchmarks/merge.py --gib {arguments.gib} --repeats {arguments.repeats}",
        "machine": f"{platform.machine()}, {os.cpu_count()} threads",
        "model_gib": round(size / 2**30, 3),
        "differing_tensors": differing,
        "seconds": median,
        "peak_resident_gib": peak,
        "peak_own_gib": own,
        "time_ratio": round(median["ours"] / median["peft"], 2),
        "memory_ratio": round(peak["ours"] / peak["peft"], 2),
        "runs": results,
    }
    (ROOT / "benchmarks/merge.json").write_text(json.dumps(report, indent=1) + "\n")
    print({key: value for key, value in report.items() if key != "runs"})


if __name__ == "__main__":
    main()
