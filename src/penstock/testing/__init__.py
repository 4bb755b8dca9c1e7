"""Ways to know: the checker that judges a run by its logs. Public, for users' tests too. May import: anything."""
