"""A whole installation as a directory of plain files: how it moves from one set of backends to another.

`layout` says what is in the directory, `writing` and `files` make and read it; `catalog_tables`, `readings`, `rollups`
and `payloads` move one kind of data each; `exporting` and `importing` put them in order.
"""
