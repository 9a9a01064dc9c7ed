"""Pre-train the quickstart's base model from nothing, on the text of text.py, on a CPU.

    python quickstart/pretrain.py            # writes quickstart/base; about 25 minutes on 2 cores

A 1.1M-parameter Llama with a byte-level BPE tokenizer of 1,024 tokens and a ChatML template. Seeds are fixed; the
committed weights came from this program with the versions in constraints.txt.
"""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from text import documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "base"
SEED = 0
DOCUMENTS = 400_000
VOCABULARY = 1024
BLOCK = 256  # tokens a training row
BATCH = 16  # rows a step
STEPS = 4500
PROBES = 200  # chats
LEARNING_RATE = 3e-3

# The {% generation %} marks tell which tokens are the assistant's; the end-of-turn token is one of them.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the first 40,000 documents; every byte is in the alphabet, so nothing is unknown."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = (doc if isinstance(doc, str) else "\n".join(m["content"] for m in doc) for doc in documents(40_000, SEED))
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_blocks(tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """All documents as one stream of ids, cut into rows of BLOCK tokens; int64, shape (BLOCK,)."""
    stream: list[int] = []
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    text = documents(DOCUMENTS, SEED)
    while batch := list(itertools.islice(text, 1000)):
        texts = [doc if isinstance(doc, str) else tokenizer.apply_chat_template(doc, tokenize=False) for doc in batch]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            stream += [*ids, end]
        while len(stream) >= BLOCK:
            yield torch.tensor(stream[:BLOCK])
            stream = stream[BLOCK:]


@torch.no_grad()
def answered_right(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Share of the first answers in fresh chats that the model gives word for word."""
    right = 0
    chats = itertools.islice((doc for doc in documents(10_000, SEED + 1) if not isinstance(doc, str)), PROBES)
    for messages in chats:
        asked = tokenizer.apply_chat_template(
            messages[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**asked, max_new_tokens=80, do_sample=False)
        text = tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        right += text == messages[1]["content"]
    return right / PROBES


def main() -> None:
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    print(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.05)
    blocks = token_blocks(tokenizer)
    start = time.perf_counter()
    for step in range(1, STEPS + 1):
        rows = list(itertools.islice(blocks, BATCH))
        if len(rows) < BATCH:
            raise SystemExit(f"the text ended at step {step}; raise DOCUMENTS")
        ids = torch.stack(rows)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 500 == 0:
            print(f"{answered_right(model, tokenizer):.0%} of {PROBES} fresh questions answered right")
        if step % 50 == 0:
            rate = step * BATCH * BLOCK / (time.perf_counter() - start)
            minutes = (STEPS - step) * BATCH * BLOCK / rate / 60
            print(
                f"step {step}/{STEPS}  loss {loss.item():.3f}  {rate:,.0f} tokens/s  {minutes:.1f} min left", flush=True
            )
    model.to(torch.bfloat16).save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    print(f"wrote {FOLDER}")


if __name__ == "__main__":
    main()
