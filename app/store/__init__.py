"""What Growthlaw keeps: tables, migrations and every query. Nothing outside this room writes SQL."""
