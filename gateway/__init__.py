"""HTTP in, requests out, replies back. Any number of gateways may run; none holds state of its own.

    front        every request: its id, its key, its metrics, its log line
    routes/      one handler a route, three lines each
    parsing      a body becomes an InferRequest
    catalogue    which models there are, as last seen in Redis
    admission    who may come in now
    predictions  one answer, waited for or turned into a job
    dispatch     live requests: out through JetStream, back through one inbox
    departures   callers who leave while they wait
    submission   jobs: the record first, then a message an item
    once         jobs with an idempotency key; claims: who receives an upload with one
    uploads      jobs that come as JSONL, line by line
    jobs         what became of a job: status, results, cancel
    errors       one table from error codes to HTTP

A caller who waits gets an answer or an error; a caller who gets a 202 gets a result, kept for its time.
"""
