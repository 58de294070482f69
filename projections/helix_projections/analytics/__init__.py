"""The log as tables: a process that follows LOG and BEATS into a DuckDB file that it owns."""
