"""The command `fourfold`: one file for each verb."""
