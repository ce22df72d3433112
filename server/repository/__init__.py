"""The models that are served: loading, versions, reload and unload, and their gauges. Imports tasks and below."""
