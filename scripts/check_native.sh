#!/bin/sh
# Checks the form of native/ where there is a Rust compiler.
set -eu
cd "$(dirname "$0")/.."
if ! command -v cargo >/dev/null 2>&1; then
    echo "check: no Rust compiler (cargo): native/ was not checked"
    exit 0
fi
cargo fmt --manifest-path native/Cargo.toml --check
cargo clippy --quiet --release --offline --locked --manifest-path native/Cargo.toml -- --deny warnings
