"""A teacher's keys and values to disk: what it costs beside a bare forward pass, the copies on a stream of their own."""

from kava.lab.bench.extract import ExtractBenchSizes, bench
from kava.lab.bench.gpu.items import KitFailure, KitFinding, KitSetup


def run(setup: KitSetup) -> KitFinding:
    """`kava bench extract` with 1,024 columns a pass; the store is the teacher's, bit for bit."""
    if setup.tiny:
        sizes = ExtractBenchSizes(2, 32, 4, 2, 64, 7, 11, 2, 2, 3, "float32", "raw", None)
    else:
        sizes = ExtractBenchSizes(12, 1024, 16, 8, 32_000, 64, 60, 16, 8, 32, _name(setup), "raw", None)
    result = bench(sizes, 1 if setup.tiny else 3, str(setup.device), setup.scratch, progress=False)
    if result["differences"]:
        raise KitFailure("; ".join(result["differences"]))
    ways, share = result["ways"], result["ratio"]["forward"]
    text = (
        f"{ways['extract']['tokens_per_second']:.0f} tokens/s, {share:.2f} of a bare forward pass's; "
        f"{result['bytes'] / 1e6:.3g} MB, bit for bit"
    )
    return KitFinding(text, {name: result[name] for name in ("sizes", "tokens", "bytes", "ways", "ratio")})


def _name(setup: KitSetup) -> str:
    return str(setup.half).removeprefix("torch.")
