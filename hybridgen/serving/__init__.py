"""Serving: many clients' requests on one model, joined step by step.

    engine      jobs that enter, go on together, and leave: a queue, deadlines, cancelling. No web code
    drawing     what a request for pictures is as a job: the pipeline's own checks, requests and steps

A request is made by the same steps as a call of the pipeline (`sampling.tasks`), so it is the same picture and the same
text; the engine only decides what is computed beside them.
"""
