"""The HTTP shell around the routes: problems, the request middleware, operations, offline docs, logs."""
