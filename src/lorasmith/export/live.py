"""A model that is in memory already, as an engine that answers."""

from typing import Any

from lorasmith.export.engines import TransformersEngine


class LiveEngine(TransformersEngine):
    """The adapter on its base as it was trained, or any model of transformers or peft."""

    def __init__(self, name: str, model: Any, stops: set[int]) -> None:
        """Take a model.

        Args:
            stops: Tokens that end an answer.
        """
        self.name = name
        self._take(model, None, stops)
