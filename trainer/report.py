"""What `assay data` and `assay train` print for people."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from contract.artifact import Artifact
from contract.errors import listed

if TYPE_CHECKING:
    from contract.sample_size import SampleReport
    from trainer.data import Splits
    from trainer.lengths import LengthReport, Spread


def data_text(splits: Splits, lengths: LengthReport, sample: SampleReport) -> str:
    """Rows, documents, drops and lengths per split, and what the test split can show."""
    report = splits.report
    lines = [f"{'split':<6} {'rows':>7} {'documents':>9} {'kept':>7}  sha256        source"]
    lines += [
        f"{name:<6} {report.rows_read[name]:>7} {report.documents_read[name]:>9} {report.documents_kept[name]:>7}  "
        f"{splits.sha256[name][:12]}  {report.sources[name]}"
        for name in splits.named()
    ]
    for name, rows in report.rows_read.items():
        if rows != (documents := report.documents_read[name]):
            lines.append(f"{name}: {rows} rows of {documents} documents; rows of one document are one example.")
    if report.ids_prefixed:
        lines.append("Ids occur in several splits; each now begins with the name of its split.")
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in report.dropped:
        groups[item.split, item.why].append(f"{item.id} (as {item.other_split} {item.other_id})")
    lines += [f"Dropped from {split}, {why}: {len(ids)}: {listed(ids)}" for (split, why), ids in groups.items()]
    if not report.dropped:
        lines.append("No leak between splits.")
    for name, kept in report.documents_kept.items():
        found = [item for item in report.near if item.split == name]
        if found:
            named = listed(f"{item.id} (as {item.other_id}, {item.jaccard:.2f})" for item in found)
            lines.append(f"Nearly another document of {name}, kept: {len(found)} of {kept}: {named}")
    lines += [
        "",
        f"Tokens: template {lengths.template_tokens}, at most {lengths.max_length} per row"
        + (" (the model has no chat template: plain completion format)" if lengths.plain_template else ""),
        f"{'split':<6} {'':<9} {'min':>6} {'median':>6} {'p95':>6} {'max':>6}",
    ]
    for name, split in lengths.splits.items():
        lines += [_spread(name, "document", split.document), _spread("", "summary", split.summary)]
        if split.cut_tokens is not None:
            lines += [_spread("", "cut off", split.cut_tokens) + f"   in {split.cut} of {split.rows} rows"]
        if split.refused:
            lines.append(
                f"       refused: {len(split.refused)} row(s) whose summary does not fit: {listed(split.refused)}"
            )
    return "\n".join([*lines, "", sample.as_text()])


def _spread(name: str, what: str, spread: Spread) -> str:
    return f"{name:<6} {what:<9} {spread.min:>6} {spread.median:>6} {spread.p95:>6} {spread.max:>6}"


def adapter_text(artifact: Artifact) -> str:
    """What was trained, how well, and at what cost."""
    details, figures = artifact.details, artifact.manifest.measurements
    match details.get("trained_on"):
        case None:
            how = "all weights trained"
        case {"quant": "nf4", "block_size": size, "compute_dtype": compute}:
            how = f"NF4, blocks of {size}, computed in {compute}"
        case trained_on:
            how = f"16-bit weights, computed in {trained_on['compute_dtype']}"
    return "\n".join(
        [
            f"{artifact.path}",
            f"  digest      {artifact.digest}",
            f"  base        {details['base']} ({how})",
            f"  parameters  {details['trainable_parameters']:,} trained of {details['total_parameters']:,}",
            f"  validation  loss {details['validation_loss']:.4f} nats per token at step {details['best_step']} of "
            f"{details['steps']}",
            f"  cost        {figures['wall_time_s']:.0f} s, {figures['input_tokens_per_s']:.0f} input tokens/s, "
            f"peak memory {figures['peak_rss_bytes'] / 2**20:.0f} MiB"
            + (f", GPU {figures['peak_cuda_bytes'] / 2**20:.0f} MiB" if figures.get("peak_cuda_bytes") else ""),
        ]
    )
