"""Resources of a job, by name. Values: the guides' scripts; flags and the site file override them."""

from kava.cluster.spec import Resources
from kava.errors import ConfigError
from kava.registry import nearest

HOUR = 3600
GB = 1024

PRESETS: dict[str, Resources] = {
    "single": Resources(nodes=1, gpus=1, cpus=8, mem=64 * GB, time=48 * HOUR),
    "multi_gpu": Resources(nodes=1, gpus=4, cpus=16, mem=256 * GB, time=96 * HOUR),
    "ultra_large": Resources(nodes=1, gpus=8, cpus=32, mem=512 * GB, time=168 * HOUR),
    "multinode": Resources(nodes=4, gpus=8, cpus=32, mem=512 * GB, time=336 * HOUR),
    "cpu": Resources(nodes=1, gpus=0, cpus=2, mem=16 * GB, time=1 * HOUR),  # aggregate, analyze
}
SIZES: dict[str, dict[str, str]] = {  # what the guides' run_ultra_large.sh and run_multinode.sh set in explicit_hpc
    "ultra_large": {
        "training.epochs": "5", "training.batch_size": "2", "training.gradient_accumulation_steps": "16",
        "training.learning_rate": "1e-5", "dataset.max_length": "2048", "explicit.target_len": "32",
        "logging.save_steps": "2000", "logging.logging_steps": "100", "system.num_workers": "16",
    },
    "multinode": {
        "training.epochs": "10", "training.batch_size": "1", "training.gradient_accumulation_steps": "32",
        "training.learning_rate": "5e-6", "dataset.max_length": "2048", "explicit.target_len": "64",
        "logging.save_steps": "5000", "logging.logging_steps": "200",
    },
}  # fmt: skip


def preset(name: str) -> Resources:
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}", nearest(name, list(PRESETS)))
    return PRESETS[name]
