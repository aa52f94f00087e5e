"""Best-effort messages between the parts of one or many processes: live readings and settled batches."""
