"""A student as a model of lm-evaluation-harness: `python -m kava.harness --model kava ...`."""
