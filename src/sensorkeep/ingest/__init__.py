"""The way in: requests are checked, decoded, made durable and answered here. `accept` is the only path."""
