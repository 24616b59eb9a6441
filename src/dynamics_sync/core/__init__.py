"""Pure decisions: no input or output, no clock, no randomness, and nothing imported from the other layers."""
