"""The claims of the tour, one module a theme.

Every module has a frozen ``Config``, ``measure(config, seed, tick) -> data``,
``judge(data) -> findings``, and ``plot(data, folder)`` where there is something to see.
"""
