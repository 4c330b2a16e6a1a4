//! Who runs and who gives memory back: a pure function.
