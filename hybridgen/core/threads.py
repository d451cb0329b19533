"""Threads that work beside the one that trains or draws, and how many of torch's own they may use: none."""

import threading

import torch


def compute_alone() -> None:
    """From now on torch computes in the calling thread alone, where it would share out larger tensors among all cores.

    Otherwise a thread that makes batches has a team of its own beside the main thread's, whose members then sleep
    wherever they wait for each other, as OpenMP (GNU's) lets them where there are more of them than cores. On two cores
    an addition of 200,000 numbers in the main thread then takes 28 microseconds instead of 8, for good, after one
    larger tensor in the other thread; a step has some thousand of them. Numbers are the same, and so are the teams of
    other threads, also of those that begin later.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread, but also of all that begin later
    restored = threading.Thread(target=torch.set_num_threads, args=(threads,))
    restored.start()
    restored.join()
