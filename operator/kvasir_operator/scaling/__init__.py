"""How many replicas demand asks for. Pure: time is an argument, and what could not be seen is unknown, never zero.

`samples` (what replicas say) → `windows` (what is remembered of it) → `recommender` (what the load asks for) →
`bounds` (what may be done now) → a `Decision`, whose inputs are kept, so that `record` can make it again.
"""
