"""What says which units of a text matter, each in the table SCORERS."""
