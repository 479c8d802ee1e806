"""Collections in files that other tools read: Parquet and JSONL, each as a source and as a sink."""
