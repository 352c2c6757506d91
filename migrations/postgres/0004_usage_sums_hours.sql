-- What all customers used in a month is found by its hours, not by reading those of all years.
CREATE INDEX usage_sums_hours ON usage_sums (start) WHERE period = 'hour';
