"""A tagger: an encoder or decoder and words with tags go in; an adapter with a head that tags words comes out.

    accelerate launch scripts/token_classification.py RECIPE [section.key=value ...] [--dry-run] [--overwrite]

BIO tags name entities, all others label words alone, such as parts of speech. The head is trained whole beside the
adapter and is part of it. --dry-run checks all that needs no weights, prints the resolved recipe and writes nothing. A
run that was interrupted goes on when the same command is given again.
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

METHOD = "token_classification"


def main() -> None:
    start(training_parser(__doc__).parse_intermixed_args(), METHOD, train)


def train(requested: Recipe, arguments: argparse.Namespace) -> None:
    # Torch is imported from here on; a wrong recipe has been told by now, in well under a second.
    with quick_imports():
        from transformers import set_seed

        from lorasmith import adapters, hardware, models
        from lorasmith.data.examples import examples_as_dataset
        from lorasmith.data.prepare_tagged import prepare_tagged, read_train_and_eval_tagged, tags_of
        from lorasmith.data.sharing import first_reads, shared
        from lorasmith.reliability import resume
        from lorasmith.runs import folder, guarding, measuring_tags, planning, report, saving, settings, task_file
        from lorasmith.tasks.config import TaskConfig

    output = Path(requested.output_dir)
    machine = hardware.find_hardware(use_cpu=bool(requested.trainer.get("use_cpu")))
    say(f"machine: {machine.line}")

    def read_with_tags() -> Any:
        found = read_train_and_eval_tagged(requested.data, requested.task.labels, requested.seed)
        return found, tags_of(found[0], requested.task.labels)

    read = first_reads(read_with_tags)
    tokenizer, new_token_ids = models.load_tokenizer(requested.model, stops=False)
    facts = models.base_facts(requested.model)
    earlier = {} if arguments.overwrite else folder.earlier(output, requested)
    recipe, reasons = settings.resolve(requested, machine, facts, earlier, METHOD)

    def prepared() -> Any:
        parts, labels = read()
        return prepare_tagged(recipe.data, tokenizer, *parts, labels, recipe.trainer["max_length"]), labels

    rows, labels = shared(prepared, examples_as_dataset)
    recipe, chosen, plan = planning.plan_run(recipe, facts.config, machine, rows, earlier, METHOD)
    settings.announce_batch(recipe, len(rows.train))
    if folder.holds_this_run(output, requested, rows.fingerprint, arguments.overwrite):
        say(f"{output} holds this very run, finished: it is reused. To train anew: --overwrite")
        say(f"next: python scripts/predict.py {output} ROWS")
        return
    hardware.check_disk(output, planning.disk_gib(plan))
    config = settings.make_config(TaskConfig, recipe, machine, METHOD)
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
    set_seed(recipe.seed)  # the head is drawn while loading, and the adapter behind it
    base_model = models.load_with_head(
        recipe.model,
        recipe.model.dtype,
        recipe.model.attention,
        machine.device,
        tokenizer.pad_token_id,
        METHOD,
        **task_file.head_settings({"labels": labels}),
    )
    models.grow_embeddings(base_model, tokenizer)
    guards = guarding.guards(output, recipe, rows, plan, machine, going_on)
    config.eval_on_start = config.eval_on_start and going_on.checkpoint is None
    figures = measuring_tags.TagFigures(rows, labels)
    model, trainer = make_trainer(
        recipe, config, base, base_model, tokenizer, new_token_ids, rows, figures, guards.callbacks
    )
    terms[resume.TRAINABLE] = resume.trainable(model)
    resume.check_trainable(going_on, terms[resume.TRAINABLE], arguments.allow_change)
    trainer.contract = terms
    for line in adapters.coverage_lines(model, recipe.adapter):
        say(line)

    with adapters.initial_adapter(recipe.adapter, model) as initial:
        trainer.train_or_load(going_on)
        guards.raise_if_stopped(trainer)
        after = trainer.evaluate() if rows.eval else None
        figures.warn()
        saving.save(model, tokenizer, output, base, initial, head=True)
        if is_first_process():
            run["task"] = task_file.write_task(output, METHOD, labels=labels, max_length=recipe.trainer["max_length"])
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
    figures: Any,
    callbacks: list[Any],
) -> tuple[Any, Any]:
    """The adapted model and transformers' trainer over it."""
    from torch.utils.data import DataLoader
    from transformers import EarlyStoppingCallback, Trainer

    from lorasmith import adapters, models
    from lorasmith.data.examples import examples_as_dataset
    from lorasmith.data.sharing import dataset_of
    from lorasmith.reliability.guarded import guarded
    from lorasmith.runs import guarding
    from lorasmith.runs.measuring_tags import best_labels
    from lorasmith.runs.order import with_update_order
    from lorasmith.speed import levers
    from lorasmith.tasks import losses
    from lorasmith.tasks.batches import Padded
    from lorasmith.tasks.trainer import Summed, for_task

    sets = [dataset_of(part, examples_as_dataset, rows.fingerprint) for part in (rows.train, rows.eval)]
    collator = Padded(tokenizer.pad_token_id, "tokens")
    batches = DataLoader(sets[0], config.per_device_train_batch_size, collate_fn=collator)
    drawn = models.drawn_modules(base_model)
    model = adapters.attach(recipe.adapter, base_model, new_token_ids, batches, base, "TOKEN_CLS", drawn)
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
        compute_loss_func=Summed(losses.token_labels),
        compute_metrics=figures,
        preprocess_logits_for_metrics=best_labels,
        callbacks=[*callbacks, *stopping],
    )
    guarding.settle(trainer, recipe, callbacks)
    return model, trainer


if __name__ == "__main__":
    run_script(main)
