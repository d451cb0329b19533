"""Serving: many clients' requests on one model, joined step by step, and the OpenAI-compatible HTTP interface to it.

    engine        jobs that enter, go on together, and leave: a queue, deadlines, cancelling
    drawing       what a request for pictures is as a job: the pipeline's own checks, requests and steps
    limits        what a request may ask for, and what of it is refused before anything is decoded
    errors        errors in the form of the API
    images, chat  the requests of the API <-> jobs, and their answers
    gate          what stands before every route: the key, the bytes and the time of a request
    metrics       numbers for Prometheus
    app           the routes

`gate`, `metrics` and `app` need the extra `serve` once they are used. A request is made by the same steps as a call of
the pipeline (`sampling.tasks`), so it is the same picture and the same text; the engine only decides what is computed
beside them.
"""
