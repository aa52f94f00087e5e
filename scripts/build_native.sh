#!/bin/sh
# Builds the compiled reader of bulk bodies (native/, Rust without dependencies) into the package, where there is a Rust
# compiler. Without one everything works, and bulk ingest takes more of the processor. Does nothing where it is built, or
# could not be.
set -eu
cd "$(dirname "$0")/.."
library=src/sensorkeep/decode/libsensorkeep_scan.so
slower="bulk bodies are decoded in Python, which takes more of the processor"
if ! command -v cargo >/dev/null 2>&1; then
    rm -f "$library" "$library.source"
    echo "setup: no Rust compiler (cargo): $slower"
    exit 0
fi
wanted=$(cat native/Cargo.toml native/Cargo.lock native/src/*.rs | cksum)
if [ "$(cat "$library.source" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
rm -f "$library" "$library.source"
echo "setup: building the compiled reader of bulk bodies (native/)"
# A new file, not the old one with new content: a running server may have that open.
if env -u CARGO_BUILD_TARGET cargo build --quiet --release --offline --locked \
    --manifest-path native/Cargo.toml --target-dir native/target &&
    cp "$(ls native/target/release/libsensorkeep_scan.so native/target/release/libsensorkeep_scan.dylib 2>/dev/null)" \
        "$library.$$"; then
    mv "$library.$$" "$library"
else
    echo "setup: it could not be built (Rust 1.63 or newer is needed): $slower"
fi
echo "$wanted" > "$library.source"
