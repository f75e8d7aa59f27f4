"""What ``podlink demo`` shows: pods, clients and users on a real store, and two misfortunes.

Every figure that it prints was measured in that run. ``story`` tells it, ``stage`` has the pods
and clients, ``crowd`` the users; ``pod_process`` is a pod in a process of its own.
"""
