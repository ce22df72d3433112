"""Tuning: chooses how each model runs on this machine, by measuring, and keeps the choices.

candidates.py and choice.py decide, and are pure; measure.py, workloads.py and bench.py measure; cache.py keeps the
choices; tuner.py connects them. Imports generation, batching, runtime and what is below them.
"""
