"""What tests and simulations share: builders of inputs, and backends that fail on purpose."""
