"""Supervised fine-tuning: a base model, a recipe and rows go in, an adapter comes out.

    accelerate launch scripts/sft.py RECIPE [section.key=value ...] [--dry-run] [--overwrite] [--resume]

--dry-run checks all that needs no weights, prints the resolved recipe and writes nothing. A run that was interrupted
goes on from its last checkpoint when the same command is given again.
"""

import argparse
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.recipe import Recipe
from lorasmith.recipe_sections import recipe_text
from lorasmith.runs.arguments import training_parser
from lorasmith.runs.ending import enter_run, run_script
from lorasmith.runs.starting import start
from lorasmith.started import quick_imports


def main() -> None:
    start(training_parser(__doc__).parse_intermixed_args(), "sft", train)


def train(requested: Recipe, arguments: argparse.Namespace) -> None:
    # Torch is imported from here on; a wrong recipe has been told by now, in well under a second.
    with quick_imports():
        from lorasmith import adapters, hardware, models
        from lorasmith.data.prepare import prepare, read_train_and_eval
        from lorasmith.data.sharing import first_reads, shared
        from lorasmith.data.streaming import open_stream, prepare_stream
        from lorasmith.reliability import resume
        from lorasmith.runs import folder, guarding, planning, report, saving, settings

    output = Path(requested.output_dir)
    machine = hardware.find_hardware(use_cpu=bool(requested.trainer.get("use_cpu")))
    say(f"machine: {machine.line}")
    streams = requested.data.streaming
    read = (
        open_stream(requested.data)
        if streams
        else first_reads(lambda: read_train_and_eval(requested.data, requested.seed))
    )
    tokenizer, new_token_ids = models.load_tokenizer(requested.model)
    facts = models.base_facts(requested.model)
    earlier = {} if arguments.overwrite else folder.earlier(output, requested)
    recipe, reasons = settings.resolve(requested, machine, facts, earlier)
    rows = (
        prepare_stream(recipe, tokenizer, read)
        if streams
        else shared(lambda: prepare(recipe.data, tokenizer, *read(), recipe.trainer["max_length"]))
    )
    recipe, chosen, plan = planning.plan_run(recipe, facts.config, machine, rows, earlier)
    settings.announce_batch(recipe, len(rows.train))
    if folder.holds_this_run(output, requested, rows.fingerprint, arguments.overwrite):
        say(f"{output} holds this very run, finished: it is reused. To train anew: --overwrite")
        say(f"next: python scripts/chat.py {output}")
        return
    hardware.check_disk(output, planning.disk_gib(plan))

    # trl's import takes 5 to 14 s, so it waits until everything cheap has passed.
    from trl import SFTConfig

    config = settings.make_config(SFTConfig, recipe, machine)
    if arguments.dry_run:
        say(recipe_text(recipe))
        return

    base = models.base_identity(recipe.model)
    template = models.template_hash(tokenizer)
    terms = resume.contract(recipe, rows.fingerprint, tokenizer, template, base, folder.versions(), machine.device)
    going_on = resume.Resume(None)
    if not arguments.overwrite:
        going_on = resume.find(output, terms, arguments.allow_change, arguments.resume)
    run = report.begin(
        output, requested, recipe, reasons | chosen, machine, tokenizer, rows, base, plan, terms, going_on
    )
    enter_run(output)
    base_model = models.load_base_model(
        recipe.model, recipe.model.dtype, recipe.model.attention, machine.device, recipe.speed.weight_cache
    )
    models.grow_embeddings(base_model, tokenizer)
    guards = guarding.guards(output, recipe, rows, plan, machine, going_on)
    config.eval_on_start = config.eval_on_start and going_on.checkpoint is None
    model, trainer = make_trainer(recipe, config, base, base_model, tokenizer, new_token_ids, rows, guards.callbacks)
    terms[resume.TRAINABLE] = resume.trainable(model)
    resume.check_trainable(going_on, terms[resume.TRAINABLE], arguments.allow_change)
    trainer.contract = terms
    for line in adapters.coverage_lines(model, recipe.adapter):
        say(line)
    if new_token_ids:
        say(f"new tokens: {' '.join(tokenizer.convert_ids_to_tokens(new_token_ids))}; only their rows are trained")

    with adapters.initial_adapter(recipe.adapter, model) as initial:
        trainer.train_or_load(going_on)
        guards.raise_if_stopped(trainer)
        after = trainer.evaluate() if rows.eval else None
        saving.save(model, tokenizer, output, base, initial)
    report.finish(
        output,
        run,
        guards.watch,
        model,
        {"before": guards.watch.first_evaluation, "after": after},
        machine,
        trainer.state.global_step,
    )


def make_trainer(
    recipe: Recipe,
    config: Any,
    base: dict[str, Any],
    base_model: Any,
    tokenizer: Any,
    new_token_ids: list[int],
    rows: Any,
    callbacks: list[Any],
) -> tuple[Any, Any]:
    """The adapted model and trl's trainer over it."""
    from torch.utils.data import DataLoader
    from transformers import EarlyStoppingCallback, set_seed
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from lorasmith import adapters
    from lorasmith.data.prepare import as_dataset
    from lorasmith.data.sharing import dataset_of
    from lorasmith.reliability.guarded import guarded
    from lorasmith.runs import guarding
    from lorasmith.runs.order import with_update_order
    from lorasmith.speed import levers
    from lorasmith.speed.trainer import fast

    sets = [dataset_of(part, as_dataset, rows.fingerprint) for part in (rows.train, rows.eval)]
    padded = DataCollatorForLanguageModeling(tokenizer.pad_token_id)
    batches = DataLoader(sets[0], config.per_device_train_batch_size, collate_fn=padded)
    set_seed(recipe.seed)
    model = adapters.attach(recipe.adapter, base_model, new_token_ids, batches, base)
    flat = levers.make_batches(model, recipe)
    for line in levers.fuse(model, recipe):
        say(line)
    for line in levers.reuse(model, recipe, [len(row.input_ids) for row in rows.train], flat is not None):
        say(line)
    levers.compute_natively(config, model)
    stopping = [EarlyStoppingCallback(recipe.run.early_stopping)] if recipe.run.early_stopping else []
    with adapters.trainable_weights_kept(model):
        trainer = guarded(with_update_order(fast(SFTTrainer, recipe.speed.chunked_loss)))(
            model=model,
            args=config,
            data_collator=flat or padded,
            train_dataset=levers.packed(sets[0], recipe) if recipe.trainer.get("packing") else sets[0],
            eval_dataset=sets[1] if rows.eval else None,
            processing_class=tokenizer,
            callbacks=[*callbacks, *stopping],
        )
    if recipe.data.streaming:  # trl's constructor takes data sets of `datasets` alone
        trainer.train_dataset = rows.dataset(config.per_device_train_batch_size)
    guarding.settle(trainer, recipe, callbacks)
    return model, trainer


if __name__ == "__main__":
    run_script(main)
