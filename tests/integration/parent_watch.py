"""Ends a process together with the one that started it, so that no rank outlives an interrupted test."""

import multiprocessing
import os
import threading


def end_with_parent():
    """End this process when its parent ends.

    A process of `multiprocessing` waits for its parent. Any other process waits for the end of its standard input, a
    pipe that the parent holds open and that child processes inherit.
    """
    parent = multiprocessing.parent_process()

    def wait():
        if parent is None:
            os.read(0, 1)  # not `sys.stdin`, whose lock a forked process would inherit
        else:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
