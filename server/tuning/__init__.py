"""Tuning: chooses how each model runs on this machine, by measuring, and keeps the choices.

tuner.py opens a model by the choice that cache.py has kept under its key (key.py), or by a search: stages.py says in
which order, candidates.py what is tried, search.py when it is better (both are pure), and comparison.py runs candidates
with the inputs of workloads.py under the clock of measure.py. Imports generation, batching, runtime and what is below.
"""
