"""A reward model: a base model or an adapter, and pairs of answers go in; an adapter with a head that scores comes out.

    accelerate launch scripts/reward.py RECIPE [section.key=value ...] [--dry-run] [--overwrite] [--resume]
    python scripts/reward.py REWARD_MODEL --score rows.jsonl [--output scores.jsonl]

The head is trained whole beside the adapter and is part of it. --dry-run checks all that needs no weights, prints the
resolved recipe and writes nothing. A run that was interrupted goes on when the same command is given again. --score
takes the folder of a run, or of its merge, and rows in any shape: pairs, messages, prompt and completion.
"""

import argparse
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.errors import LorasmithError
from lorasmith.recipe import Recipe
from lorasmith.recipe_sections import recipe_text
from lorasmith.runs.arguments import positive, training_parser
from lorasmith.runs.ending import enter_run, quiet, run_script
from lorasmith.runs.starting import start
from lorasmith.started import quick_imports


def main() -> None:
    arguments = parse_arguments()
    if arguments.score is not None:
        score(arguments)
        return
    if arguments.output or arguments.base or arguments.trust_remote_code:
        raise LorasmithError("--output, --base and --trust-remote-code go with --score.")
    start(arguments, "reward", train)


def train(requested: Recipe, arguments: argparse.Namespace) -> None:
    # Torch is imported from here on; a wrong recipe has been told by now, in well under a second.
    with quick_imports():
        from transformers import set_seed

        from lorasmith import adapters, hardware, models
        from lorasmith.data.prepare_pairs import (
            both_answers,
            pairs_as_sequences,
            prepare_pairs,
            read_train_and_eval_pairs,
        )
        from lorasmith.data.sharing import first_reads, shared
        from lorasmith.reliability import resume
        from lorasmith.runs import folder, guarding, planning, report, saving, settings

    output = Path(requested.output_dir)
    machine = hardware.find_hardware(use_cpu=bool(requested.trainer.get("use_cpu")))
    say(f"machine: {machine.line}")
    read = first_reads(lambda: read_train_and_eval_pairs(requested.data, requested.seed))
    tokenizer, new_token_ids = models.load_tokenizer(requested.model)
    facts = models.base_facts(requested.model)
    earlier = {} if arguments.overwrite else folder.earlier(output, requested)
    recipe, reasons = settings.resolve(requested, machine, facts, earlier)

    def prepared() -> Any:
        found = prepare_pairs(recipe.data, tokenizer, *read(), recipe.trainer["max_length"])
        found.eval_rows = both_answers(read()[1], found)
        return found

    rows = shared(prepared, pairs_as_sequences, ("train_pairs", "eval_pairs"))
    recipe, chosen, plan = planning.plan_run(recipe, facts.config, machine, rows, earlier, "reward")
    settings.announce_batch(recipe, len(rows.train_pairs))
    if folder.holds_this_run(output, requested, rows.fingerprint, arguments.overwrite):
        say(f"{output} holds this very run, finished: it is reused. To train anew: --overwrite")
        say(f"next: python scripts/reward.py {output} --score ROWS")
        return
    hardware.check_disk(output, planning.disk_gib(plan))

    # trl's import takes 5 to 14 s, so it waits until everything cheap has passed.
    from trl import RewardConfig

    config = settings.make_config(RewardConfig, recipe, machine, "reward")
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
        output, requested, recipe, reasons | chosen, machine, tokenizer, rows, base, plan, terms, going_on, "reward"
    )
    enter_run(output)
    set_seed(recipe.seed)  # the head is drawn while loading, and the adapter behind it
    base_model = models.load_with_head(
        recipe.model, recipe.model.dtype, recipe.model.attention, machine.device, tokenizer.pad_token_id, num_labels=1
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
        saving.save(model, tokenizer, output, base, initial, head=True)
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
    from transformers import EarlyStoppingCallback
    from trl import RewardTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference

    from lorasmith import adapters
    from lorasmith.data.prepare_pairs import pairs_as_sequences
    from lorasmith.data.sharing import dataset_of
    from lorasmith.preference.scored import scored
    from lorasmith.reliability.guarded import guarded
    from lorasmith.runs import guarding
    from lorasmith.runs.order import with_update_order
    from lorasmith.speed import levers
    from lorasmith.speed.answers import LaidOut, answering

    parts = rows.train_pairs, rows.eval_pairs
    sets = [dataset_of(part, pairs_as_sequences, rows.fingerprint) for part in parts]
    padded = DataCollatorForPreference(tokenizer.pad_token_id)
    batches = DataLoader(sets[0], config.per_device_train_batch_size, collate_fn=padded)
    model = adapters.attach(recipe.adapter, base_model, new_token_ids, batches, base, "SEQ_CLS")
    flat = levers.make_batches(model, recipe)
    for line in levers.fuse(model, recipe):
        say(line)
    collator = LaidOut(padded, flat.share_prompts) if flat else padded
    stopping = [EarlyStoppingCallback(recipe.run.early_stopping)] if recipe.run.early_stopping else []
    with adapters.trainable_weights_kept(model):
        trainer = guarded(with_update_order(answering(scored(RewardTrainer), recipe.speed.chunked_loss)))(
            model=model,
            args=config,
            data_collator=collator,
            train_dataset=sets[0],
            eval_dataset=sets[1] if rows.eval else None,
            processing_class=tokenizer,
            callbacks=[*callbacks, *stopping],
        )
    guarding.settle(trainer, recipe, callbacks)
    return model, trainer


def score(arguments: argparse.Namespace) -> None:
    """Score every row of --score and write what came out."""
    if arguments.overrides or arguments.dry_run or arguments.overwrite or arguments.resume:
        raise LorasmithError("--score takes the folder of a reward model and rows; the rest is for training.")
    quiet(arguments.offline)
    with quick_imports():
        from lorasmith.runs import scoring
        from lorasmith.runs.opening import open_scorer

    out = scoring.output_of(arguments.score, arguments.output)
    rows = scoring.read(arguments.score, str(arguments.recipe))
    opened = open_scorer(str(arguments.recipe), arguments.base, trust_remote_code=arguments.trust_remote_code)
    found = scoring.scores(opened, rows, arguments.batch)
    scoring.write(out, found)
    for line in scoring.lines(found):
        say(line)
    say(f"scores: {out}")
    if opened.run:
        say(f"next: python scripts/merge.py {arguments.recipe} --out models/{arguments.recipe.name}")


def parse_arguments() -> argparse.Namespace:
    parser = training_parser(__doc__, "a recipe; with --score the folder of a reward model")
    parser.add_argument("--score", metavar="ROWS", help="score these rows: a file, folder or hub id")
    parser.add_argument("--output", type=Path, help="where the scores go; default: ROWS with .scores.jsonl")
    parser.add_argument("--batch", type=positive, metavar="N", default=16, help="rows scored at a time")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_script(main)
