# Short names for the scripts, which hold everything.

# List the recipes.
default:
    @just --list

# Formatting, lints, documents, dependencies, shell scripts, spelling.
lint *ARGS:
    scripts/test lint {{ARGS}}

# The pure core, without engines and without the embedded broker.
core *ARGS:
    scripts/test core {{ARGS}}

# Lints and every test of this repository.
test:
    scripts/test

# Everything that CI runs: `test`, independent clients, the MCP conformance suite, fuzzing.
all:
    scripts/test all

# The Debian package, in a booted system.
package:
    scripts/test package

# Build, start the service, and ask it a question.
run *ARGS:
    scripts/run {{ARGS}}

# One benchmark, for example `just bench overhead`.
bench NAME *ARGS:
    cargo bench --locked --bench {{NAME}} {{ARGS}}
