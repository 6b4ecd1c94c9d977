"""Local models that several processes share: one process has the engines, the others ask it over a Unix socket."""
