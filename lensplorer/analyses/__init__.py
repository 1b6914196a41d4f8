"""Analyses: every question is a pure function of a trace that returns a labelled ``xarray.Dataset``."""
