"""The catalog: what is known of equipment, sensors, users, keys and batches. `base` is the contract."""
