"""Evaluates the expressions of the ValidatingAdmissionPolicy named on the command line over pods, with cel-python.

Kubernetes' quantity library is not in cel-python: a stand-in with the same rules for what is a quantity takes its place.
"""

import re
import sys
from decimal import Decimal

import celpy
import yaml
from celpy import celtypes

SUFFIXES = {"": 1, "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "k": 10**3, "M": 10**6, "G": 10**9,
            "T": 10**12, "P": 10**15, "E": 10**18, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
            "Ei": 2**60}
QUANTITY = re.compile(r"([+-]?(?:[0-9]+[.]?[0-9]*|[.][0-9]+))(?:[eE]([+-]?[0-9]+)|([numkMGTPE]|[KMGTPE]i)?)")


class Quantity(celtypes.StringType):
    """A quantity that knows its value."""

    def value(self):
        number, exponent, suffix = QUANTITY.fullmatch(self).groups()
        return Decimal(number) * (Decimal(10) ** int(exponent) if exponent else SUFFIXES[suffix or ""])


def is_quantity(text):
    return celtypes.BoolType(QUANTITY.fullmatch(text) is not None)


def compare(one, other):
    return celtypes.IntType((one.value() > other.value()) - (one.value() < other.value()))


FUNCTIONS = {"isQuantity": is_quantity, "quantity": Quantity, "compareTo": compare}
ENVIRONMENT = celpy.Environment()


def evaluate(expression, **names):
    program = ENVIRONMENT.program(ENVIRONMENT.compile(expression), functions=FUNCTIONS)
    return program.evaluate({name: celpy.json_to_cel(value) for name, value in names.items()})


def verdict(spec, annotations, before=None):
    """None where the policy has nothing to say, [] where it accepts, else the messages."""
    pod = lambda annotations: {"metadata": {} if annotations is None else {"annotations": annotations}}
    names = {"object": pod(annotations), "request": {"operation": "CREATE"}, "oldObject": None}
    if before is not None:
        names |= {"request": {"operation": "UPDATE"}, "oldObject": pod(before)}
    if not all(evaluate(condition["expression"], **names) for condition in spec["matchConditions"]):
        return None
    names["variables"] = {v["name"]: str(evaluate(v["expression"], **names)) for v in spec["variables"]}
    return [str(evaluate(v["messageExpression"], **names)) for v in spec["validations"]
            if not evaluate(v["expression"], **names)]


def main():
    [policy, binding] = yaml.safe_load_all(open(sys.argv[1]))
    assert binding["spec"]["policyName"] == policy["metadata"]["name"] and binding["spec"]["validationActions"] == ["Deny"]
    spec, prefix = policy["spec"], "nvshare.com/"

    def check(name, value, good, *said):
        messages = verdict(spec, {prefix + name: value})
        assert (messages == []) == good, (name, value, messages)
        if not good:
            assert len(messages) == 1, (name, value, messages)
            for part in (prefix + name, "'" + value + "'", "expected", *said):
                assert part in messages[0], (part, messages)

    for value in ("8Gi", "8G", "1.5Gi", "8589934592", "512Mi", "2Mi", "+8Gi", "4e9", "2Ti", "8589934592000m"):
        check("memory-limit", value, True)
    for value in ("0", "0Gi", "-1Gi", "lots", "", "8", "8Ki", "8GB", "8 Gi", "500m", "Gi", "8gi", "1,5Gi", "0x10",
                  "2Pi", "8e99"):
        check("memory-limit", value, False, "8Gi", "at least 2Mi")
    for value in ("high", "normal", "low"):
        check("priority", value, True)
    for value in ("High", "urgent", "", "0", "high "):
        check("priority", value, False, "high, normal or low")
    for value in ("1", "0.01", "100", "2.5", "100.0"):
        check("weight", value, True)
    for value in ("0", "0.009", "100.1", "-1", "NaN", "inf", "much", "", "1e2", "1.", "1 "):
        check("weight", value, False, "0.01 to 100")

    for name in ("memory", "Priority", "memory-limits", ""):
        [message] = verdict(spec, {prefix + name: "1", prefix + "weight": "2"})
        assert prefix + name + ":" in message and "nvshare.com/memory-limit" in message, message

    # All that is wrong is said at once.
    wrong = {prefix + "memory-limit": "0", prefix + "priority": "x", prefix + "weight": "x", "other": "x"}
    assert len(verdict(spec, wrong)) == 3
    # Other pods are none of the policy's business.
    assert verdict(spec, None) is None and verdict(spec, {"other": "x"}) is None
    # What a pod said before the policy was there keeps nobody from changing something else.
    assert verdict(spec, wrong, before=wrong) is None
    assert verdict(spec, {**wrong, "other": "y"}, before=wrong) is None
    assert len(verdict(spec, wrong, before={})) == 3 and len(verdict(spec, wrong, before=None)) == 3
    assert verdict(spec, {prefix + "weight": "2"}, before={prefix + "weight": "1"}) == []


main()
