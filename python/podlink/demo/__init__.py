"""What ``podlink demo`` shows: pods, clients and users on a real store, and two failures.

Every number that it prints was measured in that run. ``story`` is its sequence of steps, ``stage``
has the pods and clients, ``users`` the users; ``pod_process`` is a pod in a process of its own.
"""
