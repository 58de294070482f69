"""Workers that speak only HTTP: each is a GPU of the floor whose facts this API appends for it."""
