"""The course: numbered labs that ask for a prediction, run, show, explain and check."""
