"""The report: tables, charts, sheets of samples and one page that shows them all."""
