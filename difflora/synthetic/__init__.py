"""The embedded synthetic world: rendered people, a tiny real base model and real face models.

It is a user of the library like any other: nothing in ``difflora`` asks whether it runs here.
"""
