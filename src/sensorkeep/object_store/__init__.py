"""Where raw payloads live: create-only objects under keys. `base` is the contract; each sibling is one backend."""
