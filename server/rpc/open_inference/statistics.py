"""Conversion of the server's totals to ModelStatistics messages of the Open Inference Protocol, for perf_analyzer."""

from protos import open_inference_pb2 as oip
from server.observability.totals import Statistics, Total


def model_statistics(name: str, version: str, totals: Statistics) -> oip.ModelStatistics:
    """Durations are in nanoseconds. The fields of Triton's response cache stay empty."""
    return oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=totals.last_request_ms,
        inference_count=totals.inputs,
        execution_count=totals.executions,
        inference_stats=oip.InferStatistics(
            success=_duration(totals.success),
            fail=_duration(totals.failure),
            queue=_duration(totals.queue),
            compute_input=_duration(totals.work.collate),
            compute_infer=_duration(totals.work.run),
            compute_output=_duration(totals.work.split),
        ),
        batch_stats=[
            oip.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(work.collate),
                compute_infer=_duration(work.run),
                compute_output=_duration(work.split),
            )
            for size, work in sorted(totals.batches.items())
        ],
    )


def _duration(total: Total) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=total.count, ns=round(total.seconds * 1e9))
