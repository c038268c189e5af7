"""Cells on a shared folder: a process that plans posts them, workers of any scheduler take them.

    OUT/queue/messages/<sha256>.json    `Job.message` of a run, once
    OUT/queue/cells/<n>-<key>-<id>/     one attempt to compute a cell:
        request.json                    which cell of which message, and what it reads
        lease.jsonl                     who computes it; a line more every few seconds
        events.jsonl                    what it tells, whole lines
        answer.json                     the receipt, the failure, or why it was given back
        cancelled                       it is not wanted any more
        notes.json                      how many of its notes are in the run's log
    OUT/queue/drivers/<id>.json         a process that plans, with a beat
    OUT/queue/workers/<id>.json         a worker: where it is, what it does, whom it refuses

A cell is taken by making `lease.jsonl`, which one worker alone succeeds in, on NFS too. Only the
process that plans judges leases: one is stale when it has not grown for so many seconds by that
process's own clock, or at once when the process that holds it is known to be gone. Then the attempt
is removed, and the next one is a folder of its own, so that two workers never write to one place. A
worker whose attempt has vanished interrupts its cell. Until it sees that, two workers may compute
one cell. That does no harm: outputs, checkpoints and receipts are written whole or not at all, and
both write the same.

Files are JSON and hold no code. Clocks of two machines are never compared.
"""
