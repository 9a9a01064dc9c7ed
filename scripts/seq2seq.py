"""A translator or summarizer: an encoder-decoder and sources with targets go in; an adapter that writes comes out.

    accelerate launch scripts/seq2seq.py RECIPE [section.key=value ...] [--dry-run] [--overwrite] [--resume]

The rows are those of sft.py: a prompt and its completion, a question and its answer, a source and its target. In the
end base and adapter write for the held-out rows. --dry-run checks all that needs no weights, prints the resolved recipe
and writes nothing. A run that was interrupted goes on when the same command is given again.
"""

import argparse
from pathlib import Path
from typing import Any

from lorasmith.console import is_first_process, say
from lorasmith.recipe import Recipe
from lorasmith.recipe_sections import recipe_text
from lorasmith.runs.arguments import training_parser
from lorasmith.runs.ending import enter_run, run_script
from lorasmith.runs.starting import start
from lorasmith.started import quick_imports

METHOD = "seq2seq"


def main() -> None:
    start(training_parser(__doc__).parse_intermixed_args(), METHOD, train)


def train(requested: Recipe, arguments: argparse.Namespace) -> None:
    # Torch is imported from here on; a wrong recipe has been told by now, in well under a second.
    with quick_imports():
        from transformers import set_seed

        from lorasmith import adapters, hardware, models
        from lorasmith.data.examples import examples_as_dataset
        from lorasmith.data.languages import has_languages, languages_of, set_languages
        from lorasmith.data.prepare_source_target import prepare_source_target, read_train_and_eval_source_target
        from lorasmith.data.sharing import first_reads, shared
        from lorasmith.reliability import resume
        from lorasmith.runs import folder, guarding, measuring_texts, planning, report, saving, settings, task_file
        from lorasmith.tasks.config import Seq2SeqConfig
        from lorasmith.tasks.generating import generation_settings

    output, task = Path(requested.output_dir), requested.task
    machine = hardware.find_hardware(use_cpu=bool(requested.trainer.get("use_cpu")))
    say(f"machine: {machine.line}")
    read = first_reads(lambda: read_train_and_eval_source_target(requested.data, requested.seed))
    tokenizer, new_token_ids = models.load_tokenizer(requested.model, fast=False)
    set_languages(tokenizer, task.source_language, task.target_language)
    facts = models.base_facts(requested.model)
    earlier = {} if arguments.overwrite else folder.earlier(output, requested)
    recipe, reasons = settings.resolve(requested, machine, facts, earlier, METHOD)
    lengths = recipe.trainer["max_length"], recipe.trainer["max_target_length"]
    rows = shared(
        lambda: prepare_source_target(recipe.data, tokenizer, *read(), task.prefix, *lengths), examples_as_dataset
    )
    recipe, chosen, plan = planning.plan_run(recipe, facts.config, machine, rows, earlier, METHOD)
    settings.announce_batch(recipe, len(rows.train))
    if folder.holds_this_run(output, requested, rows.fingerprint, arguments.overwrite):
        say(f"{output} holds this very run, finished: it is reused. To train anew: --overwrite")
        say(f"next: python scripts/predict.py {output} ROWS")
        return
    hardware.check_disk(output, planning.disk_gib(plan))
    config = settings.make_config(Seq2SeqConfig, recipe, machine, METHOD)
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
        output, requested, recipe, reasons | chosen, machine, tokenizer, rows, base, plan, terms, going_on, METHOD
    )
    enter_run(output)
    base_model = models.load_base_model(
        recipe.model, recipe.model.dtype, recipe.model.attention, machine.device, task=METHOD
    )
    models.grow_embeddings(base_model, tokenizer)
    guards = guarding.guards(output, recipe, rows, plan, machine, going_on)
    config.eval_on_start = config.eval_on_start and going_on.checkpoint is None
    set_seed(recipe.seed)
    model, trainer = make_trainer(recipe, config, base, base_model, tokenizer, new_token_ids, rows, guards.callbacks)
    terms[resume.TRAINABLE] = resume.trainable(model)
    resume.check_trainable(going_on, terms[resume.TRAINABLE], arguments.allow_change)
    trainer.contract = terms
    for line in adapters.coverage_lines(model, recipe.adapter):
        say(line)

    with adapters.initial_adapter(recipe.adapter, model) as initial:
        trainer.train_or_load(going_on)
        guards.raise_if_stopped(trainer)
        before, after = guards.watch.first_evaluation, trainer.evaluate() if rows.eval else None
        saving.save(model, tokenizer, output, base, initial)
        beams, longest = recipe.trainer["generation_num_beams"], recipe.trainer["generation_max_length"]
        writing = generation_settings(model, tokenizer, beams, longest, has_languages(tokenizer))
        if is_first_process():
            run["task"] = task_file.write_task(
                output,
                METHOD,
                prefix=task.prefix,
                max_length=lengths[0],
                max_target_length=lengths[1],
                num_beams=beams,
                generation_max_length=longest,
                **languages_of(tokenizer),
            )
        found = measuring_texts.write_held_out(model, tokenizer, rows, writing, task.answered_rows, output)
        before, after = before and before | found["before"], after and after | found["after"]
    report.finish(
        output, run, guards.watch, model, {"before": before, "after": after}, machine, trainer.state.global_step
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
    """The adapted model and transformers' trainer over it."""
    from torch.utils.data import DataLoader
    from transformers import EarlyStoppingCallback, Trainer

    from lorasmith import adapters
    from lorasmith.data.examples import examples_as_dataset
    from lorasmith.data.sharing import dataset_of
    from lorasmith.reliability.guarded import guarded
    from lorasmith.runs import guarding
    from lorasmith.runs.order import with_update_order
    from lorasmith.speed import levers
    from lorasmith.tasks.batches import Padded, WithDecoderInputs
    from lorasmith.tasks.losses import target_tokens
    from lorasmith.tasks.trainer import Summed, for_task

    sets = [dataset_of(part, examples_as_dataset, rows.fingerprint) for part in (rows.train, rows.eval)]
    collator = WithDecoderInputs(
        Padded(tokenizer.pad_token_id, "tokens"), base_model.prepare_decoder_input_ids_from_labels
    )
    batches = DataLoader(sets[0], config.per_device_train_batch_size, collate_fn=collator)
    model = adapters.attach(recipe.adapter, base_model, new_token_ids, batches, base, "SEQ_2_SEQ_LM")
    for line in levers.fuse(model, recipe):
        say(line)
    stopping = [EarlyStoppingCallback(recipe.run.early_stopping)] if recipe.run.early_stopping else []
    trainer = guarded(with_update_order(for_task(Trainer)))(
        model=model,
        args=config,
        data_collator=collator,
        train_dataset=sets[0],
        eval_dataset=sets[1] if rows.eval else None,
        processing_class=tokenizer,
        compute_loss_func=Summed(target_tokens(config.label_smoothing_factor)),
        callbacks=[*callbacks, *stopping],
    )
    guarding.settle(trainer, recipe, callbacks)
    return model, trainer


if __name__ == "__main__":
    run_script(main)
