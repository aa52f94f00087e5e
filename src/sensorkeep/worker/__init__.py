"""The worker: turns claims into rows, once, and keeps the store in order."""
