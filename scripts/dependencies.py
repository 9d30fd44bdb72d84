#!/usr/bin/env python3
"""Licences, bans and sources of all dependencies, held against deny.toml.

The part of `cargo deny check licenses bans sources` that needs no program beside cargo and Python:
cargo-deny takes minutes to build. `scripts/test lint --full` runs cargo-deny itself. A key of
deny.toml that is not understood here is an error, so that no rule is passed over in silence.
"""

import json
import re
import subprocess
import sys
import tomllib

KNOWN = {
    "graph": {"targets", "all-features"},
    "licenses": {"allow"},
    "bans": {"multiple-versions", "deny"},
    "sources": {"unknown-registry", "unknown-git"},
    "advisories": None,  # needs the advisory database, and so cargo-deny
}
# the only values that are carried out here
FIXED = {
    ("bans", "multiple-versions"): "allow",
    ("sources", "unknown-registry"): "deny",
    ("sources", "unknown-git"): "deny",
}


def main() -> int:
    with open("deny.toml", "rb") as file:
        rules = tomllib.load(file)
    faults = unknown_keys(rules)
    packages, registry = dependencies(rules["graph"])
    for package in packages:
        name = f"{package['name']} {package['version']}"
        faults += [f"{name}: {fault}" for fault in faults_of(package, rules, registry)]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{len(packages)} dependencies: {'licences, bans and sources ok' if not faults else f'{len(faults)} errors'}")
    return 1 if faults else 0


def unknown_keys(rules: dict) -> list[str]:
    faults = []
    for section, table in rules.items():
        if section not in KNOWN:
            faults.append(f"deny.toml: section {section} is not known to {sys.argv[0]}")
        elif KNOWN[section] is not None:
            faults += [
                f"deny.toml: {section}.{key} is not known to {sys.argv[0]}" for key in table.keys() - KNOWN[section]
            ]
    for (section, key), value in FIXED.items():
        if rules.get(section, {}).get(key) != value:
            faults.append(f'deny.toml: {section}.{key} must be "{value}" for {sys.argv[0]}')
    return faults


def dependencies(graph: dict) -> tuple[list[dict], str]:
    """Every package that is built for one of the targets, this one excepted, and cargo's default registry."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    if graph.get("all-features"):
        command.append("--all-features")
    for target in graph["targets"]:
        command += ["--filter-platform", target]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    # a dependency that names no registry comes from the default one
    default = {
        dep["source"]
        for package in metadata["packages"]
        for dep in package["dependencies"]
        if dep["registry"] is None and (dep["source"] or "").startswith("registry+")
    }
    (registry,) = default
    built = {node["id"] for node in metadata["resolve"]["nodes"]} - set(metadata["workspace_members"])
    return [package for package in metadata["packages"] if package["id"] in built], registry


def faults_of(package: dict, rules: dict, registry: str):
    allowed = set(rules["licenses"]["allow"])
    expression = package["license"]
    if expression is None:
        yield "states no licence"
    elif not is_allowed(expression, allowed):
        yield f"licence {expression} is not allowed by deny.toml"
    for ban in rules["bans"]["deny"]:
        if ban.get("crate", ban.get("name")) == package["name"]:
            yield f"banned: {ban.get('reason', 'no reason given')}"
    if package["source"] != registry:
        yield f"comes from {package['source'] or package['manifest_path']}, not from the default registry"


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """An SPDX expression: OR binds less than AND, and the old `A/B` means OR."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def either() -> bool:
        result = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result = both() or result
        return result

    def both() -> bool:
        result = single()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result = single() and result
        return result

    def single() -> bool:
        token = tokens.pop(0)
        if token == "(":
            result = either()
            tokens.pop(0)
            return result
        if len(tokens) > 1 and tokens[0] == "WITH":
            tokens.pop(0)
            token = f"{token} WITH {tokens.pop(0)}"
        return token in allowed

    result = either()
    if tokens:
        raise ValueError(f"not an SPDX expression: {expression}")
    return result


if __name__ == "__main__":
    sys.exit(main())
