"""Pure decoding: bytes of a wire format to columnar readings. No I/O."""
