"""Machine images: recipes, catalog and baking.

An adapter package like `providers` and `runners`; a pool boots what its `[[image]]` section refers to.
"""
