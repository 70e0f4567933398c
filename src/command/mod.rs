//! Commands: what each one is, which class it belongs to, where its keys are.
