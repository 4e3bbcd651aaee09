from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.mark.slow
def test_first_steps_runs(tmp_path):
    """Every cell runs, with few spots and epochs, and the committed copy holds outputs and no error."""
    committed = nbformat.read(NOTEBOOKS / "first_steps.ipynb", as_version=4)
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert sum(any("image/png" in output.get("data", {}) for output in cell.outputs) for cell in cells) >= 3
    (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = "N_SPOTS, EPOCHS = 40, 1"
    NotebookClient(committed, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    scores = next(cell for cell in cells if "tl.evaluate" in cell.source)
    assert "mean_pcc" in scores.outputs[0]["text"]
    assert list(tmp_path.iterdir()) == []
