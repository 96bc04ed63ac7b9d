"""Networks: branches, teachers, heads, schedules and parameter groups."""
