"""The processes that train one run together: which part each has, what they tell each other, how one that dies is
noticed. What a part is made of, it does not know: that is engine.training's.

Events come in the order of one process's. Ranks that share a step have one event for it. Where the experts train apart,
a step's event is written once those of all steps before it are; what both experts have to be together for (a save,
a measurement, previews, a command) waits until both have come to its step.
"""
