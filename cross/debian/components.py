#!/usr/bin/env python3
"""The list of components (CycloneDX) without what differs between two builds of one commit."""

import json
import sys


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as file:
        components = json.load(file)
    components.pop("serialNumber", None)
    components.get("metadata", {}).pop("timestamp", None)
    # paths of the machine on which it was built
    text = json.dumps(without_paths(components), indent=1, sort_keys=True)
    print(text)
    return 0


def without_paths(value: object) -> object:
    """The same with references that name no folder."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    if isinstance(value, str) and value.startswith("path+file://"):
        return "path+file:///" + package_of(value)
    if isinstance(value, str) and "?download_url=file:" in value:
        return value.split("?download_url=file:")[0]
    return value


def package_of(reference: str) -> str:
    """NAME@VERSION of a package. Cargo leaves the name out where it is that of the folder."""
    folder, _, package = reference.partition("#")
    name = folder.rstrip("/").rsplit("/", 1)[-1]
    return package if "@" in package else f"{name}@{package}"


if __name__ == "__main__":
    sys.exit(main())
