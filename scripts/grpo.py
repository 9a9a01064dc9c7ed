"""Group relative policy optimization: a base model or an adapter, prompts and reward functions go in, an adapter comes
out.

    accelerate launch scripts/grpo.py RECIPE [section.key=value ...] [--dry-run] [--overwrite] [--resume]

The model answers each prompt trainer.num_generations times, and learns from those answers that `rewards:` gives more to
than to the others of their prompt. With trainer.beta it is held near the base with the adapter switched off, or near a
frozen copy of the adapter of adapter.from. --dry-run checks all that needs no weights, prints the resolved recipe and
writes nothing. A run that was interrupted goes on when the same command is given again.
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
    start(training_parser(__doc__).parse_intermixed_args(), "grpo", train)


def train(requested: Recipe, arguments: argparse.Namespace) -> None:
    # Torch is imported from here on; a wrong recipe has been told by now, in well under a second.
    with quick_imports():
        from lorasmith import adapters, hardware, models
        from lorasmith.data.prepare_prompts import prepare_prompts, read_train_and_eval_prompts
        from lorasmith.data.sharing import first_reads, shared
        from lorasmith.reliability import resume
        from lorasmith.runs import folder, guarding, planning, report, rewarding, saving, settings

    output = Path(requested.output_dir)
    machine = hardware.find_hardware(use_cpu=bool(requested.trainer.get("use_cpu")))
    say(f"machine: {machine.line}")
    read = first_reads(lambda: read_train_and_eval_prompts(requested.data, requested.seed))
    tokenizer, new_token_ids = models.load_tokenizer(requested.model)
    facts = models.base_facts(requested.model)
    earlier = {} if arguments.overwrite else folder.earlier(output, requested)
    recipe, reasons = settings.resolve(requested, machine, facts, earlier, "grpo")
    rows = shared(lambda: prepare_prompts(recipe.data, tokenizer, *read(), recipe.data.max_prompt_length))
    rewards = rewarding.load_and_check(recipe.rewards, rows.train_prompts)
    recipe, chosen, plan = planning.plan_run(recipe, facts.config, machine, rows, earlier, "grpo")
    settings.announce_groups(recipe, len(rows.train_prompts))
    if folder.holds_this_run(output, requested, rows.fingerprint, arguments.overwrite):
        say(f"{output} holds this very run, finished: it is reused. To train anew: --overwrite")
        say(f"next: python scripts/chat.py {output}")
        return
    hardware.check_disk(output, planning.disk_gib(plan))

    # trl's import takes 5 to 14 s, so it waits until everything cheap has passed.
    from trl import GRPOConfig

    config = settings.make_config(GRPOConfig, recipe, machine, "grpo")
    if arguments.dry_run:
        say(recipe_text(recipe))
        return

    base = models.base_identity(recipe.model)
    template = models.template_hash(tokenizer)
    terms = resume.contract(recipe, rows.fingerprint, tokenizer, template, base, folder.versions(), machine.device)
    terms |= rewarding.fingerprints(recipe.rewards)
    going_on = resume.Resume(None)
    if not arguments.overwrite:
        going_on = resume.find(output, terms, arguments.allow_change, arguments.resume)
    run = report.begin(
        output, requested, recipe, reasons | chosen, machine, tokenizer, rows, base, plan, terms, going_on, "grpo"
    )
    enter_run(output)
    base_model = models.load_base_model(
        recipe.model, recipe.model.dtype, recipe.model.attention, machine.device, recipe.speed.weight_cache
    )
    models.grow_embeddings(base_model, tokenizer)
    guards = guarding.guards(output, recipe, rows, plan, machine, going_on)
    config.eval_on_start = config.eval_on_start and going_on.checkpoint is None
    model, trainer = make_trainer(
        recipe, config, base, base_model, tokenizer, new_token_ids, rows, rewards, guards.callbacks
    )
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
        if rows.eval:
            trainer.evaluate()
        saving.save(model, tokenizer, output, base, initial)
    report.finish(
        output,
        run,
        guards.watch,
        model,
        {"before": guards.watch.first_evaluation, "after": guards.watch.last_evaluation},
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
    rewards: list[Any],
    callbacks: list[Any],
) -> tuple[Any, Any]:
    """The adapted model and trl's trainer over it."""
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForLanguageModeling, EarlyStoppingCallback, set_seed
    from trl import GRPOTrainer

    from lorasmith import adapters
    from lorasmith.data.prepare_prompts import prompts_as_dataset
    from lorasmith.reinforcement.samples import Samples
    from lorasmith.reinforcement.trainer import rolling
    from lorasmith.reliability.guarded import guarded
    from lorasmith.runs import guarding
    from lorasmith.speed import levers
    from lorasmith.speed.answers import answering

    sets = [prompts_as_dataset(part) for part in (rows.train_prompts, rows.eval_prompts)]
    prompts = DataLoader(
        sets[0].select_columns(["input_ids"]),
        config.per_device_train_batch_size,
        collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    set_seed(recipe.seed)
    model = adapters.attach(recipe.adapter, base_model, new_token_ids, prompts, base)
    flat = levers.make_batches(model, recipe)
    for line in levers.fuse(model, recipe):
        say(line)
    levers.compute_natively(config, model)
    config.reward_weights = [reward.weight for reward in rewards]
    callbacks = [Samples(Path(recipe.output_dir)), *callbacks]
    stopping = [EarlyStoppingCallback(recipe.run.early_stopping)] if recipe.run.early_stopping else []
    with adapters.trainable_weights_kept(model):
        trainer = guarded(answering(rolling(GRPOTrainer), recipe.speed.chunked_loss))(
            model=model,
            reward_funcs=[reward.function for reward in rewards],
            args=config,
            train_dataset=sets[0],
            eval_dataset=sets[1] if rows.eval else None,
            processing_class=tokenizer,
            callbacks=[*callbacks, *stopping],
        )
    trainer.share_prompts = flat.share_prompts if flat else None
    guarding.settle(trainer, recipe, callbacks)
    return model, trainer


if __name__ == "__main__":
    run_script(main)
