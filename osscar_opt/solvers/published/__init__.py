"""Published selection rules, each a solver in a file of its own, faithful to its source.

With ``refit=False`` a rule leaves the weights as its paper does, updates included; with ``refit=True`` it hands over
the support alone, on which the referee finds the best weights. Papers fix how many groups stay; limits of other kinds
(budgets, blocks, forced groups) are met in the order of the rule's own scores, which no paper prescribes.
"""
