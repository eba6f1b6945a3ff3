"""A capacity planner: Shift's real scheduler and choice of gears over a modelled executor and a virtual clock."""
