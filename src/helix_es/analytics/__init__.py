"""What analysts ask: the tables of the log, read safely, and the log as Parquet files."""
