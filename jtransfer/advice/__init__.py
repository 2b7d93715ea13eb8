"""Which method should I use? `run.py` gathers the evidence, `rules.py` says what follows, `page.py` shows both."""
