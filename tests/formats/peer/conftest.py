"""The script is for another Python: it imports Inseq."""

collect_ignore = ["in_inseq.py"]
