"""Published numbers to stand beside ours. They were read in second-hand notes and reviews; the paper's full text was not.

Only GSM8k test accuracy is the paper's. Values for GSM8k-Hard and SVAMP that circulate with it (34.2, 48.3), spreads and
forward passes could not be traced to it and are not here.
"""

from typing import NamedTuple

SOURCE = "arXiv 2510.02312 (ICLR 2026 version), as quoted by several notes; not checked against the full text"
SET = "gsm8k"


class Published(NamedTuple):
    """GSM8k test accuracy in percent, after training on AUG or AUG-NL."""

    full_cot: float
    codi: float
    pccot: float
    kava: float


# (model, training set) -> accuracies
TABLE = {
    ("Qwen/Qwen2.5-0.5B-Instruct", "whynlp/gsm8k-aug"): Published(50.6, 37.5, 20.5, 46.9),
    ("Qwen/Qwen2.5-0.5B-Instruct", "whynlp/gsm8k-aug-nl"): Published(48.5, 20.2, 19.1, 44.4),
    ("meta-llama/Llama-3.2-1B-Instruct", "whynlp/gsm8k-aug"): Published(63.4, 53.9, 54.2, 56.5),
    ("meta-llama/Llama-3.2-1B-Instruct", "whynlp/gsm8k-aug-nl"): Published(53.2, 50.1, 51.1, 55.7),
    ("meta-llama/Llama-3.2-3B-Instruct", "whynlp/gsm8k-aug"): Published(73.2, 61.0, 54.7, 65.7),
    ("meta-llama/Llama-3.2-3B-Instruct", "whynlp/gsm8k-aug-nl"): Published(68.4, 55.9, 47.6, 60.0),
}
