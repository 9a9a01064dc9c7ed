"""The text that turns hold."""

import json
from typing import Any

from lorasmith.data.answers import Said


def text_of(said: Said) -> str:
    """Text as it is; turns of a conversation with an empty line between them, calls as JSON."""
    return said if isinstance(said, str) else "\n\n".join(map(turn_text, said))


def turn_text(turn: dict[str, Any]) -> str:
    """What a turn says, and the calls that it makes."""
    content = turn.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", part.get("value", ""))) for part in content if isinstance(part, dict))
    calls = turn.get("tool_calls")
    called = [json.dumps(call.get("function", call), sort_keys=True, ensure_ascii=False) for call in calls or ()]
    return "\n".join([*([content] if content else []), *called])
