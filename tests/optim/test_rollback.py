"""State as it was before an error."""

from mlxdist.optim.rollback import SavedStates


def test_saved_state_is_put_back_without_what_was_added():
    state = {"m": 1, "nested": {"v": [2]}}
    saved = SavedStates([state])
    state["m"], state["new"] = 3, 4
    state["nested"]["v"].append(5)
    saved.restore()
    assert state == {"m": 1, "nested": {"v": [2]}}
