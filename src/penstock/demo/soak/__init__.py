"""A soak: the main job, struck again and again at the points of its code and between them, and its books checked.

``schedule`` says what happens to whom (a pure function of the seed), ``opponent`` sees to it, ``verdict`` and
``remains`` look at what came of it, ``launcher`` runs it all, ``report`` is the answer. May import: anything.
"""
