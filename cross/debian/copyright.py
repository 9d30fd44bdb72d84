#!/usr/bin/env python3
"""The copyright file of the Debian package: this program, and each crate that is linked into it, with its licence.

Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
"""

import subprocess
import sys

HEADER = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: pilotlight

Files: *
Copyright: 2026 the authors of Pilotlight
License: Apache-2.0
Comment:
 The program contains these libraries, each under its own licence and the copyright of its authors.
 llama.cpp and ggml (MIT) are part of llama-cpp-sys-2.
"""
FOOTER = """\

License: Apache-2.0
 On Debian systems, the full text of the Apache License, version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
"""


def main() -> int:
    sys.stdout.write(HEADER)
    for name, version, licence in shipped():
        print(f" {name} {version}: {licence}")
    sys.stdout.write(FOOTER)
    return 0


def shipped() -> list[tuple[str, str, str]]:
    """The crates of the normal dependencies, in the order of their names."""
    form = "{p}\t{l}"
    tree = subprocess.run(
        ["cargo", "tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", form],
        check=True,
        capture_output=True,
        text=True,
    )
    crates = set()
    for line in tree.stdout.splitlines():
        package, licence = line.split("\t")
        name, version = package.split(" ")[:2]
        if name != "pilotlight":
            crates.add((name, version.removeprefix("v"), licence.removesuffix(" (*)") or "see its source"))
    return sorted(crates)


if __name__ == "__main__":
    sys.exit(main())
