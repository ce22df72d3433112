"""GPT: continuous batching over the slots of a key-value cache. The scheduler and the sampler are pure.

Imports runtime, admission, concurrency, observability and what is below them.
"""
