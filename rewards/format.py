"""The form of an answer: a tag, a regular expression, a JSON schema.

rewards:
  - rewards/format.py:has_answer_tag
  - {function: rewards/format.py:matches, weight: 0.5, pattern: '^\\d+$'}
"""

import json
import re

from lorasmith.rewards.texts import per_row, tagged, text_of


def has_answer_tag(completions, tag="answer", **columns):
    """1 where the completion ends with its only <answer>...</answer>, and something stands in it."""
    found = []
    for completion in completions:
        text = text_of(completion).rstrip()
        once = text.count(f"<{tag}>") == text.count(f"</{tag}>") == 1 and text.endswith(f"</{tag}>")
        found.append(float(once and any(inner.strip() for inner in tagged(text, tag))))
    return found


def matches(completions, pattern, **columns):
    """1 where the regular expression is found in the completion; anchor it with ^ and $ to match the whole.

    `pattern` is a parameter of the recipe or a column. One with nested repeats, such as (a+)+, can take forever.
    """
    patterns = per_row(pattern, len(completions))
    return [
        None if one is None else float(re.search(one, text_of(completion)) is not None)
        for completion, one in zip(completions, patterns, strict=True)
    ]


def json_schema(completions, schema, **columns):
    """1 where the whole completion is JSON that the schema allows.

    `schema` is a parameter of the recipe or a column, as an object or its text; `allows` has the keywords.
    """
    found = []
    for completion, one in zip(completions, per_row(schema, len(completions)), strict=True):
        rule = json.loads(one) if isinstance(one, str) else one
        if rule is not None:
            check_keywords(rule)
        try:
            value = json.loads(text_of(completion), parse_constant=no_json)
        except (ValueError, RecursionError):
            found.append(None if rule is None else 0.0)
            continue
        found.append(None if rule is None else float(allows(rule, value)))
    return found


def no_json(name):
    """NaN and Infinity, which Python reads and JSON does not know."""
    raise ValueError(name)


TYPES = {
    "object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool,
    "null": type(None),
}  # fmt: skip
INSIDE = ("items", "additionalProperties")  # keywords whose value is a schema
LISTS = ("anyOf", "allOf", "oneOf")  # keywords whose value is a list of schemas
KEYWORDS = {
    "type", "enum", "const", "properties", "required", "minItems", "maxItems", "uniqueItems", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern", *INSIDE, *LISTS,
}  # fmt: skip
NOTES = {"$schema", "$id", "title", "description", "default", "examples", "$comment"}


def check_keywords(rule):
    """Refuse a keyword that `allows` would pass over.

    Raises:
        ValueError: If there is one.
    """
    if isinstance(rule, bool):
        return
    unknown = rule.keys() - KEYWORDS - NOTES
    if unknown:
        raise ValueError(f"JSON schema with {', '.join(sorted(unknown))}; known are {', '.join(sorted(KEYWORDS))}")
    inner = [*rule.get("properties", {}).values(), *(rule[key] for key in INSIDE if key in rule)]
    for one in [*inner, *(one for key in LISTS for one in rule.get(key, []))]:
        check_keywords(one)


def allows(rule, value):
    """Whether a JSON schema allows a value (json-schema.org, the keywords above)."""
    if isinstance(rule, bool):
        return rule
    types = rule.get("type", list(TYPES))
    if not any(is_of(value, name) for name in ([types] if isinstance(types, str) else types)):
        return False
    if "enum" in rule and not any(same(value, one) for one in rule["enum"]):
        return False
    if "const" in rule and not same(value, rule["const"]):
        return False
    if not all(allows(one, value) for one in rule.get("allOf", [])):
        return False
    if "anyOf" in rule and not any(allows(one, value) for one in rule["anyOf"]):
        return False
    if "oneOf" in rule and sum(allows(one, value) for one in rule["oneOf"]) != 1:
        return False
    if isinstance(value, dict):
        return allows_object(rule, value)
    if isinstance(value, list):
        unique = not rule.get("uniqueItems") or not any(same(a, b) for i, a in enumerate(value) for b in value[:i])
        short = rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value))
        return unique and short and all(allows(rule.get("items", True), one) for one in value)
    if isinstance(value, str):
        long = rule.get("minLength", 0) <= len(value) <= rule.get("maxLength", len(value))
        return long and re.search(rule.get("pattern", ""), value) is not None
    if is_of(value, "number"):
        inside = rule.get("minimum", value) <= value <= rule.get("maximum", value)
        above = "exclusiveMinimum" not in rule or value > rule["exclusiveMinimum"]
        return inside and above and ("exclusiveMaximum" not in rule or value < rule["exclusiveMaximum"])
    return True


def allows_object(rule, value):
    """`allows` for the keys of an object."""
    known = rule.get("properties", {})
    if any(key not in value for key in rule.get("required", [])):
        return False
    others = rule.get("additionalProperties", True)
    return all(allows(known.get(key, others), one) for key, one in value.items())


def is_of(value, name):
    """Whether a value is of a type of JSON; 1.0 is an integer there, and true is no number."""
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[name])


def same(a, b):
    """Equality of JSON values, to which true is not 1."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b and isinstance(a, bool) == isinstance(b, bool)
