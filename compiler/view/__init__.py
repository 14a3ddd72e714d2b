"""How plans and results are shown: tables, graphs."""
