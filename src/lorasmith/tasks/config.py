"""The trainer's settings of tasks that trl has no trainer for: transformers' own, and how long rows may be."""

from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments, TrainingArguments


@dataclass
class TaskConfig(TrainingArguments):
    """transformers' TrainingArguments with trl's name for the tokens of a row.

    Attributes:
        max_length: Tokens of the longest row; of question_answering.py, of a window.
    """

    max_length: int | None = field(default=512)
    logging_steps: float = field(default=10)


@dataclass
class Seq2SeqConfig(Seq2SeqTrainingArguments):
    """transformers' Seq2SeqTrainingArguments with the tokens of a source and of a target.

    Attributes:
        max_length: Tokens of the longest source.
        max_target_length: Tokens of the longest target.
        generation_num_beams: Beams of what is written for evaluation rows, and by predict.py.
        generation_max_length: Tokens of the longest of that; None: max_target_length.
    """

    max_length: int | None = field(default=512)
    max_target_length: int | None = field(default=128)
    generation_num_beams: int | None = field(default=1)
    logging_steps: float = field(default=10)
