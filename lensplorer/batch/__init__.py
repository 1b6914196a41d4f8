"""Many prompts × analyses → Parquet, in this process or in Ray actors; killed, it goes on where it was."""

from lensplorer.batch.engine import Progress, Report, run_batch

__all__ = ["Progress", "Report", "run_batch"]
