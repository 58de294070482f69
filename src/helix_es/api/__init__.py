"""The HTTP API: a thin shell that checks requests, appends facts and shows folds."""
