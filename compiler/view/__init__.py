"""How plans and results are shown: tables, pages."""
