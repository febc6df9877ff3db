"""Stand-in: one job at a time."""

import threading

queue_lock = threading.Lock()
