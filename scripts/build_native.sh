#!/bin/sh
# Builds the compiled reader of bulk bodies (native/, Rust without dependencies) into the package, where there is a Rust
# compiler. Without one everything works, and bulk ingest takes more of the processor. Does nothing where it is built.
set -eu
cd "$(dirname "$0")/.."
library=src/sensorkeep/decode/libsensorkeep_scan.so
slower="bulk bodies are decoded in Python, which takes more of the processor"
wanted=$(cat native/Cargo.toml native/Cargo.lock native/src/*.rs | cksum)
if [ -f "$library" ] && [ "$(cat "$library.source" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
rm -f "$library" "$library.source"
if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: no Rust compiler (cargo): $slower"
    exit 0
fi
echo "setup: building the compiled reader of bulk bodies (native/)"
if ! cargo build --quiet --release --offline --locked --manifest-path native/Cargo.toml; then
    echo "setup: it could not be built (see above; Rust 1.63 or newer is needed): $slower"
    exit 0
fi
# A new file, not the old one with new content: a running server may have that open.
cp "$(ls native/target/release/libsensorkeep_scan.so native/target/release/libsensorkeep_scan.dylib 2>/dev/null)" "$library.new"
mv "$library.new" "$library"
echo "$wanted" > "$library.source"
