"""Many prompts × analyses → Parquet, in this process or in Ray actors; killed, it goes on where it was."""
