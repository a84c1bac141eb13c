"""Reports of a run: sections with text, tables, numbers and figures, made from its workdir, and one page that holds them.

`writing.write_report(trained)` makes them all. They can be made again at any time without training.
"""

from crate_jax.reports import (
    atoms,
    attention,
    code_length,
    earlier,
    known_entropy,
    layerwise,
    loss,
    masked_prediction,
    reconstruction,
    segmentation,
    subspaces,
)
from crate_jax.reports.base import Figure, Gallery, Section, SectionResult, Table, TrainedRun

# In the order of the page. A new section is its file and one row here; its name is that of its JSON file.
SECTIONS: dict[str, Section] = {
    "loss": Section(loss.make),
    "layerwise": Section(layerwise.make, uses_model=True),
    "attention": Section(attention.make, uses_model=True),
    "segmentation": Section(segmentation.make, uses_model=True),
    "subspaces": Section(subspaces.make, uses_model=True),
    "atoms": Section(atoms.make, uses_model=True),
    "code_length": Section(code_length.make),
    "known_entropy": Section(known_entropy.make),
    "masked_prediction": Section(masked_prediction.make),
    "reconstruction": Section(reconstruction.make, uses_model=True),
    "probe": Section(earlier.probe),
    "samples": Section(earlier.samples),
}

__all__ = ["SECTIONS", "Figure", "Gallery", "Section", "SectionResult", "Table", "TrainedRun"]
