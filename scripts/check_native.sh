#!/bin/sh
# Checks the form of native/ where there are the tools for it.
set -eu
cd "$(dirname "$0")/.."
check() {
    tool=$1
    shift
    if cargo "$tool" --version >/dev/null 2>&1; then
        cargo "$tool" --manifest-path native/Cargo.toml "$@"
    else
        echo "check: there is no cargo $tool: native/ was not checked by it"
    fi
}
check fmt --check
check clippy --quiet --release --offline --locked --target-dir native/target -- --deny warnings
