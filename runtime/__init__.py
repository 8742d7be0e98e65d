"""From a program to outputs and a verdict: execution, arena, tiers, artifact."""
