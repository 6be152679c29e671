"""From a JSON object that a client sent to an ``Instance``, or the one field that is wrong.

The schema says what a field may be; this module says it to people. Messages name the rule that was
broken and never repeat what was sent: it may be user data or a key.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend

from services.metadata.model import Instance, Invalid

FIELD_LIMIT = 256
"""Characters of a field's name in an error: names come from the client as well."""

_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "object": "an object",
    "string": "a string",
}


def parse(document: Mapping[str, Any]) -> Instance:
    """Make the instance that the document describes; raises Invalid with the field at fault."""
    error = best_match(_VALIDATOR.iter_errors(document))
    if error is not None:
        raise Invalid(*_explained(error))
    return Instance.from_document(document)


def pointer(*names: str | int) -> str:
    """The JSON pointer (RFC 6901) that these names make, cut to FIELD_LIMIT characters."""
    escaped = (str(name).replace("~", "~0").replace("/", "~1") for name in names)
    return "".join(f"/{name}" for name in escaped)[:FIELD_LIMIT]


@lru_cache(256)
def _expression(pattern: str) -> re.Pattern[str]:
    # JSON Schema means ECMA-262, where $ is the very end. Python's $ also matches before a final
    # newline, and an id with a newline would reach headers and the signed message.
    return re.compile(pattern.replace("$", r"\Z"))


def _pattern(
    _validator: object, pattern: str, instance: object, _schema: object
) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _expression(pattern).search(instance):
        yield ValidationError("pattern")


def _unique_items(
    _validator: object, unique: bool, instance: object, _schema: object
) -> Iterator[ValidationError]:
    # jsonschema compares each item with each other one where they cannot be sorted: 28,000 small
    # objects, which fit into a body, would take minutes.
    if unique and isinstance(instance, list):
        texts = {json.dumps(item, sort_keys=True) for item in instance}
        if len(texts) != len(instance):
            yield ValidationError("uniqueItems")


def _is_integer(_checker: object, instance: object) -> bool:
    # 1.0 is an integer to JSON Schema, but not to those who read it from us later
    return isinstance(instance, int) and not isinstance(instance, bool)


def _make_validator() -> Draft202012Validator:
    text = resources.files("services.metadata").joinpath("instance.schema.json").read_text("utf-8")
    schema = json.loads(text)
    Draft202012Validator.check_schema(schema)
    validator = extend(  # type: ignore[no-untyped-call]  # jsonschema has no types for it
        Draft202012Validator,
        validators={"pattern": _pattern, "uniqueItems": _unique_items},
        type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
    )
    made: Draft202012Validator = validator(schema)
    return made


_VALIDATOR = _make_validator()


def _explained(error: ValidationError) -> tuple[str, str]:
    path = list(error.absolute_path)
    rule: str = str(error.validator)
    value: Any = error.validator_value
    instance: Any = error.instance
    schema: Any = error.schema
    if "propertyNames" in error.absolute_schema_path:
        # The path ends at the object: the value in question is the name itself.
        return pointer(*path, instance), f"is a name that {_reason(rule, value)}"
    if rule == "required":
        missing = next(name for name in value if name not in instance)
        return pointer(*path, missing), "is required"
    if rule == "additionalProperties":
        known = list(schema.get("properties", ()))
        unknown = sorted(name for name in instance if name not in known)[0]
        close = difflib.get_close_matches(unknown[:FIELD_LIMIT], known, n=1)
        meant = f"; is {close[0]} meant?" if close else ""
        return pointer(*path, unknown), f"is not known{meant}"
    return pointer(*path), _reason(rule, value)


def _reason(rule: str, value: Any) -> str:
    if rule == "type":
        names = [value] if isinstance(value, str) else value
        return "must be " + " or ".join(_TYPES[name] for name in names)
    if rule == "enum":
        return "must be one of " + ", ".join(json.dumps(item).strip('"') for item in value)
    if rule == "pattern":
        return f"does not match {value}"
    texts = {
        "minLength": "has fewer than {} characters",
        "maxLength": "has more than {} characters",
        "minItems": "has fewer than {} items",
        "maxItems": "has more than {} items",
        "maxProperties": "has more than {} names",
        "minimum": "is less than {}",
        "maximum": "is more than {}",
        "uniqueItems": "holds the same item twice",
    }
    return texts.get(rule, "is not as the schema has it").format(value)
